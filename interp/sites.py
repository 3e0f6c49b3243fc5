"""Site names, aliases, selectors and axes.

A *site* is a named tensor of llama.cpp's graph: a name, a layer, and an occurrence, because many names come several
times in a layer. Aliases give the same role one name on every architecture; TransformerLens' names work too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from .errors import SiteError

ATTN_SCORES, ATTN_LOGITS, ATTN_PROJ = "attn_scores", "attn_logits", "attn_proj"
ATTENTION = (ATTN_SCORES, ATTN_LOGITS)

_PARSE = re.compile(r"^(?P<name>.+?)(?:-(?P<layer>\d+))?(?:#(?P<occurrence>\d+))?$")
_TRANSFORMER_LENS = re.compile(r"^blocks\.(?P<layer>\d+)\.(?P<hook>.+)$")

#: alias -> candidates, the first that the layer has wins; ``#k`` picks an occurrence, no ``#`` the last
_ALIASES: dict[str, tuple[str, ...]] = {
    "resid_mid": ("ffn_inp", "sa_out", "attn_residual"),
    "resid_post": ("l_out",),
    "q": ("Qcur",),
    "k": ("Kcur",),
    "v": ("Vcur",),
    "z": ("attn_gated", "kqv_out"),
    "attn_out": (ATTN_PROJ, "attn_output", "attn_out"),
    "mlp_in": ("ffn_norm", "attn_post_norm"),
    "mlp_act": ("ffn_swiglu", "ffn_geglu", "ffn_gelu", "ffn_silu", "ffn_relu", "ffn_reglu", "ffn_moe_swiglu", "ffn_moe_geglu"),
    "mlp_out": ("ffn_moe_out#0", "ffn_out#0"),
    "final_norm": ("result_norm",),
}

#: where ``mlp_in`` is another tensor than the first candidate of the table above
_MLP_IN_BY_ARCH = {"falcon": "attn_norm", "command-r": "attn_norm", "cohere2": "attn_norm", "olmo2": "ffn_inp"}

#: tensors that carry the wrong name: replacing jamba's ``ffn_inp`` does nothing
_NOT_RESID_MID = {"jamba"}

_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_in": "mlp_in",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_pattern": ATTN_SCORES,
    "attn.hook_attn_scores": ATTN_LOGITS,
    "mlp.hook_post": "mlp_act",
}

_GLOBAL_HOOKS = {"hook_embed": "embd", "ln_final.hook_normalized": "final_norm"}

ALIASES = ("resid_pre", *_ALIASES, "q_pre", "k_pre")


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
    n_heads: int = field(default=0, repr=False)  # kqv_out is flat in ggml: heads to split it into

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


def parse(text: str) -> tuple[str, int | None, int | None]:
    """``"Qcur-5#0"`` as ``("Qcur", 5, 0)``; TransformerLens' names become aliases."""
    if text in _GLOBAL_HOOKS:
        return _GLOBAL_HOOKS[text], None, None
    lens = _TRANSFORMER_LENS.match(text)
    if lens and lens["hook"] in _HOOKS:
        return _HOOKS[lens["hook"]], int(lens["layer"]), None
    match = _PARSE.match(text)
    name, layer, occurrence = match["name"], match["layer"], match["occurrence"]
    return name, None if layer is None else int(layer), None if occurrence is None else int(occurrence)


