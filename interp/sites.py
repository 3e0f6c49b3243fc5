"""Site names, aliases, selectors and axes.

A *site* is a named tensor of llama.cpp's graph: a name, a layer, and an occurrence, because many names come several
times in a layer. Aliases give the same role one name on every architecture; TransformerLens' names work too
(:mod:`interp.aliases`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .aliases import ALIASES, ATTN_LOGITS, ATTN_SCORES, HOOKS, OF_ATTENTION, ROLES, parse, resolve, why_without_tensor
from .errors import SiteError

# what other modules take from here
__all__ = [
    "ALIASES", "ATTENTION", "ATTN_LOGITS", "ATTN_SCORES", "At", "Key", "Site", "SiteTable", "as_at", "at", "parse"
]

ATTENTION = (ATTN_SCORES, ATTN_LOGITS)


@dataclass(frozen=True)
class Key:
    """One tensor of the graph: ``name``, ``layer`` (-1: outside of the layers), ``occurrence``."""

    name: str
    layer: int
    occurrence: int

    def __str__(self) -> str:
        return f"{self.name}{f'-{self.layer}' if self.layer >= 0 else ''}#{self.occurrence}"


@dataclass(frozen=True)
class Site:
    """A named tensor of the model's graph.

    Attributes:
        name: the graph's own name, without the layer.
        layer: from 0; -1 outside of the layers.
        axes: what each axis counts, tokens first (attention: heads first).
        shape: the length of each axis; None where it follows the prompt.
        occurrence: counts tensors of the same name and layer, in graph order.
        n_occurrences: how many there are.
        dtype: ``"float32"`` or ``"int32"``.
        editable: False for inputs of the graph and for numbers that are not floats.
    """

    name: str
    layer: int
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    occurrence: int
    n_occurrences: int
    dtype: str = "float32"
    editable: bool = True
    rows_axis: int = field(default=-1, repr=False)  # ggml's dimension that counts tokens
    n_heads: int = field(default=0, repr=False)  # heads to split a row into that is flat in ggml

    @property
    def key(self) -> Key:
        return Key(self.name, self.layer, self.occurrence)

    @property
    def is_attention(self) -> bool:
        return self.name in ATTENTION

    @property
    def head_axis(self) -> int | None:
        """Which of :attr:`axes` counts heads."""
        return self.axes.index("n_head") if "n_head" in self.axes else None

    @property
    def n_head(self) -> int | None:
        return None if self.head_axis is None else self.shape[self.head_axis]


@dataclass(frozen=True)
class Part:
    """What an array holds of a site.

    Attributes:
        axes: what each axis counts.
        heads: the heads along ``n_head``, ascending; None: all.
        positions: the tokens along ``n_tokens`` or ``n_query``, ascending; None: all.
    """

    axes: tuple[str, ...]
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    @property
    def head_axis(self) -> int | None:
        return self.axes.index("n_head") if "n_head" in self.axes else None

    @property
    def token_axis(self) -> int | None:
        return next((i for i, axis in enumerate(self.axes) if axis in ("n_tokens", "n_query")), None)


@dataclass(frozen=True)
class At:
    """A selector: which tensor, and which part of it. Made by :func:`at`."""

    site: str
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | str | None = None
    queries: tuple[int, ...] | str | None = None

    @property
    def rows(self) -> tuple[int, ...] | str | None:
        """Chosen token rows: the queries of attention are rows too."""
        return self.queries if self.queries is not None else self.positions


def _as_ints(value, what: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    values = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, Iterable) else None
    if values is None or isinstance(value, str) or not all(hasattr(v, "__index__") and not isinstance(v, bool) for v in values):
        raise SiteError(f"{what}={value!r}: give an integer, a list of integers, or None for all.")
    if not values:
        raise SiteError(f"{what} is empty: give at least one, or None for all.")
    return tuple(int(v) for v in values)


def _as_rows(value, what: str) -> tuple[int, ...] | str | None:
    if isinstance(value, str):
        if value not in ("last", "generated"):
            raise SiteError(f'{what}={value!r}: give integers, "last", "generated", or None for all.')
        return value
    return _as_ints(value, what)


def at(site: str, layers=None, heads=None, positions=None, queries=None) -> At:
    """Select a site, or a part of it.

    Args:
        site: a name of :meth:`Model.sites <interp.Model.sites>`, with or without ``-layer`` and ``#occurrence``, an
            alias (``resid_post``, ``z``, …) or a TransformerLens name. A plain string can stand for a selector.
        layers: one layer or several; negative ones count from the end; None: all that have the site.
        heads: attention heads; for sites with a head axis.
        positions: token positions; negative ones count from the end of the prompt; ``"last"``: the last of the
            prompt; ``"generated"``: all after the prompt; None: all. Whatever the order given, what is read comes
            in ascending order, heads too. Under :meth:`interp.Model.prefix` positions count from the first token
            after the prefix.
        queries: the same for the query axis of attention; another name for ``positions``.

    Raises:
        SiteError: an argument of the wrong kind.
    """
    if not isinstance(site, str) or not site:
        raise SiteError(f"A site is a name like 'l_out' or 'blocks.5.attn.hook_pattern', not {site!r}.")
    rows, asked = _as_rows(positions, "positions"), _as_rows(queries, "queries")
    if rows is not None and asked is not None:
        raise SiteError("positions and queries mean the same axis: give one of them.")
    return At(site, _as_ints(layers, "layers"), _as_ints(heads, "heads"), rows, asked)


def as_at(selector) -> At:
    """A selector from a string, an :class:`At`, or a pair ``(site, layer)``."""
    if isinstance(selector, At):
        return selector
    if isinstance(selector, tuple) and len(selector) == 2 and isinstance(selector[0], str):
        return at(selector[0], layers=selector[1])
    return at(selector)


class SiteTable:
    """All sites of a model, and what the names that users write mean there."""

    def __init__(self, sites: Sequence[Site], arch: str, n_layer: int, n_embd: int):
        self.sites, self.arch, self.n_layer = list(sites), arch, n_layer
        self._by_key = {site.key: site for site in self.sites}
        self._count: dict[tuple[str, int], int] = {}
        self._by_layer: dict[int, list[Site]] = {}
        for site in self.sites:
            self._count[site.name, site.layer] = max(self._count.get((site.name, site.layer), 0), site.occurrence + 1)
            self._by_layer.setdefault(site.layer, []).append(site)
        self._names = {site.name for site in self.sites}
        self._order = {site.key: i for i, site in enumerate(self.sites)}
        self._end_of_layers = max((i for i, site in enumerate(self.sites) if site.layer >= 0), default=-1)
        self._place, self._inside = self._find_places()
        self._layered = {name for name, layer in (*self._count, *self._inside) if layer >= 0}
        self.embedding = self._find_embedding(n_embd)
        self._labels: dict[Key, list[tuple[str, int]]] = {}

    def __getitem__(self, key: Key) -> Site:
        return self._by_key[key]

    def _find_places(self) -> tuple[dict[Key, int], dict[tuple[str, int], Site]]:
        """The layer in which each site lies, and the sites that lie in one although they carry the layer -1."""
        place: dict[Key, int] = {}
        inside: dict[tuple[str, int], Site] = {}
        first, current = next((i for i, site in enumerate(self.sites) if site.layer >= 0), 0), 0
        for i, site in enumerate(self.sites):
            current = site.layer if site.layer >= 0 else self.n_layer - 1 if i > self._end_of_layers else current
            place[site.key] = current
            if site.layer < 0 and first < i < self._end_of_layers:
                inside[site.name, current] = site
        return place, inside

    def _find_embedding(self, n_embd: int) -> Site | None:
        """What enters layer 0: the last tensor of the residual's width before the first layer."""
        found = None
        for site in self.sites:
            if site.layer >= 0:
                break
            if site.dtype == "float32" and site.editable and site.shape == (None, n_embd):
                found = site
        # the norm behind the embeddings is named as a part of layer 0
        return self._by_key.get(Key("inp_norm", 0, 0), found)

    def find(self, text: str, layer: int | None = None) -> list[Site]:
        """The sites that a name means: one in each layer that has it, in order; at most one if a layer is given.

        Raises:
            SiteError: no such name (the nearest ones are listed), layer or occurrence.
        """
        name, named_layer, occurrence = parse(text)
        if layer is not None and named_layer is not None and self.layer_index(layer) != named_layer:
            raise SiteError(f"{text!r} names layer {named_layer}, but layer {layer} was asked for.")
        layer = named_layer if layer is None else layer

        if name not in self._names and name not in ROLES:
            raise SiteError(self._unknown(text, name))
        layers = range(-1, self.n_layer) if layer is None else [self.layer_index(layer, text)]
        found = [site for il in layers if (site := self._in_layer(name, il, occurrence))]
        if not found and layer is not None and name not in self._layered:
            found = [site for site in [self._in_layer(name, -1, occurrence)] if site]
        if not found:
            raise SiteError(self._absent(text, name, layer, occurrence))
        return found

    def place(self, key: Key) -> int:
        """The layer with which a tensor is computed: the first for what comes before the layers, the last for what
        comes after them."""
        return self._place[key]

    def is_after_layers(self, key: Key) -> bool:
        """Whether a tensor comes after the last one of the last layer, as the final norm does."""
        return self._order[key] > self._end_of_layers

    def has(self, name: str, layer: int) -> bool:
        """Whether the graph names such a tensor in that layer."""
        return (name, layer) in self._count

    def in_layer(self, layer: int) -> list[Site]:
        """The sites that carry a layer, in graph order."""
        return self._by_layer.get(layer, [])

    def named(self, name: str, layer: int, occurrence: int | None = None) -> Site | None:
        """A site by the graph's own name; without an occurrence, the last.

        A few norms carry the layer -1 inside a layer (Gemma 2's ``ffn_post_norm``): they count as that layer's.
        """
        count = self._count.get((name, layer), 0)
        if occurrence is not None:
            return self._by_key.get(Key(name, layer, occurrence))
        if not count:
            return self._inside.get((name, layer))
        last = self._by_key.get(Key(name, layer, count - 1))
        return None if last is not None and self._inside.get((name, self._place[last.key])) is last else last

    def layer_index(self, layer: int, text: str = "") -> int:
        """A layer from 0, negative ones counted from the end."""
        if not -self.n_layer <= layer < self.n_layer:
            where = f" of {text!r}" if text else ""
            raise SiteError(f"Layer {layer}{where} is out of range: the model has layers 0 to {self.n_layer - 1}.")
        return layer % self.n_layer

    def _in_layer(self, name: str, layer: int, occurrence: int | None) -> Site | None:
        # an alias hides a graph's name that is spelled the same, unless an occurrence is asked for
        if name in ROLES and occurrence is None:
            return resolve(self, name, layer)
        return self.named(name, layer, occurrence)

    def labels(self, key: Key) -> list[tuple[str, int]]:
        """Every (name, layer) under which a tensor can be asked for."""
        if not self._labels:
            self._labels = self._find_labels()
        return self._labels[key]

    def _find_labels(self) -> dict[Key, list[tuple[str, int]]]:
        found = {site.key: [(f"{site.name}#{site.occurrence}", site.layer)] for site in self.sites}
        layers = range(-1, self.n_layer)
        for name, layer in {*self._count, *self._inside}:
            site = self.named(name, layer) if name not in ROLES else None
            if site:
                found[site.key].append((name, layer))
        for role in ROLES:
            for layer in layers:
                site = resolve(self, role, layer)
                if site:
                    found[site.key].append((role, layer))
        return found

    def _has_attention(self, layer: int | None = None) -> bool:
        sites = self.sites if layer is None else self.in_layer(layer)
        return any(site.is_attention or site.name.startswith("Qcur") for site in sites)

    def _unknown(self, text: str, name: str) -> str:
        if name in OF_ATTENTION and not self._has_attention():
            return f"The architecture {self.arch} has no attention, so no {text!r}. What it has: model.sites()"
        reason = why_without_tensor(text)
        if reason:
            return f"The graph has no tensor for TransformerLens' {text!r}: {reason}."
        known = sorted(self._names | {*ALIASES, *HOOKS})
        lowered = {k.lower(): k for k in known}
        near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=4, cutoff=0.5)]
        hint = f"The nearest: {', '.join(near)}." if near else f"Aliases: {', '.join(ALIASES)}."
        return f"This {self.arch} model has no site {text!r}. {hint} All of them: model.sites()"

    def _absent(self, text: str, name: str, layer: int | None, occurrence: int | None) -> str:
        if name in ROLES and occurrence is None:  # a graph's own name may be spelled the same
            layers = [il for il in range(self.n_layer) if resolve(self, name, il)]
        else:
            layers = sorted({site.layer for site in self.sites if site.name == name and site.layer >= 0})
        if name in OF_ATTENTION and not self._has_attention(layer):
            if not layers:
                return self._unknown(text, name)
            return f"Layer {layer} has no attention, so no {text!r}; layers that have it: {', '.join(map(str, layers))}."
        if name in ROLES and not layers:
            where = f" in layer {layer}" if layer is not None else ""
            return f"The architecture {self.arch} names no tensor for {text!r}{where}. What it names: model.sites()"
        if occurrence is not None:
            return f"{name!r} has no occurrence #{occurrence}; model.sites() lists them."
        return f"Layer {layer} has no {name!r}; layers that have it: {', '.join(map(str, layers)) or 'none'}."
