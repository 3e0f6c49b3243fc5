"""``Tensor``: the expressions in which an edit is written.

An edit receives a :class:`Tensor` while llama.cpp builds its graph, and what it returns becomes part of that graph.
Operators add nodes; nothing is computed while they do, and nothing of it runs in Python per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .errors import EditError

if TYPE_CHECKING:
    from .trace import Trace

#: dimensions that a tensor of ggml has at most
MAX_DIMS = 4


def as_float32(value) -> np.ndarray:
    """A contiguous float32 array, or an :class:`EditError` that says what was given instead."""
    if isinstance(value, Tensor):
        raise EditError("A graph tensor has no values while the graph is built; use it in an expression.")
    try:
        return np.ascontiguousarray(value, dtype=np.float32)
    except (TypeError, ValueError) as err:
        raise EditError(f"A {type(value).__name__} is no array of numbers: {err}") from err


def shape_of(ne) -> tuple[int, ...]:
    """ggml's dimensions, the fastest first and padded with ones, as a numpy shape."""
    dims = list(ne)
    while len(dims) > 1 and dims[-1] == 1:
        dims.pop()
    return tuple(int(d) for d in reversed(dims))


def ne_of(shape: Sequence[int]) -> list[int]:
    return list(reversed(shape)) + [1] * (MAX_DIMS - len(shape))


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        raise EditError(f"Shapes {a} and {b} do not fit together.") from None


