"""``ablation_sweep`` and ``knockout_sweep``: what the answer loses without a head, a module, or edges of attention."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import plot
from .batched import check_method, run_cells
from .cells import Cell, Edges, Plain, Rows, first_layer
from .edits import check_edges
from .errors import EditError, RunError, SiteError
from .grid import Grid, LayerGrid, check_metric, measured, metric_name
from .mean_sweep import MeanSweep
from .patching import ablate, mean_value
from .prompts import around
from .run import Run
from .several import averaged
from .sites import Site, at
from .sweep import Plan, plan_of

if TYPE_CHECKING:
    from .model import Model

# // ablation


@averaged("prompt")
def ablation_sweep(
    model: Model, prompt, metric: Callable[[Run], float] | None = None, site: str = "z", mode: str = "zero", mean=None,
    layers=None, progress: bool | None = None, method: str | None = None,
) -> AblationSweep | MeanSweep:
    """Take each head, or each layer of a site without heads, out of the computation, and measure what is left.

    Method: zero and mean ablation as in Michel et al. (arXiv:1905.10650) and Wang et al. (arXiv:2211.00593). Each value
    is ``metric(model.run(prompt, edits=interp.ablate([(layer, head)], site, mode, mean), logits="last"))``: with the
    serial method bit for bit, with the batched one to the rounding of kernels that multiply other shapes.

    Args:
        model: the model.
        prompt: a text or token ids; or a list of those, of any lengths, whose mean comes back.
        metric: a function of a :class:`Run` with the logits of the last position: such as :func:`interp.logit_diff`.
            For a list of prompts, one for all or a list of as many, all of one kind.
        site: ``"z"`` (each head), ``"mlp_out"``, ``"attn_out"`` (each layer), or any editable site with a token axis.
        mode: ``"zero"`` or ``"mean"``.
        mean: for ``"mean"``, as in :func:`interp.ablate`: an array, a run of other text that captured the site, or
            :class:`Stats` of it.
        layers: which layers; None: all that have the site.
        progress: a bar on the standard error; None: where that is a terminal.
        method: as in :func:`interp.patch_sweep`.

    Returns:
        An :class:`AblationSweep`, of a list a :class:`MeanSweep`. After Ctrl-C one with what was finished by then, and
        ``complete`` False.

    Raises:
        RunError: no metric, one that gives no finite number, or another mode.
        EditError: no mean, or one of another shape.
        SiteError: an unknown site or layer.
    """
    check_metric(metric, "ablation_sweep")
    if mode not in ("zero", "mean"):
        raise RunError(f'mode={mode!r}: give "zero" or "mean".')
    check_method(method)
    tokens = model._prompt(prompt)
    plan = plan_of(model, len(tokens), site, False, layers, None)
    by_head = [tensor.n_head for tensor in plan.sites.values() if tensor.n_head is not None]
    heads = list(range(max(by_head))) if len(by_head) == len(plan.sites) else None
    ablate(site=site, mode=mode, mean=mean, layers=list(plan.sites))  # a missing mean is an error before anything runs
    with Plain(model, tokens, (), plan.starts(model)) as plain:
        found = AblationSweep(
            values=np.full((len(plan.sites), *((len(heads),) if heads else ())), np.nan), metric=metric_name(metric),
            model=model.name, layers=list(plan.sites), complete=False, site=site, mode=mode, heads=heads,
            tokens=tokens, pieces=model.pieces(tokens), baseline=measured(metric, plain.run, "the plain prompt"),
        )
        runs = run_cells(plain, list(_ablated(plan, plain, heads is not None, mean if mode == "mean" else None)), method, metric)
        with contextlib.closing(runs):
            values = ((cell.index, measured(metric, run, cell.where)) for cell, run in runs)
            found.fill(values, progress, f"ablating {site}")
    return found


def _ablated(plan: Plan, plain: Plain, by_head: bool, mean) -> Iterator[Cell]:
    """A cell for each head or layer; ``mean`` None puts zeros there."""
    n = len(plain.tokens)
    for row, (layer, tensor) in enumerate(plan.sites.items()):
        shape, first = tensor.shape[1:], first_layer(plain.model, tensor)
        value = np.zeros(shape, np.float32) if mean is None else mean_value(plan.site, mean, tensor, len(tensor.axes))
        if value.shape != shape:
            raise EditError(f"The mean at {tensor.key} has shape {value.shape}; it must be {shape}.")
        values = np.broadcast_to(value, (n, *shape))
        for head in range(tensor.n_head) if by_head else [None]:
            heads, index = (None, (row,)) if head is None else ([head], (row, head))
            where = f"layer {layer}" if head is None else f"layer {layer}, head {head}"
            yield Cell(index, where, first, 0, (Rows(at(plan.site, layers=layer), tensor, values, range(n), heads),))


@dataclass(eq=False, repr=False)
class AblationSweep(LayerGrid):
    """What :func:`ablation_sweep` measured.

    Attributes:
        values: (n_layers, n_heads), or (n_layers,) for a site without heads, float64: the metric without that part, in
            the metric's unit; NaN where the sweep was interrupted, or a layer lacks that head.
        baseline: the metric of the plain run.
        site, mode: as given.
        heads: the columns; None for a site without heads.
        tokens, pieces: of the prompt.
        metric, model, layers, complete: as in every sweep.
    """

    site: str
    mode: str
    heads: list[int] | None
    tokens: list[int]
    pieces: list[str]
    baseline: float

    _FORMAT = "llama-interp ablation sweep 1"
    _KIND = "ablation sweep"

    def _shape(self) -> tuple[int, ...]:
        return (len(self.layers), *((len(self.heads),) if self.heads is not None else ()))

    def _title(self) -> str:
        part = "each layer" if self.heads is None else "each head"
        return self._with_state(f"{self.mode} ablation of {self.site}, {part}")

    def _lines(self, width: int) -> list[str]:
        return [f"{around(self.pieces, len(self.pieces) - 1, width)} ({self.baseline:.2f})"]

    def _columns(self) -> list[str]:
        return list(map(str, self.heads))

    def plot(self, path: str | os.PathLike) -> None:
        """Draws effects of heads as PNG, layers up and heads across, white where nothing changes; of a site without
        heads the metric as a line over the layers, dashed what it is without ablation."""
        (Grid if self.heads is not None else LayerGrid).plot(self, path)

    def html(self, path: str | os.PathLike) -> None:
        """Writes the same as an HTML page that works offline; hovering names the cell, its value and effect."""
        (Grid if self.heads is not None else LayerGrid).html(self, path)


# // attention knockout


@averaged("prompt")
def knockout_sweep(
    model: Model, prompt, metric: Callable[[Run], float] | None = None, queries=-1, keys=None, window: int = 9,
    layers=None, progress: bool | None = None, method: str | None = None,
) -> KnockoutSweep | MeanSweep:
    """Cut edges of attention in a window of layers around each layer, and measure what is left.

    Method: Geva et al., "Dissecting Recall of Factual Associations in Auto-Regressive Language Models"
    (arXiv:2304.14767): where information passes from the keys to the queries. Each value is that of a run with
    ``interp.knockout(layers of the window, queries, keys)``, with the serial method bit for bit.

    Args:
        model: the model.
        prompt: a text or token ids; or a list of those, of any lengths, whose mean comes back.
        metric: a function of a :class:`Run` with the logits of the last position: such as :func:`interp.probability`.
            For a list of prompts, one for all or a list of as many, all of one kind.
        queries: the positions that no longer see the keys: one or several; negative ones count from the end.
        keys: likewise the positions that are no longer seen; or a dictionary of such sets by name, each a line of the
            result: ``{"subject": [1, 2], "last": -1}``. For a list of prompts, one for all or a list of such
            dictionaries.
        window: how many layers, the one in the middle among them; at the ends of the model there are fewer. Of an
            even number, one more lies below the middle than above it.
        layers: the middles; None: all.
        progress: a bar on the standard error; None: where that is a terminal.
        method: as in :func:`interp.patch_sweep`.

    Returns:
        A :class:`KnockoutSweep`, of a list a :class:`MeanSweep`. After Ctrl-C one with what was finished by then, and
        ``complete`` False.

    Raises:
        RunError: no metric, one that gives no finite number, no keys, or a window below 1.
        SiteError: a position or layer out of range.
        EditError: a query would see nothing at all.
    """
    check_metric(metric, "knockout_sweep")
    if isinstance(window, bool) or not hasattr(window, "__index__") or window < 1:
        raise RunError(f"window={window!r}: give the number of layers, an integer of at least 1.")
    check_method(method)
    tokens = model._prompt(prompt)
    if keys is None or (isinstance(keys, Mapping) and not keys):
        raise RunError('keys= is missing: positions that are no longer seen, such as [1, 2] or {"subject": [1, 2]}.')
    named = keys if isinstance(keys, Mapping) else {"keys": keys}
    sets = {str(name): _positions(part, len(tokens), "keys") for name, part in named.items()}
    queries = _positions(queries, len(tokens), "queries")
    table = model._table
    sites = {site.layer: site for site in table.find("attn_logits")}
    chosen = at("attn_logits", layers=layers).layers
    middles = range(table.n_layer) if chosen is None else sorted({table.layer_index(layer) for layer in chosen})
    windows = {middle: _window(middle, int(window), sites) for middle in middles}
    if not model.n_prefix:  # the keys of a prefix stay
        for part in sets.values():
            check_edges(queries, part)
    with Plain(model, tokens, (), {cut[0].layer for cut in windows.values() if cut}) as plain:
        found = KnockoutSweep(
            values=np.full((len(sets), len(middles)), np.nan), metric=metric_name(metric), model=model.name,
            layers=list(middles), complete=False, keys=sets, queries=queries, window=int(window), tokens=tokens,
            pieces=model.pieces(tokens), baseline=measured(metric, plain.run, "the plain prompt"),
        )
        cells = list(_cuts(windows, sets, queries))
        runs = run_cells(plain, [cell for cell in cells if cell.changes], method, metric)

        def values() -> Iterator[tuple[tuple[int, ...], float]]:
            # a hybrid model may have no attention there
            yield from ((cell.index, found.baseline) for cell in cells if not cell.changes)
            for cell, run in runs:
                yield cell.index, measured(metric, run, cell.where)

        with contextlib.closing(runs):
            found.fill(values(), progress, "knocking out")
    return found


def _cuts(windows: dict[int, list[Site]], sets: dict[str, list[int]], queries: list[int]) -> Iterator[Cell]:
    for row, (name, keys) in enumerate(sets.items()):
        for column, (middle, cut) in enumerate(windows.items()):
            edges = tuple(Edges(site, queries, tuple(keys)) for site in cut)
            layer = cut[0].layer if cut else 0
            yield Cell((row, column), f"keys {name!r} around layer {middle}", layer, queries[0], edges)


def _window(middle: int, width: int, sites: dict[int, Site]) -> list[Site]:
    # as in the paper's own code: range(layer - width // 2, layer + ceil(width / 2))
    return [sites[layer] for layer in range(middle - width // 2, middle + (width + 1) // 2) if layer in sites]


def _positions(given, n: int, what: str) -> list[int]:
    chosen = at("l_out", positions=given).positions
    if chosen is None or isinstance(chosen, str):
        raise SiteError(f"{what}={given!r}: give positions, integers; of a prompt alone, the last is -1.")
    for position in chosen:
        if not -n <= position < n:
            raise SiteError(f"Position {position} is out of range: the prompt has {n} tokens, 0 to {n - 1}.")
    return sorted({position % n for position in chosen})


class Cut(NamedTuple):
    """One value of a knockout sweep: ``layer`` is the middle of the window, ``keys`` the name of the set."""

    keys: str
    layer: int
    value: float
    effect: float


@dataclass(eq=False, repr=False)
class KnockoutSweep(LayerGrid):
    """What :func:`knockout_sweep` measured.

    Attributes:
        values: (n_sets, n_layers) float64: the metric with the edges cut in the window around each layer, in the
            metric's unit; NaN where the sweep was interrupted.
        baseline: the metric of the plain run.
        keys: the sets of positions by name, in the order of the rows.
        queries, window: as given; positions count from 0.
        tokens, pieces: of the prompt.
        metric, model, layers, complete: as in every sweep.
    """

    keys: dict[str, list[int]]
    queries: list[int]
    window: int
    tokens: list[int]
    pieces: list[str]
    baseline: float

    _FORMAT = "llama-interp knockout sweep 1"
    _KIND = "knockout sweep"

    @property
    def relative(self) -> np.ndarray:
        """The change as a share of the plain run's metric, as the paper draws it: -0.5 is a loss of half."""
        return self.effects / self.baseline if self.baseline else np.full(self.values.shape, np.nan)

    def _shape(self) -> tuple[int, int]:
        return len(self.keys), len(self.layers)

    def _cell(self, row: int, column: int) -> Cut:
        value, effect = float(self.values[row, column]), float(self.effects[row, column])
        return Cut(list(self.keys)[row], self.layers[column], value, effect)

    def _header(self) -> tuple[str, ...]:
        return "keys", "layer", "value", "effect"

    def _texts(self, cell: Cut) -> list[str]:
        return [self._named(cell.keys), str(cell.layer), f"{cell.value:.3f}", f"{cell.effect:+.3f}"]

    def _title(self) -> str:
        who = f"positions {plot.spans(self.queries)}"
        if len(self.queries) == 1:
            who = f"position {self.queries[0]} ({plot.visible(self.pieces[self.queries[0]], 16)})"
        return self._with_state(f"{who} without the keys, in {self.window} layers around each")

    def _lines(self, width: int) -> list[str]:
        return [f"{around(self.pieces, len(self.pieces) - 1, width)} ({self.baseline:.2f})"]

    def _names(self) -> list[str]:
        return list(map(self._named, self.keys))

    def _named(self, keys: str) -> str:
        """A set with its positions, and its tokens where they are few."""
        positions = self.keys[keys]
        where = plot.spans(positions)
        pieces = plot.visible("".join(self.pieces[p] for p in positions)) if len(positions) < 8 else ""
        label = where if keys == where else f"{keys}, {where}"
        return f"{label}: {pieces.replace('␣', ' ').strip()}".removesuffix(": ")

    def _hover(self, cell: Cut) -> str:
        where = f"keys: {cell.keys}\naround layer {cell.layer}"
        return f"{where}\n{self.metric} {cell.value:.4f}\neffect {cell.effect:+.4f}"
