"""``Program``: what one run reads and changes, resolved against a model's sites and handed to the library."""

from __future__ import annotations

import ctypes as ct
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import header, native
from .edits import Build, Change, Edit
from .errors import EditError, InterpError, RunError, SiteError
from .graph import Tensor, as_float32
from .inspect import Graph, read_graph
from .sites import At, Part, Site, SiteTable, as_at
from .trace import Place, Trace, as_ranges, row_positions, row_ranges


@dataclass(frozen=True)
class Captured:
    """One capture of a program: the site and the part of it that is kept."""

    site: Site
    heads: tuple[int, ...] | None
    ranges: tuple[tuple[int, int], ...]

    def part(self, n_tokens: int) -> Part:
        """What its array holds after ``n_tokens`` were run."""
        positions = tuple(p for first, end in self.ranges for p in range(first, min(end, n_tokens)))
        return Part(self.site.axes, self.heads, positions if self.ranges else None)


@dataclass(frozen=True)
class Applied:
    """One edit at one site; the fields beside ``name`` and ``build`` are those of a :class:`Place`."""

    name: str
    build: Build
    site: Site
    heads: tuple[int, ...] | None
    positions: tuple[int, ...] | None
    ranges: tuple[tuple[int, int], ...]


def head_indices(heads: tuple[int, ...] | None, site: Site) -> tuple[int, ...] | None:
    """Chosen heads from 0, ascending.

    Raises:
        SiteError: the site has no head axis, or not that many heads.
    """
    if heads is None:
        return None
    if site.n_head is None:
        raise SiteError(f"{site.key} has axes {site.axes}: no heads can be chosen. Sites with heads: z, q, k, v, attn_scores.")
    for head in heads:
        if not -site.n_head <= head < site.n_head:
            raise SiteError(f"Head {head} is out of range: {site.name} has heads 0 to {site.n_head - 1} in layer {site.layer}.")
    return tuple(sorted({head % site.n_head for head in heads}))


def select(table: SiteTable, selector: At, computed: range) -> list[Site]:
    """The sites that a selector means, one for each of its layers.

    A selector without layers means all that are computed; one that names another is an error.
    """

    def is_computed(site: Site) -> bool:
        return table.place(site.key) in computed

    if selector.layers is None:
        found = table.find(selector.site)
        return [site for site in found if is_computed(site)] or _refuse(found[0], computed)
    found = [site for layer in selector.layers for site in table.find(selector.site, layer)]
    for site in found:
        if not is_computed(site):
            _refuse(site, computed)
    return found


def _refuse(site: Site, computed: range) -> list[Site]:
    raise SiteError(f"{site.key} is not computed: this run goes from layer {computed[0]} to layer {computed[-1]}.")


def as_list(given, kinds: tuple[type, ...]) -> list:
    """One thing or several, as a list."""
    if isinstance(given, kinds):
        return [given]
    if given is None:
        return []
    if not isinstance(given, Iterable) or isinstance(given, (dict, bytes)):
        raise RunError(f"{given!r} is neither {' nor '.join(k.__name__ for k in kinds)} nor a list of those.")
    return list(given)


