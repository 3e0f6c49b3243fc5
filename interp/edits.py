"""Edits: what a run changes. Each is a selector and a function of the tensor found there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .errors import EditError
from .graph import Tensor, as_float32
from .sites import At, as_at, at
from .trace import Place, row_ranges

#: from the tensor found at a place, in the site's axes, to one of the same shape
Build = Callable[[Tensor, Place], Tensor]

#: added to the logit of an edge that is cut. A masked key holds -1e30: smaller, so that a query whose every other key
#: is masked does not spread its attention over what it must not see
CUT = -1e20


@dataclass(frozen=True)
class Change:
    """What an edit does at one selector; heads and positions limit what the function's result replaces."""

    at: At
    build: Build


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one or several sites, traced into the graph. Made by :func:`edit` and its kin.

    Attributes:
        name: what it is, for messages.
        changes: where, and what.
    """

    name: str
    changes: tuple[Change, ...]

    def __repr__(self) -> str:
        where = [f"{change.at.site}{list(change.at.layers) if change.at.layers else ''}" for change in self.changes]
        return f"<{self.name} at {', '.join(where[:4])}{', …' if len(where) > 4 else ''}>"


def _edit(name: str, selector, build: Build) -> Edit:
    return Edit(name, (Change(as_at(selector), build),))


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
    _check_callable(fn)
    return _edit(getattr(fn, "__name__", "edit"), at, lambda x, _place: fn(x))


def edit_host(at, fn: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Replace what a site holds by a Python function of its values, called on the host at every step.

    Anything that numpy can do, at the price of a stop in every batch of tokens: the values are copied to the host,
    and the model waits. Where the expressions of :func:`edit` suffice, they are many times faster.

    Args:
        at: a selector or a site's name.
        fn: takes a float32 array in the site's axes, the tokens of this batch, and returns one of the same shape. Of
            attention the key axis is padded to the size of the cache.

    Raises:
        EditError: ``fn`` cannot be called. In a run: it raised, or returned another shape.
    """
    _check_callable(fn)
    return _edit(getattr(fn, "__name__", "edit_host"), at, lambda x, place: place.trace.host(x, fn))


def _check_callable(fn) -> None:
    if not callable(fn):
        raise EditError(f"An edit needs a function of the tensor, not {type(fn).__name__}.")


def scale(at, factor) -> Edit:
    """Multiply a site by a number or an array; 0 ablates it.

    Args:
        at: a selector or a site's name.
        factor: broadcasts over the site's axes. With as many rows on the token axis as positions are chosen (all: as
            the prompt has tokens), each row is for its position.
    """
    factor = _as_value(factor)

    def build(x: Tensor, place: Place) -> Tensor:
        if not place.has_rows(factor):
            return x * _operand(factor)
        mask = place.row_mask(place.row_positions(factor.shape[place.row_axis]), x)
        return x * (1.0 - mask) + x * place.rows(factor, x)

    return _edit("scale", at, build)


def add(at, value) -> Edit:
    """Add a number or an array to a site; ``value`` as ``factor`` of :func:`scale`."""
    value = _as_value(value)
    return _edit("add", at, lambda x, place: x + (place.rows(value, x) if place.has_rows(value) else _operand(value)))


def replace(at, value) -> Edit:
    """Put a number or an array in the place of what a site holds; ``value`` as ``factor`` of :func:`scale`."""
    value = _as_value(value)
    return _edit("replace", at, lambda x, place: replaced(x, value, place))


def replaced(x: Tensor, value: np.ndarray, place: Place) -> Tensor:
    """``value`` where it has rows for the tokens of ``x``, else ``x``."""
    if not place.has_rows(value):
        return x.filled(place.padded(value, x))
    rows = place.rows(value, x)
    if place.ranges:  # whoever called blends with these
        return rows
    return x * (1.0 - place.row_mask(place.row_positions(value.shape[place.row_axis]), x)) + rows


def _as_value(value) -> np.ndarray:
    value = as_float32(value)
    if value.size == 0:
        raise EditError(f"A value of shape {value.shape} is empty.")
    return value


