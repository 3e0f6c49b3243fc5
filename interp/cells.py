"""Cells: what a sweep measures. Each is the plain run of a prompt with a change of its own; and the serial method.

The serial method runs each cell by itself, with the same edits that a user would write: exact, and the check of the
batched one (:mod:`interp.batched`). A run starts at the first layer that is changed, on the stored residual stream of
the layers below, which changes no bit of the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .edits import Edit, knockout
from .errors import RunError, SiteError
from .patching import patch
from .run import Run
from .sites import At, Key, Site, at

if TYPE_CHECKING:
    from .model import Model


@dataclass(frozen=True, eq=False)
class Rows:
    """Other values at some positions of a site.

    Attributes:
        at: the selector: a name and one layer.
        site: the tensor that it means; tokens are its first axis.
        values: of all positions of the prompt and all heads, in the site's axes; those that are not chosen are not
            looked at.
        positions: ascending.
        heads: None: all.
    """

    at: At
    site: Site
    values: np.ndarray
    positions: Sequence[int]
    heads: Sequence[int] | None = None

    def edit(self) -> Edit:
        return patch(self.at.site, self.at.layers[0], self.values, positions=self.positions, heads=self.heads)

    def chosen(self) -> np.ndarray:
        """1 where one position of the site is changed, else 0; axes of length 1 are repeated."""
        if self.heads is None:
            return np.ones((1,) * (len(self.site.axes) - 1), np.float32)
        mask = np.zeros((self.site.n_head, *(1,) * (len(self.site.axes) - 2)), np.float32)
        mask[list(self.heads)] = 1.0
        return mask

    def put(self, stream: np.ndarray, first: int = 0) -> None:
        """Write them into the values of the positions from ``first`` on, of a site without heads."""
        stream[[p - first for p in self.positions]] = self.values[self.positions]


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges of attention that are cut, in one layer: positions that look, and those that they no longer see."""

    site: Site
    queries: Sequence[int]
    keys: tuple[int, ...]

    def edit(self) -> Edit:
        return knockout(self.site.layer, self.queries, self.keys)


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a sweep.

    Attributes:
        index: of its value.
        where: what a message calls it.
        layer: the first layer that differs from the plain run's.
        first: the first position that has to be run: what is changed before it does not reach the last one.
        changes: at most one of each site.
    """

    index: tuple[int, ...]
    where: str
    layer: int
    first: int
    changes: tuple[Rows | Edges, ...]


class Plain:
    """The plain run of a prompt, and what other runs take over from it: residual streams, and the cache.

    Args:
        model: the model.
        tokens: the prompt.
        capture: sites that the sweep itself needs.
        layers: where its cells begin.

    Attributes:
        run: the plain run, with the logits of the last position.
    """

    def __init__(self, model: Model, tokens: list[int], capture: Iterable, layers: Iterable[int]):
        self.model, self.tokens = model, tokens
        self._starts = sorted({k for k in layers if residual(model, k - 1)})
        streams = [at("l_out", layers=[k - 1 for k in self._starts])] if self._starts else []
        self.run = self._fill([*capture, *streams])

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_exc) -> None:
        """Leave the cache as it was found."""
        if self._is_filled and self.model._handle:
            with self.model._locked() as handle:
                self.model._rewind(handle)

    def _fill(self, capture) -> Run:
        run = self.model._run(self.tokens, capture, (), "last", keep=self.model._can_keep)
        self._filled = self.model._n_rewinds if self.model._can_keep else -1
        return run

    @property
    def _is_filled(self) -> bool:
        return self._filled == self.model._n_rewinds

    @contextmanager
    def filled(self) -> Iterator[int]:
        """The library's handle, and the plain run in the cache, even if another run had taken its place.

        Raises:
            RunError: a prefix was put in force meanwhile.
        """
        while True:
            if self.model.n_prefix:
                raise RunError("A prefix was put in force while a sweep was running; begin it before, or afterwards.")
            if not self._is_filled:
                self._fill(())
            with self.model._locked() as handle:
                if self._is_filled:  # another thread may have been first
                    yield handle
                    return

    def forget(self) -> None:
        """The cache is no longer what it was."""
        self._filled = -1

    def stream(self, layer: int) -> np.ndarray:
        """What enters a layer that runs can start at; ``(n_tokens, n_embd)``."""
        return self.run["l_out", layer - 1]

    @cached_property
    def can_start(self) -> bool:
        """Whether runs that start in the middle give the plain run's logits; some layers may read more than the
        residual stream, such as the cache of an earlier layer. Found out once for a model and a layer."""
        if self.model.n_prefix:
            return False
        known, starts = self.model._exact_starts, [k for k in self._starts if k < self.model.n_layer]
        for k in {*starts[:1], *starts[-1:]} - known.keys():
            run = self.model.resume(self.stream(k), k, self.tokens, logits="last")
            known[k] = np.array_equal(run.logits, self.run.logits)
        return all(known[k] for k in {*starts[:1], *starts[-1:]})

    def start(self, layer: int) -> int:
        """Where a run starts whose first change is in ``layer``; 0: on its tokens."""
        return layer if layer in self._starts and self.can_start else 0

    def on_stream(self, cell: Cell, start: int) -> list[Rows]:
        """The changes of the residual stream on which a run starts; the others are edits."""
        key = residual(self.model, start - 1)
        return [part for part in cell.changes if key is not None and part.site.key == key]


def residual(model: Model, layer: int) -> Key | None:
    """What leaves a layer, if the model's graph names it."""
    try:
        return model._residual(layer) if layer >= 0 else None
    except SiteError:
        return None


def first_layer(model: Model, site: Site) -> int:
    """The first layer that a change of a site changes: the next, where the site is what enters it."""
    if site.key == residual(model, site.layer):
        return site.layer + 1
    return model._table.place(site.key)


def serial(plain: Plain, cells: Iterable[Cell], capture=()) -> Iterator[tuple[Cell, Run]]:
    """Runs each cell by itself, with the logits of the last position."""
    for cell in cells:
        start = plain.start(cell.layer)
        if not 1 <= start < plain.model.n_layer:
            yield cell, plain.model.run(plain.tokens, capture, [change.edit() for change in cell.changes], "last")
            continue
        stream, given = plain.stream(start), plain.on_stream(cell, start)
        for rows in given:
            stream = stream.copy()
            rows.put(stream)
        edits = [change.edit() for change in cell.changes if change not in given]
        yield cell, plain.model.resume(stream, start, plain.tokens, edits, capture, "last")
