"""``Trace`` and ``Place``: what an edit may ask for while its graph is built."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from . import header, native
from .errors import EditError, SiteError
from .graph import MAX_DIMS, Tensor, as_float32, ne_of, shape_of
from .sites import Site

#: above any position: the end of an open range
END = 2**31 - 1

#: what a key that the mask hides holds in the graph's attn_logits (LLAMA_INTERP_MASKED)
MASKED = -1e30


def row_ranges(rows, n_prompt: int) -> tuple[tuple[int, int], ...]:
    """Chosen positions as half-open ranges; empty for all.

    Raises:
        SiteError: a position outside of the prompt.
    """
    if rows is None:
        return ()
    if rows == "last":
        return ((n_prompt - 1, n_prompt),)
    if rows == "generated":
        return ((n_prompt, END),)
    for position in rows:
        if not -n_prompt <= position < n_prompt:
            raise SiteError(f"Position {position} is out of range: the prompt has {n_prompt} tokens.")
    return tuple((p, p + 1) for p in sorted({p % n_prompt for p in rows}))


def row_positions(rows, n_prompt: int) -> tuple[int, ...] | None:
    """Chosen positions from 0, in the order given; None for all or an open range. :func:`row_ranges` checks them."""
    if rows == "last":
        return (n_prompt - 1,)
    if rows is None or rows == "generated":
        return None
    return tuple(p % n_prompt for p in rows)


class Trace:
    """What an edit needs while its graph is built: the handle, the layer, and constants already uploaded.

    A trace is open only while its edit runs; a :class:`Tensor` kept longer refuses every use.

    Attributes:
        offset: tokens of the prefix before the prompt. Positions given here count from the prompt's first token, the
            library's from the prefix's.
    """

    def __init__(self, lib: native.Library, handle: int, offset: int = 0):
        self._lib, self._handle, self.offset = lib, handle, offset
        self._constants: dict = {}
        self._open = False
        self.layer = -1
        #: what the host runs: edit -> (function, shape of what it takes)
        self.host_functions: dict[int, tuple[Callable, tuple[int, ...]]] = {}

    @contextmanager
    def opened(self, edit: int, layer: int):
        """Open for one edit in ``layer``."""
        self._open, self._edit, self.layer = True, edit, layer
        try:
            yield self
        finally:
            self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise EditError(
                "This tensor belongs to an edit that has returned. Compute with a tensor only inside the edit "
                "that received it; to keep values, capture the site."
            )

    def _raise(self) -> None:
        raise EditError(self._lib.reason(self._handle, "the operation failed"))

    def tensor(self, pointer: int) -> Tensor:
        """Wrap a graph tensor; its shape is read from the library."""
        info = header.TensorInfo()
        if self._lib.tensor_get_info(self._handle, pointer, ct.byref(info)) != 0:
            self._raise()
        return Tensor(self, pointer, shape_of(info.ne))

    def op(self, name: str, a: Tensor, b: Tensor | None = None, *, f=(), i=(), shape: tuple[int, ...]) -> Tensor:
        """Add a node; ``shape`` is that of the result, in numpy's order."""
        self._check_open()
        for operand in (a, b):
            if operand is not None and operand._trace is not self:
                raise EditError("The tensors belong to different edits.")
        pointer = self._lib.op(
            self._handle,
            header.OPS.index(name),
            a._pointer,
            b._pointer if b is not None else None,
            (ct.c_float * 2)(*f) if f else None,
            (ct.c_int64 * 4)(*i) if i else None,
        )
        if not pointer:
            self._raise()
        return Tensor(self, pointer, shape)

    def constant(self, value) -> Tensor:
        """Upload an array once for the whole program; later graphs of the same program use it again."""
        self._check_open()
        key = (id(value), self.layer)
        if key in self._constants:
            _, pointer, shape = self._constants[key]
            return Tensor(self, pointer, shape)
        array = as_float32(value)
        if array.ndim > MAX_DIMS:
            raise EditError(f"A constant has at most {MAX_DIMS} dimensions; this one has shape {array.shape}.")
        if array.size == 0:
            raise EditError(f"A constant of shape {array.shape} is empty.")
        shape = array.shape or (1,)
        pointer = self._lib.const(
            self._handle, self.layer, (ct.c_int64 * 4)(*ne_of(shape)), array.ctypes.data_as(ct.POINTER(ct.c_float))
        )
        if not pointer:
            self._raise()
        # keeping the value keeps its id from being used again
        self._constants[key] = (value, pointer, shape)
        return Tensor(self, pointer, shape)

    def mask(self, ranges: Sequence[tuple[int, int]], ndim: int, axis: int) -> Tensor:
        """1 for the tokens whose position lies in a range, else 0; uploaded with every batch of tokens."""
        self._check_open()
        pointer = self._lib.input_mask(self._handle, as_ranges(ranges, self.offset), len(ranges), -1, ndim - 1 - axis)
        if not pointer:
            self._raise()
        tensor = self.tensor(pointer)
        return Tensor(self, pointer, tensor.shape + (1,) * (ndim - axis - len(tensor.shape)))

    def key_mask(self, ranges: Sequence[tuple[int, int]]) -> Tensor:
        """``(n_key,)``: 1 for the keys whose position lies in a range, else 0; for edits of attention only."""
        self._check_open()
        pointer = self._lib.input_keys(self._handle, as_ranges(ranges, self.offset), len(ranges))
        if not pointer:
            self._raise()
        return self.tensor(pointer)

    def host(self, x: Tensor, fn: Callable) -> Tensor:
        """``fn`` of the tensor's values, called at every run of the graph; one for each edit."""
        self._check_open()
        pointer = self._lib.host(self._handle, x._pointer)
        if not pointer:
            self._raise()
        self.host_functions[self._edit] = fn, x.shape
        return Tensor(self, pointer, x.shape)

    def rows(self, positions: Sequence[int], values: np.ndarray, sequences: Sequence[int] | None = None) -> Tensor:
        """``values[k]`` for the token at ``positions[k]`` (of ``sequences[k]``; None: of any), zero elsewhere; uploaded
        with every batch of tokens."""
        self._check_open()
        array = as_float32(values).reshape(len(positions), -1)
        ints = ct.c_int32 * len(positions)
        pointer = self._lib.input_rows(
            self._handle,
            ints(*[self.offset + p for p in positions]),
            None if sequences is None else ints(*sequences),
            len(positions),
            array.ctypes.data_as(ct.POINTER(ct.c_float)),
            array.shape[1],
        )
        if not pointer:
            self._raise()
        return self.tensor(pointer)


