"""Ablation and activation patching: edits that take their values from other runs."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np

from .edits import Change, Edit, replaced
from .errors import EditError, SiteError
from .graph import Tensor, as_float32
from .run import Run
from .sites import Site, at
from .trace import Place

_MODES = ("zero", "mean", "resample")


def ablate(
    heads=(), site: str = "z", mode: str = "zero", mean=None, source=None, positions=None, layers=(),
) -> Edit:
    """Take heads, or a site's whole layers, out of the computation.

    Methods: zero and mean ablation as in Michel et al. (arXiv:1905.10650) and Wang et al. (arXiv:2211.00593); resample
    ablation as in Chan et al., "Causal Scrubbing" (2022).

    Args:
        heads: pairs ``(layer, head)``; negative ones count from the end. An empty list changes nothing.
        site: a site with heads: ``"z"`` (what a head hands to the output projection), ``"attn_scores"``, ``"q"``, …
        mode: ``"zero"``; ``"mean"``: the head's mean, always the same; ``"resample"``: what the head did in another run
            at the same position.
        mean: for ``"mean"``: an array ``(n_layer, n_head, d_head)`` or, for all layers the same, ``(n_head, d_head)``,
            of sites without heads ``(n_layer, n_embd)`` or ``(n_embd,)``; a :class:`Run` that captured the site (its
            mean over tokens); or :class:`Stats` of the site.
        source: for ``"resample"``: a :class:`Run` that captured the site, of as many tokens as the prompt.
        positions: as in :func:`interp.at`; None: prompt and generation alike. Resampling ends with the prompt.
        layers: one layer or several, of which all is taken out; of any site, such as ``"mlp_out"``.

    Raises:
        EditError: an unknown mode, or values that are missing or have another shape.
        SiteError: heads that are no pairs. In a run: a layer or head that does not exist.
    """
    if mode not in _MODES:
        raise EditError(f"mode={mode!r}: give one of {', '.join(_MODES)}.")
    if mode == "mean" and mean is None:
        raise EditError('mode="mean" needs mean=: an array, a run that captured the site, or interp.stats of it.')
    if mode == "resample" and not isinstance(source, Run):
        raise EditError('mode="resample" needs source=: a run of another prompt that captured the site.')
    changes = []
    whole = {_index(layer, "layer"): None for layer in _several(layers)}
    for layer, chosen in (_by_layer(heads) | whole).items():
        selector = at(site, layers=layer, heads=chosen, positions=positions)
        if mode == "zero":
            build = _zeros
        elif mode == "mean":
            build = _mean_of(site, mean)
        else:
            build = _rows_of(site, layer, source, None)
        changes.append(Change(selector, build))
    return Edit(f"{mode} ablation", tuple(changes))


def keep_only(layer: int, head: int, site: str = "z") -> Edit:
    """Zero every head of a layer but one.

    Raises:
        SiteError: in a run: a layer or head that does not exist.
    """
    head = _index(head, "head")

    def build(x: Tensor, place: Place) -> Tensor:
        n_head = place.site.n_head
        if n_head is None:
            raise SiteError(f"{place.site.key} has axes {place.site.axes}, no heads. Sites with heads: z, q, k, v, attn_scores.")
        if not -n_head <= head < n_head:
            raise SiteError(f"Head {head} is out of range: layer {place.site.layer} has heads 0 to {n_head - 1}.")
        kept = np.zeros([n_head if axis == place.site.head_axis else 1 for axis in range(x.ndim)], np.float32)
        kept.reshape(-1)[head] = 1.0
        return x * kept

    return Edit("keep_only", (Change(at(site, layers=_index(layer, "layer")), build),))


def patch(site: str, layer: int, source, positions=None, from_positions=None, heads=None) -> Edit:
    """Put what a site held in another run in the place of what it holds in this one.

    Method: activation patching (causal tracing, interchange intervention), Vig et al. (arXiv:2004.12265) and Meng et
    al. (arXiv:2202.05262). A run's own values change no bit of its logits, with one exception: an edit of
    ``attn_scores`` takes its layer off flash attention, which rounds otherwise.

    Args:
        site: any site that can be edited.
        layer: its layer.
        source: a :class:`Run` that captured the site at that layer, or an array in the site's axes.
        positions: where to in this run's prompt, as in :func:`interp.at`; None: every position of the prompt.
        from_positions: the positions of the source that go there, in the same order; None: the same ones.
        heads: only these heads; None: all.

    Raises:
        EditError: positions that do not match, values of another shape.
        SiteError: the source does not hold the site. In a run: a position or head out of range.
    """
    layer = _index(layer, "layer")
    if from_positions is not None:
        if positions is None:
            raise EditError("from_positions says where from; say where to as well: positions=[...].")
        from_positions = tuple(_index(p, "position") for p in _several(from_positions))
    if isinstance(source, Run):
        source[site, layer]  # a missing capture is an error here, not in the middle of a run
    else:
        source = as_float32(source)
    build = _rows_of(site, layer, source, from_positions)
    return Edit("patch", (Change(at(site, layers=layer, heads=heads, positions=positions), build),))


# // where the values come from


def _zeros(x: Tensor, _place: Place) -> Tensor:
    return x.filled(0.0)


def _mean_of(site: str, mean):
    def build(x: Tensor, place: Place) -> Tensor:
        value, row_axis = mean_value(site, mean, place.site, x.ndim), place.row_axis
        given = value.shape
        value = place.padded(np.expand_dims(value, row_axis), x) if value.ndim == x.ndim - 1 else value
        if value.shape != tuple(1 if axis == row_axis else d for axis, d in enumerate(x.shape)):
            wanted = tuple(d for axis, d in enumerate(x.shape) if axis != row_axis)
            raise EditError(f"The mean at {place.site.key} has shape {given}; it must be {wanted}.")
        return x.filled(value)

    return build


def mean_value(site: str, mean, tensor: Site, n_axes: int) -> np.ndarray:
    """What mean ablation puts into a tensor of ``n_axes`` axes, without its token axis; the shape is not checked."""
    layer = tensor.layer
    if isinstance(mean, Run):
        return mean[site, layer].mean(axis=1 if tensor.is_attention else 0)
    if hasattr(mean, "mean_square"):  # Stats
        return as_float32(mean.mean(site, layer))
    value = as_float32(mean)
    if value.ndim == n_axes:
        if layer >= len(value):
            raise EditError(f"mean= holds {len(value)} layers, but layer {layer} is ablated.")
        value = value[layer]
    return value


def _rows_of(site: str, layer: int, source, from_positions: tuple[int, ...] | None):
    """Rows of a run or an array for the chosen positions."""

    def build(x: Tensor, place: Place) -> Tensor:
        value, held = _values(site, layer, source, place)
        n_rows = value.shape[place.row_axis]
        wanted = from_positions if from_positions is not None else place.positions
        if wanted is not None:
            n_source = len(source.tokens) if isinstance(source, Run) and source.tokens else n_rows
            value = np.take(value, _find(wanted, held, n_source, place), axis=place.row_axis)
        elif not place.ranges and (held or list(range(n_rows))) != list(range(place.n_prompt)):
            raise EditError(
                f"The source holds {n_rows} positions of {place.site.key}, the prompt has {place.n_prompt} tokens. "
                "Say which go where: positions=[...], from_positions=[...]."
            )
        return replaced(x, value, place)

    return build


def _values(site: str, layer: int, source, place: Place) -> tuple[np.ndarray, list[int] | None]:
    """The source's array with all heads of the site, and the positions that its rows are of; None: not known."""
    value, held, held_heads = source, None, None
    if isinstance(source, Run):
        value, held, held_heads = source[site, layer], source.positions(site, layer), source.heads(site, layer)
    if value.ndim != len(place.site.axes):
        raise EditError(f"The source has shape {value.shape}; {place.site.key} has axes {place.site.axes}.")
    axis = place.site.head_axis
    if axis is None or value.shape[axis] == place.site.n_head:
        return value, held
    given = held_heads if held_heads is not None else place.heads
    if place.heads is None or given is None or not set(place.heads) <= set(given) or len(given) != value.shape[axis]:
        raise EditError(
            f"The source holds {value.shape[axis]} of the {place.site.n_head} heads of {place.site.key}: "
            "choose those with heads=[...]."
        )
    full = np.zeros([place.site.n_head if k == axis else d for k, d in enumerate(value.shape)], np.float32)
    np.moveaxis(full, axis, 0)[list(given)] = np.moveaxis(value, axis, 0)
    return full, held


def _find(wanted: Iterable[int], held: list[int] | None, n_source: int, place: Place) -> list[int]:
    """The rows of the source that hold the wanted positions."""
    rows = []
    for position in wanted:
        if not -n_source <= position < n_source:
            raise SiteError(f"Position {position} is out of range: the source has {n_source} positions.")
        position %= n_source
        if held is not None and position not in held:
            raise SiteError(f"The source did not capture {place.site.key} at position {position}; it holds {held}.")
        rows.append(position if held is None else held.index(position))
    return rows


def _by_layer(heads) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    try:
        for layer, head in heads:
            found.setdefault(_index(layer, "layer"), []).append(_index(head, "head"))
    except (TypeError, ValueError):
        raise SiteError(f"heads={heads!r}: give pairs, [(layer, head), …].") from None
    return found


def _index(value, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise SiteError(f"{what}={value!r}: give an integer.") from None


def _several(value) -> Iterable:
    return value if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
