"""What a sweep patches, and its serial method: one run for each cell. Exact, and the check of the batched one.

Two things make it cheaper than whole runs, and neither changes a bit of the result: a cell whose values are already
there is not run, and a run starts at the layer that is patched, on the stored residual stream of the layers below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import SiteError
from .patching import patch
from .run import Run
from .sites import Key, Site, at

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True)
class Plan:
    """What a sweep patches.

    Attributes:
        model: the model.
        tokens: of the run that is patched.
        site: the name of what is patched.
        sites: the tensor that the name means in each layer.
        positions: ascending; with heads, those that are patched together.
        heads: ascending; None: each position is a cell.
        prune: leave out the cells that are known to change nothing.
    """

    model: Model
    tokens: list[int]
    site: str
    sites: dict[int, Site]
    positions: list[int]
    heads: list[int] | None
    prune: bool = True

    @property
    def columns(self) -> list[int]:
        return self.positions if self.heads is None else self.heads

    def first_layer(self, layer: int) -> int:
        """The first layer that a patch of this layer changes: the next, where the site is what enters it."""
        site = self.sites[layer]
        return site.layer + 1 if site.key == residual(self.model, site.layer) else layer

    def is_unseen(self, layer: int, chosen: int) -> bool:
        """What follows the last layer, norm and head, takes each position by itself."""
        last = self.first_layer(layer) == self.model.n_layer
        return last and self.heads is None and chosen != len(self.tokens) - 1

    def starts(self) -> list[int]:
        """The layers that runs can start at, ascending."""
        first = {self.first_layer(layer) for layer in self.sites}
        return sorted(k for k in first if 1 <= k < self.model.n_layer and residual(self.model, k - 1))


def residual(model: Model, layer: int) -> Key | None:
    """What leaves a layer, if the model's graph names it."""
    try:
        return model._residual(layer) if layer >= 0 else None
    except SiteError:
        return None


def endings(plan: Plan, source_tokens: list[int]) -> tuple[Run, Run]:
    """The two plain runs, of the prompt that values come from and of the one that they go to."""
    held = at(plan.site, layers=list(plan.sites)) if len(plan.sites) < plan.model.n_layer else plan.site
    capture = [held]
    if plan.starts():
        capture.append(at("resid_pre", layers=plan.starts()))
    source = plan.model.run(source_tokens, capture=[held], logits="last")
    return source, plan.model.run(plan.tokens, capture=capture, logits="last")


def serial(plan: Plan, source: Run, base: Run) -> Iterator[tuple[int, int, Run | None]]:
    """Runs every cell, layer by layer.

    Args:
        plan: what to patch.
        source, base: what :func:`endings` returned.

    Yields:
        ``(row, column, run)``: the patched run, with logits of the last position; None where the patch changes
        nothing, so that the run is the plain one. A head that a layer lacks is left out.
    """
    starts = startable(plan, base)
    for row, layer in enumerate(plan.sites):
        there, new = base[plan.site, layer], source[plan.site, layer]
        first = plan.first_layer(layer)
        for column, chosen in enumerate(plan.columns):
            if plan.heads is not None and chosen >= plan.sites[layer].n_head:
                continue
            rows = chosen if plan.heads is None else (plan.positions, chosen)
            if plan.prune and (plan.is_unseen(layer, chosen) or same_bits(there[rows], new[rows])):
                yield row, column, None
            elif first not in starts or (first == layer and plan.sites[layer].layer == layer):
                yield row, column, edited(plan, base, starts, layer, [_patch(plan, layer, chosen, source)])
            else:
                resid = there.copy()
                resid[chosen] = new[chosen]
                yield row, column, plan.model.resume(resid, first, plan.tokens, logits="last")


def _patch(plan: Plan, layer: int, chosen: int, source: Run):
    positions, heads = (chosen, None) if plan.heads is None else (plan.positions, chosen)
    return patch(plan.site, layer, source, positions=positions, heads=heads)


def startable(plan: Plan, base: Run) -> list[int]:
    """The layers that runs may start at, ascending; ``base`` has captured what enters them."""
    return plan.starts() if can_start(plan, base) else []


def edited(plan: Plan, base: Run, starts: list[int], layer: int, edits: list, capture=(), logits="last") -> Run:
    """The run of a plan's prompt with edits, none of them below ``layer``: from there where that is possible."""
    if plan.first_layer(layer) in starts and plan.sites[layer].layer == layer:
        first = plan.first_layer(layer)
        return plan.model.resume(base["resid_pre", first], first, plan.tokens, edits, capture, logits)
    return plan.model.run(plan.tokens, capture, edits, logits)


def can_start(plan: Plan, base: Run) -> bool:
    """Whether runs that start in the middle give the plain run's logits; some layers may read more than the residual
    stream, such as the cache of an earlier layer. Found out once for a model and a layer."""
    known, starts = plan.model._exact_starts, plan.starts()
    for k in {*starts[:1], *starts[-1:]}:
        if k not in known:
            run = plan.model.resume(base["resid_pre", k], k, plan.tokens, logits="last")
            known[k] = np.array_equal(run.logits, base.logits)
    return all(known[k] for k in {*starts[:1], *starts[-1:]})


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
