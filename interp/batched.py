"""The batched method of a sweep: cells are sequences of one decode.

A change at a position leaves the cache before it as it was, so each sequence shares that part of the plain run's, and
only its later tokens are run. The layers below are as in the plain run, so the graph starts at the first layer that is
changed, on the stored residual stream. Each sequence then costs its own tokens in the layers above, and nothing else;
of each only the last token has logits. Values differ from the serial method's by the rounding of kernels that see other
shapes.
"""

from __future__ import annotations

import ctypes as ct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from .cells import Cell, Edges, Plain, Rows, residual, serial
from .edits import CUT, Change, Edit
from .errors import RunError
from .graph import Tensor
from .metrics import LogitDiff
from .program import Batch, Program
from .run import Run
from .sites import Key, at
from .trace import Place

#: what a layer costs beside its tokens, in tokens for each byte of a weight: the time of reading the weights once.
#: Measured on a CPU: 12 tokens for F32 weights, 1 to 2 for Q4_1
_TOKENS_PER_BYTE = 3.0


def run_cells(
    plain: Plain, cells: Sequence[Cell], method: str | None = None, metric=None
) -> Iterator[tuple[Cell, Run]]:
    """Runs the cells of a sweep, in an order of its own.

    Args:
        method: as in :func:`chosen_method`.
        metric: what the runs are for; if it says which logits it reads, the batched method computes only those.

    Yields:
        each cell and its run, with the logits of the last position.
    """
    if chosen_method(plain, cells, method) == "serial":
        return serial(plain, cells)
    return batched(plain, cells, metric)


def check_method(method: str | None) -> None:
    """
    Raises:
        RunError: there is no such method.
    """
    if method not in (None, "batched", "serial"):
        raise RunError(f'method={method!r}: give "batched", "serial", or None for the better one.')


def chosen_method(plain: Plain, cells: Iterable[Cell], method: str | None) -> str:
    """``"batched"`` or ``"serial"``; None leaves the choice.

    Raises:
        RunError: the batched method was asked for and cannot be.
    """
    reason = why_not_batched(plain, cells) if method != "serial" else None
    if method == "batched" and reason:
        raise RunError(reason)
    return "serial" if method == "serial" or reason else "batched"


def why_not_batched(plain: Plain, cells: Iterable[Cell]) -> str | None:
    """What keeps the method from being used; None: nothing."""
    model, n = plain.model, len(plain.tokens)
    can_share = model._n_seq_max > 1 and model._can_generate and model._can_keep
    if not (can_share and not model.n_prefix and plain.can_start):
        return (
            'method="batched" needs a cache that sequences can share, no prefix in force, and layers that read nothing '
            "but the residual stream. Leave method out."
        )
    length = n - min((cell.first for cell in cells), default=n)
    if length > _room(plain):
        holds = f"the context holds {model.n_ctx}" if n + length > model.n_ctx else f"a decode takes {model._n_batch}"
        return (
            f"A batched sweep holds the plain run and the {length} tokens of a patched one together, but {holds}. "
            f"Load the model with n_ctx={n + length} or more, or leave method out."
        )
    return None


def _room(plain: Plain) -> int:
    """Tokens that a decode may have beside the plain run."""
    return min(plain.model._n_batch, plain.model.n_ctx - len(plain.tokens))


def batched(plain: Plain, cells: Sequence[Cell], metric=None) -> Iterator[tuple[Cell, Run]]:
    ids = metric.tokens(plain.run) if isinstance(metric, LogitDiff) else None
    for group in partition(plain, cells, whole_head=ids is None):
        # between two decodes the model is free: a metric may use it
        rows, _ = run_group(plain, group, ids=ids)
        for cell, row in zip(group, rows):
            logits = _of_vocabulary(row, ids, plain.model.n_vocab)[None]
            yield cell, Run(plain.tokens, plain.run.pieces, logits, {}, {}, plain.model, plain.run.info)


def _of_vocabulary(row: np.ndarray, ids: list[int] | None, n_vocab: int) -> np.ndarray:
    """Logits in their places; NaN for those that were not computed."""
    if len(row) == n_vocab:
        return row
    whole = np.full(n_vocab, np.nan, np.float32)
    whole[ids] = row
    return whole