def as_ranges(ranges: Sequence[tuple[int, int]], offset: int):
    """Ranges of a prompt's positions as the library counts them."""
    shifted = [header.Range(lo + offset, min(hi + offset, END)) for lo, hi in ranges]
    return (header.Range * len(ranges))(*shifted)


@dataclass(frozen=True)
class Place:
    """Where an edit applies: a site, and the heads and positions chosen there.

    Attributes:
        trace: of the graph that is built.
        site: the tensor.
        heads: the chosen ones, ascending; None: all.
        positions: the chosen ones in the order given, from 0; None: all, or an open range.
        ranges: the same as half-open ranges; empty: all.
        n_prompt: tokens of the prompt.
    """

    trace: Trace
    site: Site
    heads: tuple[int, ...] | None
    positions: tuple[int, ...] | None
    ranges: tuple[tuple[int, int], ...]
    n_prompt: int

    @property
    def row_axis(self) -> int:
        """Which axis counts tokens: the queries of attention, else the first."""
        return 1 if self.site.is_attention else 0

    def has_rows(self, value: np.ndarray) -> bool:
        """Whether an array gives each token a value of its own instead of one to all."""
        return self.site.rows_axis >= 0 and value.ndim == len(self.site.axes) and value.shape[self.row_axis] != 1

    def row_positions(self, n_rows: int) -> tuple[int, ...]:
        """The position that each of ``n_rows`` values is for.

        Raises:
            EditError: another number of positions is chosen.
        """
        if self.positions is not None:
            wanted = self.positions
        elif self.ranges:  # "generated"
            wanted = tuple(range(self.ranges[0][0], self.ranges[0][0] + n_rows))
        else:
            wanted = tuple(range(self.n_prompt))
        if len(wanted) != n_rows:
            raise EditError(
                f"{n_rows} rows of values for {len(wanted)} positions at {self.site.key}. Choose as many positions, "
                f"with positions=[...], or give one value for all."
            )
        return wanted

    def rows(self, value: np.ndarray, x: Tensor) -> Tensor:
        """Values of chosen tokens as a tensor of ``x``'s shape, zero for the others; see :meth:`row_positions`.

        Args:
            value: in the site's axes; an axis of length 1 is repeated. Of attention the keys may be fewer than the
                graph's, which are padded; the rest counts as masked.
        """
        positions = self.row_positions(value.shape[self.row_axis])
        rows = np.moveaxis(self.padded(value, x), self.row_axis, 0)
        shape = tuple(d for axis, d in enumerate(x.shape) if axis != self.row_axis)
        try:
            rows = np.broadcast_to(rows, (len(positions), *shape))
        except ValueError:
            raise EditError(f"Values of shape {value.shape} do not fit {self.site.key} of shape {x.shape}.") from None
        tensor = self.trace.rows(positions, rows).reshape((-1, *shape))
        return tensor.transpose(1, 0, 2) if self.row_axis == 1 else tensor

    def padded(self, value: np.ndarray, x: Tensor) -> np.ndarray:
        """Attention with as many keys as the graph's padded cache: what is added counts as masked."""
        missing = x.shape[-1] - value.shape[-1] if value.ndim else 0
        if not self.site.is_attention or value.ndim != x.ndim or value.shape[-1] == 1 or missing < 0:
            return value
        hidden = MASKED if self.site.name == "attn_logits" else 0.0
        return np.pad(np.nan_to_num(value, neginf=MASKED), [(0, 0), (0, 0), (0, missing)], constant_values=hidden)

    def row_mask(self, positions: Sequence[int], x: Tensor) -> Tensor:
        """1 for the tokens at these positions, else 0, in a shape that broadcasts over ``x``."""
        return self.trace.mask(tuple((p, p + 1) for p in positions), x.ndim, self.row_axis)