class Program:
    """Captures and edits of one run.

    Args:
        table: the sites of the model.
        captures: selectors or names.
        edits: edits.
        n_prompt: tokens of the prompt: what negative positions and ``"last"`` count from.
        first_layer, last_layer: what is computed of a partial run.
        offset: tokens of the prefix that the prompt continues; all positions here count from its end.
    """

    def __init__(
        self,
        table: SiteTable,
        captures,
        edits,
        n_prompt: int,
        first_layer: int = 0,
        last_layer: int | None = None,
        offset: int = 0,
    ):
        self._table, self._n_prompt, self.offset = table, n_prompt, offset
        self._computed = range(first_layer, table.n_layer if last_layer is None else last_layer + 1)
        self.captures = self._resolve_captures(as_list(captures, (str, At)))
        self.edits = self._resolve_edits(as_list(edits, (Edit,)))
        self.exception: BaseException | None = None

    def _resolve_captures(self, selectors: list) -> list[Captured]:
        found: dict = {}
        for selector in map(as_at, selectors):
            for site in select(self._table, selector, self._computed):
                captured = Captured(site, head_indices(selector.heads, site), row_ranges(selector.rows, self._n_prompt))
                if captured.ranges and site.rows_axis < 0:
                    raise SiteError(f"{site.key} has axes {site.axes}: no positions can be chosen.")
                other = found.setdefault(site.key, captured)
                if other != captured:
                    raise SiteError(f"{site.key} is captured twice with different heads or positions; capture it once.")
        return list(found.values())

    def _resolve_edits(self, edits: list) -> list[Applied]:
        found = []
        for edit in edits:
            if not isinstance(edit, Edit):
                raise EditError(f"{edit!r} is no edit; make one with interp.edit(at, fn) or one of its kin.")
            for change in edit.changes:
                found += [self._apply(edit, change, site) for site in select(self._table, change.at, self._computed)]
        return found

    def _apply(self, edit: Edit, change: Change, site: Site) -> Applied:
        if not site.editable:
            raise EditError(
                f"{site.key} is an input of the graph or holds no floats, so it cannot be edited. "
                "The token embeddings are 'embd'."
            )
        rows = change.at.rows
        if site.rows_axis < 0 and rows is not None:
            raise SiteError(f"{site.key} has axes {site.axes}: no positions can be chosen.")
        ranges = row_ranges(rows, self._n_prompt)
        heads = head_indices(change.at.heads, site)
        return Applied(edit.name, change.build, site, heads, row_positions(rows, self._n_prompt), ranges)

    @property
    def is_empty(self) -> bool:
        return not self.captures and not self.edits

    @property
    def is_within_layers(self) -> bool:
        """Nothing is read or changed after the last layer."""
        return not any(self._table.is_after_layers(part.site.key) for part in (*self.captures, *self.edits))

    # installing

    def install(self, lib: native.Library, handle: int) -> tuple[Callable, ...]:
        """Hand everything to the library. The result are the callbacks, to be kept as long as the program is in use.

        Raises:
            RunError: the library refuses.
        """
        lib.program_clear(handle)
        self._trace = Trace(lib, handle, self.offset)
        for captured in self.captures:
            site = captured.site
            # heads of a plain tensor are chosen after the copy: they lie side by side in a row
            heads = captured.heads if site.is_attention and captured.heads else ()
            ranges = as_ranges(captured.ranges, self.offset)
            status = lib.capture_add(
                handle,
                site.name.encode(),
                site.layer,
                site.occurrence,
                self._kind(site),
                site.rows_axis,
                (ct.c_int32 * len(heads))(*heads),
                len(heads),
                ranges,
                len(ranges),
            )
            if status < 0:
                raise RunError(lib.reason(handle))
        for applied in self.edits:
            site = applied.site
            if lib.edit_add(handle, site.name.encode(), site.layer, site.occurrence, site.rows_axis) < 0:
                raise RunError(lib.reason(handle))
        open_to = lib.interrupts.open_to
        callbacks = header.EDIT_FN(partial(open_to, self._on_edit)), header.HOST_FN(partial(open_to, self._on_host))
        lib.set_edit_fn(handle, callbacks[0], None)
        lib.set_host_fn(handle, callbacks[1], None)
        return callbacks

    def _kind(self, site: Site) -> int:
        return header.CAPTURE_ATTN if site.is_attention else header.CAPTURE_TENSOR

    def _on_edit(self, _user_data, index: int, pointer: int, result) -> None:
        """Called by the library while a graph is built. No exception may cross into C: it is kept for later."""
        try:
            applied = self.edits[index]
            with self._trace.opened(index, applied.site.layer):
                result[0] = trace_edit(self._trace, applied, self._trace.tensor(pointer), self._n_prompt)._pointer
        except BaseException as err:  # noqa: BLE001 - KeyboardInterrupt too must not cross
            self.exception = err

    def _on_host(self, _user_data, index: int, data, ne, done) -> None:
        """Called by the library while a graph runs, with values to be changed in place."""
        if self.exception is not None:
            return
        try:
            fn, shape = self._trace.host_functions[index]
            values = _floats_at(data, shape)
            result = as_float32(fn(values.copy()))
            if result.shape != shape:
                raise EditError(f"The edit at {self.edits[index].site.key} returned shape {result.shape}, not {shape}.")
            values[...] = result
            done[0] = 1
        except BaseException as err:  # noqa: BLE001 - as above
            self.exception = err

    def show_graphs(self, lib: native.Library, handle: int, functions: Sequence[Callable[[Graph], None]]) -> Callable:
        """Call functions with every graph that is built from here on. The result is to be kept like those of install."""

        def on_graph(_user_data, done) -> None:
            if self.exception is None:
                try:
                    graph = read_graph(lib, handle, self)
                    for fn in functions:
                        fn(graph)
                    done[0] = 1
                except BaseException as err:  # noqa: BLE001 - as above
                    self.exception = err

        callback = header.GRAPH_FN(partial(lib.interrupts.open_to, on_graph))
        lib.set_graph_fn(handle, callback, None)
        return callback

    def check(self, error: str | None) -> None:
        """Raise what went wrong in an edit, or the library's own reason; None: the run went well."""
        if self.exception is not None:
            err, self.exception = self.exception, None
            if isinstance(err, InterpError) or not isinstance(err, Exception):
                raise err
            raise EditError(f"An edit or a function of on_graph raised {type(err).__name__}: {err}") from err
        if error is not None:
            raise (EditError if "edit" in error else RunError)(error)

    # reading

    def read(self, lib: native.Library, handle: int) -> list[tuple[Captured, np.ndarray]]:
        """What was captured since the program was installed."""
        return [(captured, _read_one(lib, handle, i, captured)) for i, captured in enumerate(self.captures)]