def _operand(value: np.ndarray):
    """A number where it is one: no constant need be uploaded."""
    return float(value) if value.ndim == 0 else value


# // steering


def steer(site: str, layer, vector, coef: float = 1.0, positions=None) -> Edit:
    """Add a direction to a site: activation addition.

    Method: Turner et al., "Steering Language Models With Activation Engineering" (arXiv:2308.10248).

    Args:
        site: mostly ``resid_post`` or ``resid_pre``.
        layer: one layer or several.
        vector: ``(n_embd,)``, or a row for each position.
        coef: the vector is multiplied by it; negative ones steer away.
        positions: as in :func:`interp.at`; ``"generated"`` spares the prompt.
    """
    return Edit("steer", add(at(site, layers=layer, positions=positions), _number(coef, "coef") * _as_value(vector)).changes)


def project_out(site: str, layers, direction, positions=None) -> Edit:
    """Remove a direction from a site, so that nothing after it can read what lies along it: directional ablation.

    Method: Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction" (arXiv:2406.11717).

    Args:
        site: a site whose last axis is as wide as the direction.
        layers: one layer or several; None: all.
        direction: ``(width,)`` of any length but zero, or ``(k, width)``: the whole subspace is removed.
        positions: as in :func:`interp.at`; None: all.

    Raises:
        EditError: a direction of length zero, or directions that depend on each other.
    """
    rows = np.atleast_2d(_as_value(direction)).astype(np.float64)
    if rows.ndim != 2 or np.linalg.matrix_rank(rows) < len(rows):
        raise EditError(f"directions of shape {rows.shape} must be independent and not zero")
    basis = np.linalg.qr(rows.T)[0].astype(np.float32)  # (width, k), orthonormal
    back = np.ascontiguousarray(basis.T)

    def build(x: Tensor, place: Place) -> Tensor:
        if x.shape[-1] != len(basis):
            raise EditError(f"A direction of width {len(basis)} cannot be removed from {place.site.key}, {x.shape[-1]} wide.")
        return x - (x @ basis) @ back

    return _edit("project_out", at(site, layers=layers, positions=positions), build)


def _number(value, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise EditError(f"{name}={value!r}: give a number.")
    return float(value)


# // attention


def knockout(layers, queries, keys, heads=None) -> Edit:
    """Cut edges of attention: these queries no longer see these keys. The rest of each row is renormalised.

    Method: Geva et al., "Dissecting Recall of Factual Associations" (arXiv:2304.14767), attention knockout.

    Args:
        layers: one layer or several; None: all.
        queries: positions that look, as in :func:`interp.at`.
        keys: positions looked at, likewise. Under :meth:`interp.Model.prefix` they count, as all positions do, from
            the first token after the prefix, whose own keys cannot be cut.
        heads: the heads concerned; None: all.

    Raises:
        EditError: a query would see nothing at all.
    """
    selector = at("attn_logits", layers=layers, heads=heads, queries=queries)
    chosen = at("attn_logits", queries=keys).rows
    if chosen is None:
        raise EditError("keys=None would leave no edge at all. Name the keys; to silence heads use interp.ablate.")

    def build(x: Tensor, place: Place) -> Tensor:
        ranges = row_ranges(chosen, place.n_prompt)
        _check_edges(place, ranges)
        return x + place.trace.key_mask(ranges) * CUT

    return _edit("knockout", selector, build)


def _check_edges(place: Place, cut: Iterable[tuple[int, int]]) -> None:
    if place.trace.offset:  # the keys of the prefix stay
        return
    keys = {p for lo, hi in cut for p in range(lo, min(hi, place.n_prompt))}
    queries = place.positions if place.positions is not None else () if place.ranges else range(place.n_prompt)
    check_edges(queries, keys)


def check_edges(queries: Iterable[int], keys: Iterable[int]) -> None:
    """
    Raises:
        EditError: one of the queries would see none but these keys.
    """
    cut = set(keys)
    blind = [q for q in queries if cut.issuperset(range(q + 1))]
    if blind:
        raise EditError(
            f"The knockout leaves query {blind[0]} no key to look at: it sees only keys 0 to {blind[0]}. "
            "Leave it out of queries."
        )
