"""Attention maps: where each head of each layer looks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from . import plot
from .errors import RunError, SiteError

if TYPE_CHECKING:
    from .model import Model
    from .run import Run

SITE = "attn_scores"

# Pixels that a side of the overview may have: 80 layers of 64 heads must stay a picture that opens.
_PIXELS = 4000


def attention(
    run_or_model: Run | Model, prompt: str | list[int] | None = None, layers: int | Iterable[int] | None = None,
    heads: int | Iterable[int] | None = None,
) -> Attention:
    """The attention patterns of a prompt.

    Args:
        run_or_model: a Run that captured `attn_scores`, or a Model, which then runs `prompt`.
        prompt: text or tokens; with a Model only.
        layers, heads: which to keep; None is all. Negative ones count from the end. Of a Run that
            captured only some heads, `heads` must name them: the run does not know which they are.

    Raises:
        SiteError: nothing was captured, or a layer or head is out of range.
        RunError: a Model without a prompt, or a Run with one.
    """
    if hasattr(run_or_model, "unembed"):
        if prompt is None:
            raise RunError('attention(model, …) needs a prompt: attention(model, "The Eiffel Tower")')
        from .sites import at

        # Only what is asked for is copied: of a long prompt every pattern of every head is gigabytes.
        run = run_or_model.run(prompt, capture=(at(SITE, layers=layers, heads=_sorted(heads, run_or_model.n_head)),))
    elif prompt is not None:
        raise RunError("attention(run, …) takes no prompt: the run has one; pass the model to run another")
    else:
        run = run_or_model
    return Attention(run, layers, heads)


class Attention:
    """Attention patterns, as `attention` returns them.

    Attributes:
        layers: the layers held, ascending.
        heads: the heads held, ascending.
        tokens, pieces: the prompt's tokens and their texts.
    """

    def __init__(
        self, run: Run, layers: int | Iterable[int] | None = None, heads: int | Iterable[int] | None = None,
    ):
        self.tokens, self.pieces = list(run.tokens), list(run.pieces)
        self._run = run
        held = list(run.layers(SITE))
        if not held:
            raise SiteError(f"this run did not capture {SITE!r}: run again with capture=({SITE!r},)")
        self._n_layer = run.model.n_layer if run.model is not None else run.info.get("n_layer", held[-1] + 1)
        self.layers = held if layers is None else _within(layers, held, self._n_layer, "layer")
        # Layers may differ in their number of heads.
        sites = run.model.sites() if run.model is not None else []
        n_heads = {site.layer: site.shape[0] for site in sites if site.name == SITE}
        self._n_heads = {layer: n_heads.get(layer, run[SITE, layer].shape[0]) for layer in self.layers}
        most = max(self._n_heads.values())
        self.heads = list(range(most)) if heads is None else _within(heads, range(most), most, "head")
        self._held = {layer: self._heads_in(layer) for layer in self.layers}

    def _heads_in(self, layer: int) -> list[int]:
        """The heads that the run holds of a layer, in the order of its rows."""
        n_rows, n_head = self._run[SITE, layer].shape[0], self._n_heads[layer]
        if n_rows == n_head:
            return list(range(n_head))
        if n_rows == len(self.heads):
            return self.heads
        raise SiteError(
            f"this run holds {n_rows} of the {n_head} heads of layer {layer}: name them, attention(run, heads=[…])"
        )

    def pattern(self, layer: int) -> np.ndarray:
        """The weights of one layer, (n_head, n_query, n_key) float32, of the heads held.

        A row sums to 1, or to less in a model with attention sinks.
        """
        return self._patterns(layer)[1]

    def _patterns(self, layer: int) -> tuple[list[int], np.ndarray]:
        """The chosen heads that this layer has, and their weights."""
        layer = self._layer(layer)
        weights, held = self._run[SITE, layer], self._held[layer]
        heads = [head for head in self.heads if head in held]
        return heads, weights if heads == held else weights[[held.index(head) for head in heads]]

    def _layer(self, layer: int) -> int:
        return _within(layer, self.layers, self._n_layer, "layer")[0]

    def _head(self, layer: int, head: int) -> tuple[int, np.ndarray]:
        heads, weights = self._patterns(layer)
        head = _within(head, heads, self._n_heads[self._layer(layer)], "head")[0]
        return head, weights[heads.index(head)]

    def _labels(self, layer: int, weights: np.ndarray) -> tuple[list[str], list[str]]:
        """Texts of the queries and of the keys."""
        if getattr(self._run, "n_prefix", 0):
            raise SiteError(
                "this run continues a prefix, whose tokens it does not hold: to draw its attention, run the whole prompt "
                "after model.prefix(None)"
            )
        n_query, n_key = weights.shape[-2:]
        queries = self._run.positions(SITE, self._layer(layer))
        # A prefix has keys too, in front of the prompt's.
        keys = ["…"] * (n_key - len(self.pieces)) + self.pieces
        if len(queries) != n_query or len(keys) != n_key:
            raise SiteError(f"this run holds {n_query} queries and {n_key} keys of {len(self.pieces)} tokens")
        return [self.pieces[query] for query in queries], keys

    def _drawn(self, layer: int, weights: np.ndarray) -> np.ndarray:
        """The weights with NaN where a causal model cannot look; pictures of all queries see that by themselves."""
        queries = self._run.positions(SITE, self._layer(layer))
        n_key = weights.shape[-1]
        if len(queries) == n_key:
            return weights
        hidden = np.arange(n_key)[None, :] > np.asarray(queries)[:, None] + (n_key - len(self.pieces))
        return np.where(hidden & (weights == 0), np.nan, weights)

    def plot(self, path: str | os.PathLike, layer: int | None = None, head: int | None = None) -> None:
        """Draws attention as PNG: queries down, keys across, what a causal model cannot see in grey.

        With layer and head one pattern with its tokens; with a layer alone a grid of its heads;
        with neither an overview of all layers (rows) and heads (columns).
        """
        if layer is None and head is None:
            self._overview(path)
        elif layer is None:
            raise SiteError(f"head {head} of which layer? plot(path, layer=…, head={head})")
        elif head is None:
            heads, weights = self._patterns(layer)
            layer = self._layer(layer)
            titles = [f"layer {layer} head {h}" for h in heads]
            title = self._title(f"layer {layer}")
            plot.attention_layer_png(path, self._drawn(layer, weights), *self._labels(layer, weights), titles, title)
        else:
            head, weights = self._head(layer, head)
            title = self._title(f"layer {self._layer(layer)} head {head}")
            plot.attention_head_png(path, self._drawn(layer, weights), *self._labels(layer, weights), title)

    def _overview(self, path: str | os.PathLike) -> None:
        side = int(np.clip(_PIXELS // max(len(self.layers), len(self.heads)) - 4, 6, 64))
        cells = np.full((len(self.layers), len(self.heads), side, side), np.nan, np.float32)
        for y, layer in enumerate(self.layers):
            heads, weights = self._patterns(layer)
            for head, pattern in zip(heads, weights):
                cells[y, self.heads.index(head)] = plot.thumbnail(self._drawn(layer, pattern), side)
        title = self._title("every layer and head")
        plot.attention_overview_png(path, self.layers, self.heads, cells, title)

    def html(self, path: str | os.PathLike, layer: int, head: int) -> None:
        """Writes one head as an HTML page that works offline; hovering names query, key and weight."""
        head, weights = self._head(layer, head)
        title = self._title(f"layer {self._layer(layer)} head {head}")
        plot.attention_html(path, self._drawn(layer, weights), *self._labels(layer, weights), title)

    def _title(self, what: str) -> str:
        run = self._run
        name = run.model.name if run.model is not None else run.info.get("model", "a run from a file")
        return f"attention of {what}\n{name}: queries down, keys across"

    def __repr__(self) -> str:
        return (
            f"<Attention of {len(self.tokens)} tokens: layers {plot.spans(self.layers)}, "
            f"heads {plot.spans(self.heads)}>"
        )


def _sorted(heads: int | Iterable[int] | None, n_head: int) -> list[int] | None:
    """Chosen heads in the order in which Attention keeps them."""
    return None if heads is None else _within(heads, range(n_head), n_head, "head")


def _within(chosen: int | Iterable[int], held: Iterable[int], n: int, what: str) -> list[int]:
    """Chosen numbers, ascending and counted from the start, each of them among those held."""
    found = set()
    for number in chosen if isinstance(chosen, Iterable) else (chosen,):
        number = plot.whole(number, what)
        index = number + n if number < 0 else number
        if index not in held:
            raise SiteError(f"{what} {number} is not there: {what}s {plot.spans(list(held))} are, of {n}")
        found.add(index)
    if not found:
        raise SiteError(f"no {what} chosen: name at least one, or leave it out for all")
    return sorted(found)
