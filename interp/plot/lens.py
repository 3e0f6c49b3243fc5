"""Pictures of a logit lens."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .base import colour_bar, columns, escaped, figure_png, visible, write_html

# Tokens that the hover boxes of one page may list in all: about 12 MB. A page of a long prompt would
# otherwise grow to hundreds.
_LISTED = 400_000


def lens_png(
    path: str | os.PathLike, cells: Sequence[Sequence[str]], probs: np.ndarray, rows: Sequence[str],
    inputs: Sequence[str], positions: Sequence[int], title: str,
) -> None:
    """Draws a logit lens: a table of tokens coloured by probability, the last row at the top.

    `cells` and `probs` are (n_rows, n_columns); `rows` names the layers, `inputs` and
    `positions` the columns.
    """
    everything = {piece for row in cells for piece in row} | set(inputs)
    with figure_png(path, everything, title) as (figure, show, title):
        text = [[show(piece, 10) for piece in row] for row in cells]
        below = [show(piece, 10) for piece in inputs]
        widest = max(columns(t) for row in (*text, below) for t in row)
        # A lone column is widened, so that its axis label stays clear of the colour bar.
        figure.set_size_inches(max(1.8, (0.16 + 0.068 * max(widest, 5)) * len(below)), 0.21 * len(text))
        axes = figure.add_axes((0, 0, 1, 1))
        mesh = axes.pcolormesh(probs, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
        for y, row in enumerate(text):
            for x, piece in enumerate(row):
                colour = "white" if probs[y, x] > 0.7 else "black"
                axes.text(x + 0.5, y + 0.47, piece, ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(np.arange(len(below)) + 0.5, [f"{t}\n{p}" for t, p in zip(below, positions)])
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("input token and its position")
        axes.set_ylabel("layer")
        axes.set_title(title, loc="left", fontsize=10, pad=8)
        colour_bar(figure, axes, mesh, "probability")


def lens_html(
    path: str | os.PathLike, top: Sequence[Sequence[Sequence[tuple[str, float]]]], rows: Sequence[str],
    inputs: Sequence[str], title: str,
) -> None:
    """Writes a logit lens as a page that works offline; hovering lists the likeliest tokens.

    `top` is (n_rows, n_columns, k) pairs of piece and probability, likeliest first.
    """
    import plotly.graph_objects as go

    n_rows, n_columns = len(top), len(inputs)
    shown = max(1, min(len(top[0][0]), _LISTED // (n_rows * n_columns)))
    if shown < len(top[0][0]):
        title += f", details list the {shown} likeliest of {len(top[0][0])}"
    hover = [
        [
            f"layer {rows[y]}, position {x}, after {escaped(repr(inputs[x]))}<br>"
            + "<br>".join(f"{100 * p:5.1f} %  {escaped(repr(piece))}" for piece, p in cell[:shown])
            for x, cell in enumerate(row)
        ]
        for y, row in enumerate(top)
    ]
    # Thousands of labels make a browser crawl; the colours and the hover boxes stay.
    labelled = n_rows * n_columns <= 4000
    width = 84 if labelled else 14
    figure = go.Figure(
        go.Heatmap(
            z=[[round(cell[0][1], 4) for cell in row] for row in top],
            text=[[escaped(visible(cell[0][0], 10)) for cell in row] for row in top],
            texttemplate="%{text}" if labelled else None,
            hovertext=hover, hovertemplate="%{hovertext}<extra></extra>",
            colorscale="Blues", zmin=0, zmax=1, xgap=1, ygap=1, colorbar={"title": "probability", "thickness": 16},
        )
    )
    step = 1 if labelled else 5
    ticks = list(range(0, n_columns, step))
    names = [f"{escaped(visible(inputs[i], 10))}<br>{i}" for i in ticks]
    figure.update_layout(
        title=escaped(title), width=max(480, width * n_columns + 200), height=22 * n_rows + 190,
        margin={"t": 90, "b": 100},
        xaxis={"title": "input token and its position", "tickvals": ticks, "ticktext": names, "showgrid": False},
        yaxis={"title": "layer", "tickvals": list(range(n_rows)), "ticktext": list(rows), "showgrid": False},
        hoverlabel={"font": {"family": "monospace"}, "align": "left"}, plot_bgcolor="white",
    )
    write_html(path, figure)
