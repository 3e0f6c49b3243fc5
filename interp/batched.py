"""The batched method of a sweep: the cells of a layer are sequences of one decode.

A patch at a position leaves the cache before it as it was, so each sequence shares that part of the plain run's, and
only its later tokens are run. The layers below are as in the plain run, so the graph starts at the patched one, on the
stored residual stream. Each sequence then costs its own tokens in the layers above, and nothing else; of each only the
last token has logits. Values differ from the serial method's by the rounding of kernels that see other shapes.
"""

from __future__ import annotations

import ctypes as ct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .edits import Change, Edit
from .errors import RunError
from .graph import Tensor
from .program import Batch, Program
from .run import Run
from .serial import Plan, can_start, residual, same_bits
from .sites import at
from .trace import Place


@dataclass(frozen=True)
class Cell:
    """One sequence.

    Attributes:
        column: of the sweep.
        rows: the positions that are patched.
        head: None: the whole row.
    """

    column: int
    rows: list[int]
    head: int | None


def can_batch(plan: Plan, base: Run) -> bool:
    """Whether the method applies: a cache that sequences share, no prefix, and a graph that can start at a layer."""
    model = plan.model
    return model._n_seq_max > 1 and model._can_generate and not model.n_prefix and can_start(plan, base)


def batched(plan: Plan, source: Run, base: Run) -> Iterator[tuple[int, int, Run | None]]:
    """As :func:`interp.serial.serial`, layer by layer, several cells in one decode.

    Raises:
        RunError: one sequence and the plain run do not fit into the context together.
    """
    engine = _Engine(plan, source, base)
    try:
        for row, layer in enumerate(plan.sites):
            cells = engine.cells(layer)
            for column in sorted(set(engine.columns(layer)) - {cell.column for cell in cells}):
                yield row, column, None
            for group in engine.groups(cells):
                # between two decodes the model is free: a metric may use it
                for cell, logits in zip(group, engine.run(layer, group)):
                    yield row, cell.column, engine.as_run(logits)
    finally:
        engine.close()