def trace_edit(trace: Trace, applied: Applied, found: Tensor, n_prompt: int) -> Tensor:
    """Run an edit's function on a graph tensor and blend its result into the chosen heads and positions."""
    x = _in_axes(found, applied.site)
    place = Place(trace, applied.site, applied.heads, applied.positions, applied.ranges, n_prompt)
    y = applied.build(x, place)
    if not isinstance(y, Tensor):
        raise EditError(
            f"The edit at {applied.site.key} returned {type(y).__name__}; it must return a tensor of shape {x.shape}."
        )
    if y._trace is not trace:
        raise EditError(f"The edit at {applied.site.key} returned a tensor of another edit or run.")
    if y.shape != x.shape:
        raise EditError(f"The edit at {applied.site.key} returned shape {y.shape}; it must keep the shape {x.shape}.")
    mask = _mask(trace, applied, x)
    if mask is not None:
        # exact where the mask is 0 or 1; x + mask*(y - x) would round
        y = x * (1.0 - mask) + y * mask
    return y if y.shape == found.shape else y.reshape(found.shape)


def _in_axes(x: Tensor, site: Site) -> Tensor:
    """The tensor in the axes that the site documents."""
    shape = list(x.shape)
    if site.n_heads:
        shape = [shape[0] if len(shape) > 1 else 1, site.n_heads, shape[-1] // site.n_heads]
    else:
        # a batch of one token loses its token axis in ggml's view of a shape
        shape = [1] * (len(site.shape) - len(shape)) + shape
    return x if tuple(shape) == x.shape else x.reshape(tuple(shape))


def _mask(trace: Trace, applied: Applied, x: Tensor) -> Tensor | None:
    """1 where an edit applies, else 0, in a shape that broadcasts over x; None: everywhere."""
    site, mask = applied.site, None
    if applied.ranges:
        axis = 1 if site.is_attention else 0
        mask = trace.mask(applied.ranges, x.ndim, axis)
    if applied.heads is not None:
        chosen = np.zeros([d if k == site.head_axis else 1 for k, d in enumerate(x.shape)], np.float32)
        chosen[tuple(list(applied.heads) if k == site.head_axis else 0 for k in range(x.ndim))] = 1.0
        heads = trace.constant(chosen)
        mask = heads if mask is None else mask.expand(np.broadcast_shapes(mask.shape, heads.shape)) * heads
    return mask


#: from here on an array is taken over from the library instead of copied
_TAKE_BYTES = 1 << 16


def _read_one(lib: native.Library, handle: int, index: int, captured: Captured) -> np.ndarray:
    info = header.CaptureInfo()
    if lib.capture_get_info(handle, index, ct.byref(info)) != 0:
        raise RunError(f"Nothing was captured at {captured.site.key}.")
    site = captured.site
    if info.n_rows == 0:  # none of the positions was run: "generated", and nothing was generated after the prompt
        array = np.empty([length or 0 for length in site.shape], site.dtype)
        return array if captured.heads is None else np.take(array, captured.heads, axis=site.head_axis)
    dtype = np.int32 if info.type == header.GGML_TYPE_I32 else np.float32
    shape = tuple(int(d) for d in reversed(info.ne))
    array = _take(lib, handle, index, shape, dtype)
    if array is None:
        array = allocate(shape, dtype, str(site.key), "read fewer layers, heads or positions at a time")
        if array.size and lib.capture_read(handle, index, array.ctypes.data, array.nbytes) != 0:
            raise RunError(f"What was captured at {site.key} cannot be read.")
    array = array.reshape(shape[len(shape) - len(site.shape) + (1 if site.n_heads else 0) :])
    if site.n_heads:
        array = array.reshape(array.shape[0], site.n_heads, -1)
    if captured.heads is not None and not site.is_attention:
        array = np.ascontiguousarray(np.take(array, captured.heads, axis=site.head_axis))
    return array


def _floats_at(data, shape: tuple[int, ...]) -> np.ndarray:
    """The library's memory behind a pointer, as an array.

    ``np.ctypeslib.as_array`` would leave a type behind for every new shape: ctypes keeps pointer types for ever.
    """
    memory = (ct.c_float * math.prod(shape)).from_address(ct.addressof(data.contents))
    return np.frombuffer(memory, np.float32).reshape(shape)


def _take(lib: native.Library, handle: int, index: int, shape: tuple[int, ...], dtype) -> np.ndarray | None:
    """The library's own memory as an array that frees it; None where a copy is needed or cheaper."""
    n_bytes = math.prod(shape) * 4
    pointer = lib.capture_take(handle, index, n_bytes) if n_bytes >= _TAKE_BYTES else None
    if not pointer:
        return None
    buffer = (ct.c_byte * n_bytes).from_address(pointer)
    weakref.finalize(buffer, lib.capture_free, pointer)
    return np.frombuffer(buffer, dtype).reshape(shape)


class Batch:
    """Tokens as the library takes them, of sequence 0 unless told otherwise.

    Made once for all steps of a generation: between two tokens Python is cold, and each of its objects counts.
    """

    def __init__(self, n: int):
        self.token, self.pos, self.seq = np.zeros((3, n), np.int32)
        self.output = np.zeros(n, np.int8)
        self._struct = header.Batch(
            n_tokens=n,
            **{name: ct.cast(getattr(self, name).ctypes.data, kind) for name, kind in header.Batch._fields_[2:]},
        )

    def run(self, lib: native.Library, handle: int) -> str | None:
        """None, or the reason why not."""
        with lib.interrupts:
            return None if lib.decode(handle, ct.byref(self._struct)) == 0 else lib.reason(handle, "the run failed")


def allocate(shape: tuple[int, ...], dtype, what: str, instead: str) -> np.ndarray:
    """Room for an array that may be large.

    Raises:
        RunError: there is none; the message says how much was asked for, and what to do ``instead``.
    """
    try:
        return np.empty(shape, dtype)
    except MemoryError as err:
        size = math.prod(shape) * np.dtype(dtype).itemsize / (1 << 20)
        raise RunError(f"No memory for {what}, {' x '.join(map(str, shape))} numbers, {size:,.0f} MiB: {instead}.") from err


def decode(lib: native.Library, handle: int, tokens: Sequence[int], first: int, outputs: np.ndarray) -> str | None:
    """Run tokens at positions ``first …`` of sequence 0, with logits where ``outputs`` is 1; None, or the reason why not."""
    batch = Batch(len(tokens))
    batch.token[:] = tokens
    batch.pos[:] = range(first, first + len(tokens))
    batch.output[:] = outputs
    return batch.run(lib, handle)