def partition(plain: Plain, cells: Sequence[Cell], whole_head: bool = True) -> list[list[Cell]]:
    """Cells in groups, each of them one decode; the lowest layers first.

    A decode computes all of its sequences from the lowest of their layers on, so cells of several layers together cost
    layers that they do not need; but each layer of a decode, and the head, also costs the time of reading its weights.
    The partition is the cheapest into runs of cells in the order of their layers, by dynamic programming.
    """
    model, n = plain.model, len(plain.tokens)
    cells = sorted(cells, key=lambda cell: cell.layer)
    lengths = [n - cell.first for cell in cells]
    # one ubatch, unless a sequence alone is longer
    room = max([min(_room(plain), model._n_ubatch), *lengths])
    reading = _TOKENS_PER_BYTE * model._n_bytes / max(model.n_params, 1)
    computed = {cell.layer: model.n_layer - plain.start(cell.layer) for cell in cells}
    head = model.n_vocab * model.n_embd
    head = head * model.n_layer / max(model.n_params - head, 1) if whole_head else 0.0  # in layers
    best, begin = [0.0], [0]
    for end in range(1, len(cells) + 1):
        least, at_least, used = np.inf, end - 1, 0
        for first in range(end - 1, max(-1, end - model._n_seq_max), -1):
            used += lengths[first]
            if used > room:
                break
            cost = best[first] + computed[cells[first].layer] * (reading + used) + head * (reading + end - first)
            if cost < least:
                least, at_least = cost, first
        best.append(least)
        begin.append(at_least)
    groups, end = [], len(cells)
    while end:
        groups.append(cells[begin[end] : end])
        end = begin[end]
    return groups[::-1]


def run_group(
    plain: Plain, group: Sequence[Cell], capture=(), last_layer: int | None = None, ids: list[int] | None = None
) -> tuple[np.ndarray | None, list[dict[Key, np.ndarray]]]:
    """One decode.

    Args:
        capture: sites to read.
        last_layer: None: all; otherwise the last that is computed, and there are no logits.
        ids: tokens whose logits suffice.

    Returns:
        The last logits of each cell, ``(n_cells, n_vocab)``, or ``(n_cells, n_ids)`` where the head allows that; and what was captured of each, of its own positions.
    """
    model = plain.model
    lib, start = model._lib, plain.start(min(cell.layer for cell in group))
    given = [plain.on_stream(cell, start) for cell in group]
    program = Program(model._table, capture, _edits(group, given), len(plain.tokens), start, last_layer)
    with plain.filled() as handle:
        callbacks = model._install(program, handle)
        try:
            lib.pack_queries(handle)
            if start:
                _set_start(plain, handle, group, given, start)
            if last_layer is not None:
                stop = model._residual(last_layer)
                lib.stop_set(handle, stop.name.encode(), stop.layer, stop.occurrence)
            elif ids is not None:
                lib.logits_set_ids(handle, (ct.c_int32 * len(ids))(*ids), len(ids))
            for sequence, cell in enumerate(group, 1):
                if cell.first:
                    lib.memory_seq_cp(handle, 0, sequence, 0, cell.first)
            program.check(_batch(plain.tokens, group, last_layer is not None).run(lib, handle))
            logits = model._logits(handle, len(group)) if last_layer is None else None
            return logits, _split(program, lib, handle, len(group))
        except BaseException:
            plain.forget()
            raise
        finally:
            lib.program_clear(handle)
            for sequence in range(1, len(group) + 1):
                lib.memory_seq_rm(handle, sequence, -1, -1)
            del callbacks


def _batch(tokens: list[int], group: Sequence[Cell], whole: bool) -> Batch:
    """``whole``: the last layer that is computed keeps the rows of all tokens, not only of those with logits."""
    n = len(tokens)
    batch = Batch(sum(n - cell.first for cell in group))
    where = 0
    for sequence, cell in enumerate(group, 1):
        for position in range(cell.first, n):
            batch.token[where], batch.pos[where] = tokens[position], position
            batch.seq[where], batch.output[where] = sequence, whole or position == n - 1
            where += 1
    return batch


