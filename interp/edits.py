"""Edits: what a run changes. Each is a selector and a function of the tensor found there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .errors import EditError
from .graph import Tensor, as_float32
from .sites import At, as_at


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a site, traced into the graph. Made by :func:`edit` and its kin.

    Attributes:
        at: where; heads and positions limit what the function's result replaces.
        fn: from the tensor found there, in the site's axes, to one of the same shape.
        name: for error messages.
    """

    at: At
    fn: Callable[[Tensor], Tensor]
    name: str = "edit"


def edit(at, fn: Callable[[Tensor], Tensor]) -> Edit:
    """Replace what a site holds by a function of it.

    The function is called while the graph is built, once for each layer selected, and what it returns is compiled
    into the graph: ``interp.edit("l_out-10", lambda x: x + 4.0 * v)``. With heads or positions selected, the result
    counts only there. The token axis is the batch's: write nothing into the function that depends on its length.

    Args:
        at: a selector or a site's name.
        fn: takes and returns an :class:`interp.Tensor` of the same shape.

    Raises:
        EditError: ``fn`` cannot be called.
    """
    if not callable(fn):
        raise EditError(f"An edit needs a function of the tensor, not {type(fn).__name__}.")
    return Edit(as_at(at), fn, getattr(fn, "__name__", "edit"))


def scale(at, factor: float) -> Edit:
    """Multiply a site by a number or an array that broadcasts over its axes; 0 ablates it."""
    return Edit(as_at(at), lambda x: x * factor, "scale")


def add(at, value) -> Edit:
    """Add a number or an array that broadcasts over the site's axes."""
    return Edit(as_at(at), lambda x: x + value, "add")


def replace(at, value) -> Edit:
    """Put a number or an array that broadcasts over the site's axes in its place."""
    value = as_float32(value)
    return Edit(as_at(at), lambda x: x.filled(value), "replace")