class Tensor:
    """A float32 tensor of the graph, in numpy's order of axes (tokens first).

    Supports ``+ - * / @ **2``, comparison with ``> 0`` through :meth:`step`, slicing with plain slices and integers,
    and the methods below. Arrays and numbers on the other side become constants on the layer's device.

    Attributes:
        shape: known while the graph is built; the token axis is the number of tokens of this batch.
    """

    __slots__ = ("_trace", "_pointer", "shape")
    __array_ufunc__ = None  # let `array + tensor` come to __radd__

    def __init__(self, trace: Trace, pointer: int, shape: tuple[int, ...]):
        self._trace, self._pointer, self.shape = trace, pointer, tuple(shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def layer(self) -> int:
        """The layer of the site, -1 outside of the layers."""
        return self._trace.layer

    def __repr__(self) -> str:
        return f"Tensor(shape={self.shape})"

    def __bool__(self):
        raise EditError("A graph tensor has no values while the graph is built, so it cannot decide an `if`.")

    def __array__(self, *args, **kwargs):
        raise EditError("A graph tensor has no values while the graph is built; use interp operations, not numpy's.")

    # arithmetic

    def _binary(self, name: str, other, swapped: bool = False) -> "Tensor":
        if isinstance(other, (int, float)) and not isinstance(other, bool):
            return self._with_number(name, float(other), swapped)
        if not isinstance(other, Tensor):
            other = self._trace.constant(other)
        a, b = (other, self) if swapped else (self, other)
        shape = _broadcast(a.shape, b.shape)
        if len(shape) > MAX_DIMS:
            raise EditError(f"The result would have shape {shape}; tensors have at most {MAX_DIMS} dimensions.")
        # ggml repeats only its second operand
        if math.prod(a.shape) != math.prod(shape):
            if name in ("add", "mul") and math.prod(b.shape) == math.prod(shape):
                a, b = b, a
            else:
                a = a.expand(shape)
        return self._trace.op(name, a, b, shape=shape)

    def _with_number(self, name: str, number: float, swapped: bool) -> "Tensor":
        if not math.isfinite(number):
            raise EditError(f"{number} is not a finite number.")
        if name == "add":
            return self._scale(1.0, number)
        if name == "sub":
            return self._scale(-1.0, number) if swapped else self._scale(1.0, -number)
        if name == "mul":
            return self._scale(number, 0.0)
        if not swapped:
            if number == 0.0:
                raise EditError("Division by zero.")
            return self._scale(1.0 / number, 0.0)
        return self._trace.constant(np.full(1, number, np.float32)).expand(self.shape) / self

    def _scale(self, factor: float, bias: float) -> "Tensor":
        return self._trace.op("scale", self, f=(factor, bias), shape=self.shape)

    def __add__(self, other):
        return self._binary("add", other)

    def __radd__(self, other):
        return self._binary("add", other, swapped=True)

    def __sub__(self, other):
        return self._binary("sub", other)

    def __rsub__(self, other):
        return self._binary("sub", other, swapped=True)

    def __mul__(self, other):
        return self._binary("mul", other)

    def __rmul__(self, other):
        return self._binary("mul", other, swapped=True)

    def __truediv__(self, other):
        return self._binary("div", other)

    def __rtruediv__(self, other):
        return self._binary("div", other, swapped=True)

    def __neg__(self):
        return self._unary("neg")

    def __abs__(self):
        return self._unary("abs")

    def __pow__(self, exponent):
        if exponent == 2:
            return self._unary("sqr")
        if exponent == 0.5:
            return self.sqrt()
        raise EditError("Only ** 2 and ** 0.5 are known.")

    def __matmul__(self, other) -> "Tensor":
        """``x @ w``: ``(…, n) @ (n, k) -> (…, k)``; ``(…, n) @ (n,) -> (…)``."""
        other = other if isinstance(other, Tensor) else self._trace.constant(other)
        if other.ndim == 1:
            return (self @ other.reshape(-1, 1)).reshape(self.shape[:-1] or (1,))
        if self.shape[-1] != other.shape[-2]:
            raise EditError(f"Shapes {self.shape} and {other.shape} cannot be multiplied.")
        if other.ndim > 2 and other.shape[:-2] != self.shape[:-2]:
            raise EditError(f"Shapes {self.shape} and {other.shape} cannot be multiplied: the batch axes differ.")
        # ggml_mul_mat multiplies rows with rows
        return self._trace.op("mul_mat", other.transpose(), self, shape=self.shape[:-1] + (other.shape[-1],))

    # functions of each element

    def _unary(self, name: str) -> "Tensor":
        return self._trace.op(name, self, shape=self.shape)

    def exp(self) -> "Tensor":
        return self._unary("exp")

    def log(self) -> "Tensor":
        return self._unary("log")

    def sqrt(self) -> "Tensor":
        return self._unary("sqrt")

    def relu(self) -> "Tensor":
        return self._unary("relu")

    def gelu(self) -> "Tensor":
        return self._unary("gelu")

    def silu(self) -> "Tensor":
        return self._unary("silu")

    def tanh(self) -> "Tensor":
        return self._unary("tanh")

    def sigmoid(self) -> "Tensor":
        return self._unary("sigmoid")

    def step(self) -> "Tensor":
        """1 where the element is above 0, else 0."""
        return self._unary("step")

    def clamp(self, low: float, high: float) -> "Tensor":
        return self._trace.op("clamp", self, f=(float(low), float(high)), shape=self.shape)

    # along the last axis

    def softmax(self) -> "Tensor":
        return self._unary("soft_max")

    def sum(self) -> "Tensor":
        """Sum over the last axis, which stays with length 1."""
        return self._trace.op("sum", self, shape=self.shape[:-1] + (1,))

    def mean(self) -> "Tensor":
        """Mean over the last axis, which stays with length 1."""
        return self._trace.op("mean", self, shape=self.shape[:-1] + (1,))

    def norm(self, eps: float = 1e-5) -> "Tensor":
        """Layer norm over the last axis, without weights."""
        return self._trace.op("norm", self, f=(float(eps), 0.0), shape=self.shape)

    def rms_norm(self, eps: float = 1e-5) -> "Tensor":
        """RMS norm over the last axis, without weights."""
        return self._trace.op("rms_norm", self, f=(float(eps), 0.0), shape=self.shape)

    # shape

    def reshape(self, *shape) -> "Tensor":
        shape = _as_shape(shape)
        if shape.count(-1) == 1:
            rest = math.prod(d for d in shape if d != -1)
            if rest and math.prod(self.shape) % rest == 0:
                shape = tuple(math.prod(self.shape) // rest if d == -1 else d for d in shape)
        if len(shape) > MAX_DIMS or any(d < 1 for d in shape) or math.prod(shape) != math.prod(self.shape):
            raise EditError(f"A tensor of shape {self.shape} cannot be reshaped to {shape}.")
        return self._trace.op("reshape", self, i=ne_of(shape), shape=shape)

    def expand(self, *shape) -> "Tensor":
        """Repeat axes of length 1 to the given shape."""
        shape = _as_shape(shape)
        fits = len(self.shape) <= len(shape) <= MAX_DIMS and all(
            own in (1, wanted) for own, wanted in zip(reversed(self.shape), reversed(shape))
        )
        if not fits or any(d < 1 for d in shape):
            raise EditError(f"A tensor of shape {self.shape} cannot be expanded to {shape}.")
        return self._trace.op("repeat", self, i=ne_of(shape), shape=shape)

    def filled(self, value) -> "Tensor":
        """A tensor of this shape that holds ``value``, whatever this one holds: infinities leave no trace."""
        value = value if isinstance(value, Tensor) else self._trace.constant(as_float32(value))
        return value if value.shape == self.shape else value.expand(self.shape)

    def transpose(self, *axes) -> "Tensor":
        """Reorder the axes as numpy does; without arguments the last two are swapped."""
        axes = _as_shape(axes) if axes else (*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)
        if self.ndim < 2 or sorted(axes) != list(range(self.ndim)):
            raise EditError(f"{axes} is no order of the {self.ndim} axes of shape {self.shape}.")
        goes_to = list(range(MAX_DIMS))  # ggml wants where each dimension goes, counted from the fastest
        for new, old in enumerate(axes):
            goes_to[self.ndim - 1 - old] = self.ndim - 1 - new
        return self._trace.op("permute", self, i=goes_to, shape=tuple(self.shape[a] for a in axes))

    def concat(self, other: "Tensor", axis: int = -1) -> "Tensor":
        other = other if isinstance(other, Tensor) else self._trace.constant(other)
        axis = axis + self.ndim if axis < 0 else axis
        if not 0 <= axis < self.ndim or other.ndim != self.ndim:
            raise EditError(f"Shapes {self.shape} and {other.shape} cannot be joined along axis {axis}.")
        shape = tuple(d + other.shape[k] if k == axis else d for k, d in enumerate(self.shape))
        return self._trace.op("concat", self, other, i=(self.ndim - 1 - axis, 0, 0, 0), shape=shape)

    def __getitem__(self, key) -> "Tensor":
        """Plain slices with step 1, integers and ``...``: ``x[-1]``, ``x[:, 2:4]``."""
        key = key if isinstance(key, tuple) else (key,)
        if key.count(Ellipsis) > 1 or len(key) - key.count(Ellipsis) > self.ndim:
            raise EditError(f"{key} has too many axes for shape {self.shape}.")
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = key[:at] + (slice(None),) * (self.ndim - len(key) + 1) + key[at + 1 :]
        result, dropped = self, []
        for axis, part in enumerate(key):
            first, count = _slice_of(part, self.shape[axis])
            if isinstance(part, int):
                dropped.append(axis)
            if (first, count) != (0, self.shape[axis]):
                shape = tuple(count if k == axis else d for k, d in enumerate(result.shape))
                result = self._trace.op("slice", result, i=(self.ndim - 1 - axis, first, count, 0), shape=shape)
        if dropped:
            result = result.reshape(tuple(d for k, d in enumerate(result.shape) if k not in dropped) or (1,))
        return result


def _as_shape(shape: tuple) -> tuple[int, ...]:
    if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
        shape = tuple(shape[0])
    if not all(isinstance(d, (int, np.integer)) for d in shape):
        raise EditError(f"{shape} is no shape.")
    return tuple(int(d) for d in shape)


def _slice_of(part, length: int) -> tuple[int, int]:
    """First index and count of a slice or integer on an axis of the given length."""
    if isinstance(part, int) and not isinstance(part, bool):
        if not -length <= part < length:
            raise EditError(f"Index {part} is out of range for an axis of length {length}.")
        return part % length, 1
    if isinstance(part, slice):
        first, last, step = part.indices(length)
        if step != 1 or last <= first:
            raise EditError(f"{part} on an axis of length {length}: only slices with step 1 that are not empty.")
        return first, last - first
    raise EditError(f"{part!r} cannot index a graph tensor; use integers and slices.")