def _set_start(plain: Plain, handle: int, group: Sequence[Cell], given: Sequence[list[Rows]], start: int) -> None:
    """The residual stream of each sequence, with the cell's own values where it is what a cell changes."""
    stream, n = plain.stream(start), len(plain.tokens)
    parts = []
    for cell, changes in zip(group, given):
        part = stream[cell.first :].copy()
        for rows in changes:
            rows.put(part, cell.first)
        parts.append(part)
    rows = np.ascontiguousarray(np.concatenate(parts), np.float32)
    pos = [p for cell in group for p in range(cell.first, n)]
    seq = [s for s, cell in enumerate(group, 1) for _ in range(cell.first, n)]
    ints, key = ct.c_int32 * len(pos), residual(plain.model, start - 1)
    plain.model._lib.start_set(
        handle, key.name.encode(), key.layer, key.occurrence, rows.ctypes.data_as(ct.POINTER(ct.c_float)),
        ints(*pos), ints(*seq), len(pos),
    )


# // the changes of all cells at one site, as one edit


def _edits(group: Sequence[Cell], given: Sequence[list[Rows]]) -> list[Edit]:
    by_site: dict[Key, list[tuple[int, Rows | Edges]]] = {}
    for sequence, (cell, on_stream) in enumerate(zip(group, given), 1):
        for change in cell.changes:
            if change not in on_stream:
                by_site.setdefault(change.site.key, []).append((sequence, change))
    first = [cell.first for cell in group]
    return [
        _edges(parts) if isinstance(parts[0][1], Edges) else _rows(parts, first) for parts in by_site.values()
    ]


def _rows(parts: list[tuple[int, Rows]], first: list[int]) -> Edit:
    """The values of each cell, put into its own sequence; ``first``: where each sequence begins."""
    places = [[p for p in rows.positions if p >= first[sequence - 1]] for sequence, rows in parts]
    positions = [p for some in places for p in some]
    sequences = [sequence for (sequence, _), some in zip(parts, places) for _ in some]
    masks = [rows.chosen() for _, rows in parts]
    shape = np.broadcast_shapes(*(mask.shape for mask in masks))
    chosen = np.concatenate([np.broadcast_to(mask, (len(some), *shape)) for mask, some in zip(masks, places)])
    values = np.concatenate([rows.values[some] for (_, rows), some in zip(parts, places)]) * chosen

    def build(x: Tensor, place: Place) -> Tensor:
        new = place.trace.rows(positions, values, sequences).reshape((-1, *x.shape[1:]))
        mask = place.trace.rows(positions, chosen, sequences).reshape((-1, *chosen.shape[1:]))
        return x * (1.0 - mask) + new

    return Edit("patch", (Change(parts[0][1].at, build),))


def _edges(parts: list[tuple[int, Edges]]) -> Edit:
    """The edges of each cell, cut in its own sequence; cells that cut the same keys share a mask."""
    by_keys: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for sequence, edges in parts:
        by_keys.setdefault(edges.keys, []).extend((query, sequence) for query in edges.queries)

    def build(x: Tensor, place: Place) -> Tensor:
        for keys, rows in by_keys.items():
            queries, sequences = zip(*rows)
            looking = place.trace.rows(queries, np.full(len(rows), CUT, np.float32), sequences).reshape((-1, 1))
            hidden = place.trace.key_mask(tuple((p, p + 1) for p in keys))
            x = x + looking.expand(x.shape[1:]) * hidden
        return x

    site = parts[0][1].site
    return Edit("knockout", (Change(at(site.name, layers=site.layer), build),))


# // what was captured, by sequence


def _split(program: Program, lib, handle: int, n: int) -> list[dict[Key, np.ndarray]]:
    found: list[dict[Key, np.ndarray]] = [{} for _ in range(n)]
    for index, (captured, array) in enumerate(program.read(lib, handle)):
        ints = ct.c_int32 * len(array)
        pos, seq = ints(), ints()
        lib.capture_rows(handle, index, pos, seq)
        for sequence in range(n):
            found[sequence][captured.site.key] = array[np.array(seq) == sequence + 1]
    return found
