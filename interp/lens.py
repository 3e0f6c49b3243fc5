"""The logit lens: what the model would answer if it stopped after each layer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from . import plot
from .errors import RunError, SiteError
from .vocab import one_token

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .model import Model
    from .run import Run

# Rows unembedded in one call, and logits held in one temporary: they bound the memory that a long
# prompt and a large vocabulary take, whatever the number of layers.
_ROWS = 512
_LOGITS = 1 << 23


def logit_lens(
    run_or_model: Run | Model, prompt: str | list[int] | None = None, site: str = "l_out", k: int = 10,
    model: Model | None = None,
) -> Lens:
    """Reads the residual stream of every layer through the model's own final norm and head.

    Method: nostalgebraist, "interpreting GPT: the logit lens" (LessWrong, 2020). The norm and head
    are the model's own code, so the last layer of `l_out` gives the run's logits bit for bit.

    Args:
        run_or_model: a Run that captured `site`, or a Model, which then runs `prompt`.
        prompt: text or tokens; with a Model only.
        site: any site of shape (n_tokens, n_embd): `l_out`, `ffn_inp`, `attn_out`, `ffn_out`, …
            What is not the whole residual stream (`attn_out`, `ffn_out`) is read as if it were.
        k: how many of the likeliest tokens to keep for each layer and position.
        model: the model of a Run that was loaded from a file.

    Raises:
        SiteError: the site was not captured, or is not n_embd wide.
        RunError: no prompt, no model, or a k below 1.
    """
    if hasattr(run_or_model, "unembed"):
        model = run_or_model
        if prompt is None:
            raise RunError('logit_lens(model, …) needs a prompt: logit_lens(model, "The Eiffel Tower")')
        run = model.run(prompt, capture=(site,))
    else:
        run = run_or_model
        if prompt is not None:
            raise RunError("logit_lens(run, …) takes no prompt: the run has one; pass the model to run another")
        model = model if model is not None else run.model
        if model is None:
            raise RunError("this run was loaded from a file: name its model, logit_lens(run, model=…)")
    return Lens(run, model, site, k)


class Lens:
    """What each layer would predict, as `logit_lens` returns it.

    Attributes:
        site: the site that was read.
        layers: its captured layers, ascending.
        tokens, pieces: the prompt's tokens and their texts.
        top_ids: (n_layers, n_tokens, k) int32, the likeliest tokens, likeliest first.
        top_probs: (n_layers, n_tokens, k) float32, their probabilities.
    """

    def __init__(self, run: Run, model: Model, site: str, k: int):
        self.site, self.layers = site, list(run.layers(site))
        self.tokens, self.pieces = list(run.tokens), list(run.pieces)
        self._run, self._model = run, model
        self._pieces: dict[int, str] = {}
        self._scans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        if plot.whole(k, "k") < 1:
            raise RunError(f"k must be at least 1, not {k}")
        if not self.layers:
            raise SiteError(f"this run did not capture {site!r}: run again with capture=({site!r},)")
        self.layers = self._readable(self.layers)
        for layer in self.layers:
            self._check(layer)

        shape = (len(self.layers), len(self.tokens), min(k, model.n_vocab))
        self.top_ids, self.top_probs = np.empty(shape, np.int32), np.empty(shape, np.float32)
        self._max, self._sum = np.empty(shape[:2], np.float32), np.empty(shape[:2], np.float64)
        for row, layer in enumerate(self.layers):
            for rows, logits in self._blocks(layer):
                high = logits.max(axis=-1, keepdims=True)
                # Summed in float64: over 150 000 tokens a float32 sum loses the small probabilities.
                total = np.exp(logits - high).sum(axis=-1, dtype=np.float64)
                ids = _top(logits, shape[2])
                self.top_ids[row, rows] = ids
                self.top_probs[row, rows] = (
                    np.exp(np.take_along_axis(logits, ids, -1).astype(np.float64) - high) / total[:, None]
                )
                self._max[row, rows], self._sum[row, rows] = high[:, 0], total

    def _check(self, layer: int) -> None:
        shape, n_embd = self._run[self.site, layer].shape, self._model.n_embd
        if len(shape) != 2 or shape[1] != n_embd:
            raise SiteError(
                f"a logit lens reads residual-shaped sites, (n_tokens, n_embd = {n_embd}): {self.site!r} of "
                f"layer {layer} has shape {tuple(shape)}; try 'l_out'"
            )
        if shape[0] != len(self.tokens):
            raise SiteError(
                f"{self.site!r} of layer {layer} holds {shape[0]} of {len(self.tokens)} positions: "
                'run again with all positions and logits="all"'
            )

    def _readable(self, layers: list[int]) -> list[int]:
        """The layers without what comes after the last of them: that went through the final norm already."""
        if -1 not in layers:
            return layers
        table = self._model._table
        if not any(table.is_after_layers(site.key) for site in table.find(self.site)):
            return layers
        if layers == [-1]:
            raise SiteError(
                f"{self.site!r} comes after the final norm, and a lens would apply that a second time: what it "
                "predicts are the run's own logits. Read 'l_out'"
            )
        return [layer for layer in layers if layer >= 0]

    def _blocks(self, layer: int) -> Iterable[tuple[slice, np.ndarray]]:
        """The logits of one captured layer in blocks of rows, each with its slice of positions."""
        resid = self._run[self.site, layer]
        small = max(1, _LOGITS // self._model.n_vocab)
        for start in range(0, len(resid), _ROWS):
            logits = self._model.unembed(resid[start : start + _ROWS])
            for i in range(0, len(logits), small):
                part = logits[i : i + small]
                yield slice(start + i, start + i + len(part)), part

    def logits(self, layer: int) -> np.ndarray:
        """The logits of one layer, (n_tokens, n_vocab) float32, computed anew at each call."""
        return self._model.unembed(self._run[self.site, self.layers[self._row(layer)]])

    def top(self, layer: int, position: int = -1) -> list[tuple[str, float]]:
        """The k likeliest next tokens as (piece, probability), likeliest first."""
        row, column = self._row(layer), self._column(position)
        pairs = zip(self.top_ids[row, column].tolist(), self.top_probs[row, column].tolist())
        return [(self._piece(token), prob) for token, prob in pairs]

    def rank(self, piece: str | int) -> np.ndarray:
        """A token's place among all next tokens, (n_layers, n_tokens) int64; 0 is the likeliest.

        `piece` is a token id or a text that is one token. Where a bare word is not one token, it is
        tried with a leading space, as most vocabularies hold words: "Paris" then means " Paris".
        """
        return self._scan(piece)[0].copy()

    def prob(self, piece: str | int) -> np.ndarray:
        """A token's probability, (n_layers, n_tokens) float64; `piece` as for `rank`."""
        return self._scan(piece)[1].copy()

    def _scan(self, piece: str | int) -> tuple[np.ndarray, np.ndarray]:
        token = one_token(self._model, piece)
        if token not in self._scans:
            ranks = np.empty((len(self.layers), len(self.tokens)), np.int64)
            chosen = np.empty(ranks.shape, np.float64)
            for row, layer in enumerate(self.layers):
                for rows, logits in self._blocks(layer):
                    own = logits[:, token, None]
                    # Of equal logits the lower id comes first, as in top_ids.
                    ranks[row, rows] = (logits > own).sum(-1) + (logits[:, :token] == own).sum(-1)
                    chosen[row, rows] = own[:, 0]
            self._scans[token] = ranks, np.exp(chosen - self._max) / self._sum
        return self._scans[token]

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._model.pieces([token])[0]
        return self._pieces[token]

    def _row(self, layer: int) -> int:
        at, n_layer = plot.whole(layer, "layer"), self._model.n_layer
        if at < 0 and at not in self.layers:
            at += n_layer
        if at not in self.layers:
            raise SiteError(
                f"layer {layer} is not in this lens: it holds {self.site!r} of layers {plot.spans(self.layers)}"
                f" (negative layers count from the end of the model's {n_layer})"
            )
        return self.layers.index(at)

    def _column(self, position: int) -> int:
        n = len(self.tokens)
        at = plot.whole(position, "position")
        if not -n <= at < n:
            raise SiteError(f"position {position} is out of range: the prompt has {n} tokens, {-n} to {n - 1}")
        return at % n

    def _rows(self, layers: int | Iterable[int] | None) -> list[int]:
        if layers is None:
            return list(range(len(self.layers)))
        return sorted({self._row(layer) for layer in _several(layers)})

    def table(self, position: int = -1, k: int | None = None) -> Table:
        """The likeliest next tokens after one position: a row for each layer, a column for each rank."""
        from rich import box
        from rich.cells import cell_len
        from rich.table import Table
        from rich.text import Text

        column = self._column(position)
        k = self.top_ids.shape[2] if k is None else max(1, min(k, self.top_ids.shape[2]))
        start = max(0, column - 7)
        before = "…" * (start > 0) + plot.visible("".join(self.pieces[start : column + 1]))
        table = Table(
            title=Text(f"logit lens of {self.site} at position {column}, after {before}"), box=box.SIMPLE_HEAD,
            title_justify="left", title_style="bold", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
        )
        table.add_column("layer", justify="right", style="cyan", no_wrap=True)
        for i in range(k):
            table.add_column(f"{i + 1}.", no_wrap=True)
        for layer in self.layers:
            cells = []
            for piece, prob in self.top(layer, column)[:k]:
                text = plot.visible(piece, 9)
                style = "bold green" if prob >= 0.5 else "green" if prob >= 0.1 else "" if prob >= 0.01 else "dim"
                cells.append(Text(f"{text}{' ' * (9 - cell_len(text))} {100 * prob:4.1f} %", style=style))
            table.add_row(str(layer), *cells)
        return table

    def print(self, position: int = -1, k: int | None = None, console: Console | None = None) -> None:
        """Prints the table; on a terminal no more ranks than its width holds."""
        from rich.console import Console

        console = console or Console()
        table = self.table(position, k)
        if not console.is_terminal:
            # A pipe has no width: cut nothing there.
            console = Console(file=console.file, width=1000, no_color=True)
        elif len(table.columns) - 1 > (fit := max(1, (console.width - 6) // 18)):
            table = self.table(position, fit)
            table.caption = f"{fit} of {k or self.top_ids.shape[2]} ranks fit this terminal"
        # As part of the table the title would be wrapped to the width of few ranks.
        title, table.title = table.title, None
        console.print(title, style="bold", soft_wrap=True)
        console.print(table)

    def plot(
        self, path: str | os.PathLike, positions: int | Iterable[int] | None = None,
        layers: int | Iterable[int] | None = None,
    ) -> None:
        """Draws the likeliest token of each layer and position as PNG, the last layer at the top.

        Colour is probability. More than 40 positions do not fit: without `positions`, the last 40
        are drawn and the title says so.
        """
        rows, n = self._rows(layers), len(self.tokens)
        note = ""
        if positions is None:
            columns = list(range(max(0, n - 40), n))
            if len(columns) < n:
                note = f", last 40 of {n} positions"
        else:
            columns = sorted({self._column(p) for p in _several(positions)})
        if not rows or not columns:
            raise SiteError("nothing to draw: name at least one layer and one position")
        plot.lens_png(
            path,
            [[self._piece(int(self.top_ids[y, x, 0])) for x in columns] for y in rows],
            self.top_probs[np.ix_(rows, columns)][..., 0],
            [str(self.layers[y]) for y in rows],
            [self.pieces[x] for x in columns], columns, self._title() + note,
        )

    def html(self, path: str | os.PathLike) -> None:
        """Writes the same, for all layers and positions, as one HTML page that works offline.

        Hovering lists the k likeliest tokens of a cell with their probabilities.
        """
        top = [[self.top(layer, x) for x in range(len(self.tokens))] for layer in self.layers]
        plot.lens_html(path, top, [str(layer) for layer in self.layers], self.pieces, self._title())

    def _title(self) -> str:
        return f"logit lens of {self.site}\n{self._model.name}"

    def __repr__(self) -> str:
        n_layers, n_tokens, k = self.top_ids.shape
        return f"<Lens of {self.site}: {n_layers} layers, {n_tokens} tokens, top {k}>"


def _several(chosen: int | Iterable[int]) -> Iterable[int]:
    return chosen if isinstance(chosen, Iterable) else (chosen,)


def _top(logits: np.ndarray, k: int) -> np.ndarray:
    """The ids of the k largest of each row, (n_rows, k), largest first, lower id first when equal."""
    if k < logits.shape[-1]:
        ids = np.sort(np.argpartition(logits, -k, axis=-1)[:, -k:], axis=-1)
    else:
        ids = np.broadcast_to(np.arange(k), logits.shape)
    order = np.argsort(-np.take_along_axis(logits, ids, -1), axis=-1, kind="stable")
    return np.take_along_axis(ids, order, -1)