class SiteTable:
    """All sites of a model, and what the names that users write mean there."""

    def __init__(self, sites: Sequence[Site], arch: str, n_layer: int, n_embd: int):
        self.sites, self.arch, self.n_layer = list(sites), arch, n_layer
        self._by_key = {site.key: site for site in self.sites}
        self._count: dict[tuple[str, int], int] = {}
        for site in self.sites:
            self._count[site.name, site.layer] = max(self._count.get((site.name, site.layer), 0), site.occurrence + 1)
        self._names = {site.name for site in self.sites}
        self._order = {site.key: i for i, site in enumerate(self.sites)}
        self._end_of_layers = max((i for i, site in enumerate(self.sites) if site.layer >= 0), default=-1)
        self._embedding = self._find_embedding(n_embd)
        self._labels: dict[Key, list[tuple[str, int]]] = {}

    def __getitem__(self, key: Key) -> Site:
        return self._by_key[key]

    def _find_embedding(self, n_embd: int) -> Key | None:
        """What enters layer 0: the last tensor of the residual's width before the first layer."""
        found = None
        for site in self.sites:
            if site.layer >= 0:
                break
            if site.dtype == "float32" and site.editable and site.shape == (None, n_embd):
                found = site.key
        return found

    def find(self, text: str, layer: int | None = None) -> list[Site]:
        """The sites that a name means: one in each layer that has it, in order; at most one if a layer is given.

        Raises:
            SiteError: no such name (the nearest ones are listed), layer or occurrence.
        """
        name, named_layer, occurrence = parse(text)
        if layer is not None and named_layer is not None and self.layer_index(layer) != named_layer:
            raise SiteError(f"{text!r} names layer {named_layer}, but layer {layer} was asked for.")
        layer = named_layer if layer is None else layer

        if name not in self._names and name not in ALIASES:
            raise SiteError(self._unknown(text, name))
        layers = range(-1, self.n_layer) if layer is None else [self.layer_index(layer, text)]
        found = [site for il in layers for site in self._in_layer(name, il, occurrence)]
        if not found and layer is not None:
            found = self._in_layer(name, -1, occurrence)
        if not found:
            raise SiteError(self._absent(name, layer, occurrence))
        return found

    def is_after_layers(self, key: Key) -> bool:
        """Whether a tensor comes after the last one of the last layer, as the final norm does."""
        return self._order[key] > self._end_of_layers

    def has(self, name: str, layer: int) -> bool:
        """Whether the graph names such a tensor in that layer."""
        return (name, layer) in self._count

    def layer_index(self, layer: int, text: str = "") -> int:
        """A layer from 0, negative ones counted from the end."""
        if not -self.n_layer <= layer < self.n_layer:
            where = f" of {text!r}" if text else ""
            raise SiteError(f"Layer {layer}{where} is out of range: the model has layers 0 to {self.n_layer - 1}.")
        return layer % self.n_layer

    def _in_layer(self, name: str, layer: int, occurrence: int | None) -> list[Site]:
        # an alias hides a graph's name that is spelled the same, unless an occurrence is asked for
        if name in ALIASES and occurrence is None:
            key = self._alias(name, layer)
            return [self._by_key[key]] if key else []
        return self._candidate(name, layer, occurrence)

    def _candidate(self, name: str, layer: int, occurrence: int | None) -> list[Site]:
        count = self._count.get((name, layer), 0)
        wanted = count - 1 if occurrence is None else occurrence
        site = self._by_key.get(Key(name, layer, wanted)) if count else None
        return [site] if site else []

    def _alias(self, alias: str, layer: int) -> Key | None:
        if alias == "final_norm":
            found = self._candidate("result_norm", -1, None) if layer == -1 else []
            return found[0].key if found else None
        if layer < 0:
            return None
        if alias == "resid_pre":
            return self._embedding if layer == 0 else self._first(("l_out",), layer - 1)
        if alias in ("q_pre", "k_pre"):
            return self._before_rotation("Qcur" if alias == "q_pre" else "Kcur", layer)
        if alias == "resid_mid" and self.arch in _NOT_RESID_MID:
            return None
        if alias == "mlp_in" and self.arch in _MLP_IN_BY_ARCH:
            return self._first((_MLP_IN_BY_ARCH[self.arch],), layer)
        return self._first(_ALIASES[alias], layer)

    def _first(self, candidates: Iterable[str], layer: int) -> Key | None:
        for candidate in candidates:
            name, _, occurrence = parse(candidate)
            found = self._candidate(name, layer, occurrence)
            if found:
                return found[0].key
        return None

    def _before_rotation(self, name: str, layer: int) -> Key | None:
        """The tensor that the rotation takes: normed where the model norms it, else the one before the last."""
        normed = self._candidate(f"{name}_normed", layer, None)
        if normed:
            return normed[0].key
        last = self._candidate(name, layer, None)
        if not last or last[0].occurrence == 0:
            return None
        before = self._by_key[Key(name, layer, last[0].occurrence - 1)]
        return before.key if before.shape == last[0].shape else None

    def labels(self, key: Key) -> list[tuple[str, int]]:
        """Every (name, layer) under which a tensor can be asked for."""
        if key not in self._labels:
            self._labels[key] = self._find_labels(key)
        return self._labels[key]

    def _find_labels(self, key: Key) -> list[tuple[str, int]]:
        found = [(f"{key.name}#{key.occurrence}", key.layer)]
        if key.occurrence == self._count[key.name, key.layer] - 1 and key.name not in ALIASES:
            found.append((key.name, key.layer))
        for alias in ALIASES:
            for layer in {key.layer, key.layer + 1 if key.layer >= 0 else 0, -1}:
                if layer < self.n_layer and self._alias(alias, layer) == key:
                    found.append((alias, layer))
        return found

    def _unknown(self, text: str, name: str) -> str:
        known = sorted(self._names | set(ALIASES))
        lowered = {k.lower(): k for k in known}
        near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=4, cutoff=0.5)]
        hint = f"The nearest: {', '.join(near)}." if near else f"Aliases: {', '.join(ALIASES)}."
        return f"This {self.arch} model has no site {text!r}. {hint} All of them: model.sites()"

    def _absent(self, name: str, layer: int | None, occurrence: int | None) -> str:
        layers = sorted({site.layer for site in self.sites if site.name == name and site.layer >= 0})
        if name in ALIASES and not layers:
            where = f" in layer {layer}" if layer is not None else ""
            return f"The architecture {self.arch} names no tensor for {name!r}{where}. What it names: model.sites()"
        if occurrence is not None:
            return f"{name!r} has no occurrence #{occurrence}; model.sites() lists them."
        return f"Layer {layer} has no {name!r}; layers that have it: {', '.join(map(str, layers)) or 'none'}."