class _Engine:
    def __init__(self, plan: Plan, source: Run, base: Run):
        self._plan, self._source, self._base, self._model = plan, source, base, plan.model
        self._n = len(plan.tokens)
        self._filled = -1
        room = min(self._model._n_batch, self._model.n_ctx - self._n)
        # one ubatch, unless a sequence alone is longer
        self._room = max(min(room, self._model._n_ubatch), min(room, self._n))

    def columns(self, layer: int) -> range:
        """The columns that a layer has: layers may differ in their heads."""
        n = len(self._plan.columns)
        return range(n if self._plan.heads is None else min(n, self._plan.sites[layer].n_head))

    def cells(self, layer: int) -> list[Cell]:
        """The cells of a layer that have to be run."""
        plan = self._plan
        there, new = self._base[plan.site, layer], self._source[plan.site, layer]
        found = []
        for column in self.columns(layer):
            chosen = plan.columns[column]
            head = None if plan.heads is None else chosen
            rows = [chosen] if plan.heads is None else list(plan.positions)
            part = (lambda x, p: x[p]) if head is None else (lambda x, p, h=head: x[p, h])
            if plan.prune:
                rows = [p for p in rows if not same_bits(part(there, p), part(new, p)) and not plan.is_unseen(layer, p)]
            if rows:
                found.append(Cell(column, rows, head))
        return found

    def groups(self, cells: list[Cell]) -> Iterator[list[Cell]]:
        """Cells that fit into one decode together."""
        group: list[Cell] = []
        used = 0
        for cell in cells:
            length = self._n - cell.rows[0]
            if length > self._room:
                raise RunError(
                    f"A sweep holds the plain run and the {length} tokens of a patched one together, but the context "
                    f"holds {self._model.n_ctx}. Load the model with n_ctx={self._n + length} or more."
                )
            if group and (used + length > self._room or len(group) == self._model._n_seq_max - 1):
                yield group
                group, used = [], 0
            group.append(cell)
            used += length
        if group:
            yield group

    def as_run(self, logits: np.ndarray) -> Run:
        return Run(self._plan.tokens, self._base.pieces, logits[None], {}, {}, self._model, self._base.info)

    # a decode

    def run(self, layer: int, group: list[Cell]) -> np.ndarray:
        """The last logits of each cell, ``(n_cells, n_vocab)``."""
        lib, start = self._model._lib, self._start(layer)
        with self._model._locked() as handle:
            self._fill(handle)
            program = Program(self._model._table, (), self._edits(layer, group, start), self._n, first_layer=start)
            callbacks = program.install(lib, handle)
            try:
                if start:
                    self._set_start(handle, layer, group, start)
                for sequence, cell in enumerate(group, 1):
                    if cell.rows[0]:
                        lib.memory_seq_cp(handle, 0, sequence, 0, cell.rows[0])
                program.check(self._batch(group).run(lib, handle))
                logits = self._model._logits(handle, len(group))
            except BaseException:
                self._filled = -1
                raise
            finally:
                lib.program_clear(handle)
                for sequence in range(1, len(group) + 1):
                    lib.memory_seq_rm(handle, sequence, -1, -1)
                del callbacks
        return logits

    def _fill(self, handle: int) -> None:
        """The plain run's cache, unless it is still there."""
        if self._filled == self._model._n_rewinds:
            return
        self._model._rewind(handle)
        empty = Program(self._model._table, (), (), self._n)
        callbacks = empty.install(self._model._lib, handle)
        self._model._decode(empty, handle, self._plan.tokens, 0, self._model._outputs(empty, self._n, "last"))
        self._filled = self._model._n_rewinds
        del callbacks

    def close(self) -> None:
        """Leave the cache as it was found."""
        if self._filled == self._model._n_rewinds:
            with self._model._locked() as handle:
                self._model._rewind(handle)

    def _start(self, layer: int) -> int:
        """The first layer that is computed; 0: all are."""
        first = self._plan.first_layer(layer)
        return first if first >= 1 and residual(self._model, first - 1) else 0

    def _is_at_start(self, layer: int, start: int) -> bool:
        """Whether the site is the residual stream that the graph starts on: then nothing need be edited."""
        return start > 0 and self._plan.sites[layer].key == residual(self._model, start - 1)

    def _batch(self, group: list[Cell]) -> Batch:
        batch = Batch(sum(self._n - cell.rows[0] for cell in group))
        where = 0
        for sequence, cell in enumerate(group, 1):
            for position in range(cell.rows[0], self._n):
                batch.token[where], batch.pos[where] = self._plan.tokens[position], position
                batch.seq[where], batch.output[where] = sequence, position == self._n - 1
                where += 1
        return batch

    def _set_start(self, handle: int, layer: int, group: list[Cell], start: int) -> None:
        key = residual(self._model, start - 1)
        at_start = self._is_at_start(layer, start)
        plain = self._base[self._plan.site, layer] if at_start else self._base["resid_pre", start]
        parts = []
        for cell in group:
            part = plain[cell.rows[0] :].copy()
            if at_start:
                part[[p - cell.rows[0] for p in cell.rows]] = self._source[self._plan.site, layer][cell.rows]
            parts.append(part)
        rows = np.ascontiguousarray(np.concatenate(parts), np.float32)
        pos = [p for cell in group for p in range(cell.rows[0], self._n)]
        seq = [s for s, cell in enumerate(group, 1) for _ in range(cell.rows[0], self._n)]
        ints = ct.c_int32 * len(pos)
        self._model._lib.start_set(
            handle, key.name.encode(), key.layer, key.occurrence, rows.ctypes.data_as(ct.POINTER(ct.c_float)),
            ints(*pos), ints(*seq), len(pos),
        )

    def _edits(self, layer: int, group: list[Cell], start: int) -> list[Edit]:
        """One edit that puts the values of each cell into its own sequence."""
        if self._is_at_start(layer, start):
            return []
        new = self._source[self._plan.site, layer]
        positions = [p for cell in group for p in cell.rows]
        sequences = [s for s, cell in enumerate(group, 1) for _ in cell.rows]
        chosen = np.zeros((len(positions), *(new.shape[1:] if group[0].head is not None else (1,) * (new.ndim - 1))), np.float32)
        heads = [cell.head for cell in group for _ in cell.rows]
        for k, head in enumerate(heads):
            chosen[k, slice(None) if head is None else head] = 1.0
        values = new[positions] * chosen

        def build(x: Tensor, place: Place) -> Tensor:
            rows = place.trace.rows(positions, values, sequences).reshape((-1, *x.shape[1:]))
            mask = place.trace.rows(positions, chosen, sequences).reshape((-1, *chosen.shape[1:]))
            return x * (1.0 - mask) + rows

        return [Edit("patch", (Change(at(self._plan.site, layers=layer), build),))]
