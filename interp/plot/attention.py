"""Pictures of attention patterns."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .base import DPI, colour_bar, escaped, figure_png, visible, write_html

_BLANK = "#dddddd"    # cells that a causal model cannot fill


def unreachable(pattern: np.ndarray) -> np.ndarray:
    """Where a causal model cannot look: above the diagonal, (n_query, n_key) bool.

    The last query sits at the last key. A weight that is not zero there, as in a model that
    looks both ways, is kept visible.
    """
    n_query, n_key = pattern.shape[-2:]
    above = np.arange(n_key)[None, :] > np.arange(n_query)[:, None] + (n_key - n_query)
    return above & (pattern == 0)


def _weights(axes, pattern: np.ndarray, top: float):
    axes.set_facecolor(_BLANK)
    masked = np.ma.masked_array(pattern, unreachable(pattern) | np.isnan(pattern))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes.imshow(masked, cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="nearest")


def _every(n: int, most: int) -> range:
    return range(0, n, max(1, -(-n // most)))


def attention_head_png(
    path: str | os.PathLike, pattern: np.ndarray, queries: Sequence[str], keys: Sequence[str], title: str,
) -> None:
    """Draws one head, (n_query, n_key): queries down, keys across, token labels on both axes."""
    n_query, n_key = pattern.shape
    cell = float(np.clip(12 / max(n_query, n_key), 0.02, 0.5))
    with figure_png(path, [*queries, *keys], title) as (figure, show, title):
        figure.set_size_inches(max(cell * n_key, 2.5), max(cell * n_query, 2.5))
        axes = figure.add_axes((0, 0, 1, 1))
        image = _weights(axes, pattern, 1.0)
        if cell >= 0.4:
            for y, x in zip(*np.nonzero(pattern >= 0.005)):
                colour = "white" if pattern[y, x] > 0.7 else "black"
                axes.text(x, y, f"{pattern[y, x]:.2f}", ha="center", va="center", color=colour, fontsize=7)
        kept, shown = _every(n_query, 90), _every(n_key, 90)
        size = 8 if cell >= 0.16 else 6
        axes.set_yticks(list(kept), [show(queries[i], 14) for i in kept], fontsize=size)
        axes.set_xticks(list(shown), [show(keys[i], 14) for i in shown], rotation=90, fontsize=size)
        axes.set_ylabel("query: the token that looks")
        axes.set_xlabel("key: the token looked at")
        axes.set_title(title, loc="left", fontsize=10, pad=8)
        colour_bar(figure, axes, image, "weight")


def attention_layer_png(
    path: str | os.PathLike, patterns: np.ndarray, queries: Sequence[str], keys: Sequence[str],
    titles: Sequence[str], title: str,
) -> None:
    """Draws all heads of a layer, (n_head, n_query, n_key), as a grid with one title each."""
    n_head, n_query, n_key = patterns.shape
    wide = int(np.ceil(np.sqrt(n_head)))
    tall = -(-n_head // wide)
    side = float(np.clip(0.16 * max(n_query, n_key), 1.3, 2.6)) if n_head <= 36 else 1.3
    labelled = max(n_query, n_key) <= side / 0.1
    with figure_png(path, [*queries, *keys], title) as (figure, show, title):
        gap, header = 0.32, 0.3
        width, height = wide * (side + gap), tall * (side + gap) + header
        figure.set_size_inches(width, height)
        for i in range(n_head):
            row, column = divmod(i, wide)
            box = (column * (side + gap) / width, 1 - (header + row * (side + gap) + side) / height)
            axes = figure.add_axes((*box, side / width, side / height))
            image = _weights(axes, patterns[i], 1.0)
            axes.set_title(titles[i], fontsize=8, pad=3)
            axes.set_xticks([])
            axes.set_yticks([])
            # Only the outer edges carry labels, so that the patterns keep the room.
            if labelled and column == 0:
                axes.set_yticks(range(n_query), [show(t, 10) for t in queries], fontsize=6)
            if labelled and i + wide >= n_head:
                axes.set_xticks(range(n_key), [show(t, 10) for t in keys], rotation=90, fontsize=6)
        figure.text(0, 1, title, fontsize=10, va="bottom")
        frame = figure.add_axes((0, 0, 1 - gap / width, 1 - header / height), frame_on=False)
        frame.set_axis_off()
        colour_bar(figure, frame, image, "weight")


def thumbnail(pattern: np.ndarray, side: int) -> np.ndarray:
    """A (n_query, n_key) pattern as (side, side) pixels; NaN where nothing can be attended.

    Shrinking takes the largest weight of each block, because one bright key among hundreds
    is what a reader looks for and a mean would wash it out. Growing repeats pixels.
    """
    values = np.where(unreachable(pattern), np.nan, pattern)
    for axis in (0, 1):
        n = values.shape[axis]
        if n > side:
            starts = np.arange(side) * n // side
            values = np.fmax.reduceat(values, starts, axis=axis)
        else:
            values = values.take(np.arange(side) * n // side, axis=axis)
    return values


def attention_overview_png(
    path: str | os.PathLike, layers: Sequence[int], heads: Sequence[int], thumbnails: np.ndarray, title: str,
) -> None:
    """Draws every layer (rows) and head (columns): thumbnails (n_layer, n_head, side, side).

    A head that a layer lacks is all NaN.
    """
    n_layer, n_head, side, _ = thumbnails.shape
    gap = max(1, side // 12)
    pitch = side + gap
    # One image for the whole grid: thousands of small axes take minutes.
    canvas = np.full((n_layer * pitch - gap, n_head * pitch - gap), -1.0, np.float32)
    for y in range(n_layer):
        for x in range(n_head):
            canvas[y * pitch : y * pitch + side, x * pitch : x * pitch + side] = thumbnails[y, x]
    with figure_png(path, [], title) as (figure, _, title):
        from matplotlib import colormaps

        figure.set_size_inches(canvas.shape[1] / DPI, canvas.shape[0] / DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        colours = colormaps["Blues"].with_extremes(bad=_BLANK, under="white")
        image = axes.imshow(canvas, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        apart = max(1, 24 // pitch + 1)
        axes.set_yticks([y * pitch + side / 2 for y in range(0, n_layer, apart)], layers[::apart])
        axes.set_xticks([x * pitch + side / 2 for x in range(0, n_head, apart)], heads[::apart])
        axes.set_ylabel("layer")
        axes.set_xlabel("head")
        axes.set_title(title, loc="left", fontsize=10, pad=8)
        colour_bar(figure, axes, image, "weight")


def attention_html(
    path: str | os.PathLike, pattern: np.ndarray, queries: Sequence[str], keys: Sequence[str], title: str,
) -> None:
    """Writes one head, (n_query, n_key), as an offline page; hovering names query, key and weight."""
    import plotly.graph_objects as go

    masked = np.where(unreachable(pattern), np.nan, pattern)
    # With its position in front every label is its own, so the axes' labels can serve as hover text.
    down, across = (
        [f"{i} {escaped(visible(t, 14))}" for i, t in enumerate(names)] for names in (queries, keys)
    )
    cell = float(np.clip(900 / max(masked.shape), 4, 42))
    gap = 1 if cell >= 10 else 0
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(v) else round(float(v), 5) for v in row] for row in masked], x=across, y=down,
            hovertemplate="query %{y}<br>key %{x}<br>weight %{z:.4f}<extra></extra>", hoverongaps=False,
            colorscale="Blues", zmin=0, zmax=1, xgap=gap, ygap=gap, colorbar={"title": "weight", "thickness": 16},
        )
    )
    axis = {"type": "category", "showgrid": False}
    figure.update_layout(
        title=escaped(title), plot_bgcolor=_BLANK,
        width=int(max(320, cell * len(across)) + 280), height=int(max(240, cell * len(down)) + 240),
        xaxis={**axis, "title": "key: the token looked at", "tickangle": -90},
        yaxis={**axis, "title": "query: the token that looks", "autorange": "reversed"},
        hoverlabel={"font": {"family": "monospace"}, "align": "left"},
    )
    write_html(path, figure)
