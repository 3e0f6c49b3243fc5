"""Pictures of patching sweeps."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from .base import colour_bar, columns, escaped, figure_png, write_html

_MISSING = "#dddddd"    # cells that were not run

# Thousands of labels cannot be read, and thousands of cells need not be large.
_LABELS = 120


def _limit(effects: np.ndarray) -> float:
    """The end of a colour scale that has 0 in its middle."""
    finite = np.abs(effects[np.isfinite(effects)])
    return float(finite.max()) if finite.size and finite.max() > 0 else 1.0


def _scale(signed: bool, limit: float) -> dict:
    return {"cmap": "RdBu" if signed else "Blues", "vmin": -limit if signed else 0, "vmax": limit}


def _labels(names: Sequence[str], positions: Sequence[int] | None) -> list[str]:
    return list(names) if positions is None else [f"{name}  {p}".strip() for name, p in zip(names, positions)]


def _dots(effects: np.ndarray, marked: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Rows, columns and colours of the dots: light on dark cells and dark on light ones."""
    rows, columns = np.nonzero(marked)
    return rows, columns, ["#ffffff" if abs(effects[at]) > 0.55 * limit else "#666666" for at in zip(rows, columns)]


def sweep_png(
    path: str | os.PathLike, effects: np.ndarray, layers: Sequence[int], names: Sequence[str],
    positions: Sequence[int] | None, measure: str, title: Callable[[int], str], across: str, signed: bool = True,
    marked: np.ndarray | None = None,
) -> None:
    """Draws effects, (n_layers, n_columns): layers up, positions or heads across.

    `names` are the columns' tokens, with their `positions`; without positions, heads or the like. `measure` names the
    colour bar, `across` the columns. `title` gives the title for a width in characters. Colours end at 0 where nothing
    is `signed`. NaN cells are grey; `marked` ones have a dot.
    """
    n_rows, n_columns = effects.shape
    high = float(np.clip(9 / n_rows, 0.06, 0.2))
    wide = float(np.clip(11 / n_columns, 0.06, 0.38 if positions is not None else 0.3))
    width, height = max(wide * n_columns, 1.6), max(high * n_rows, 0.6)
    text = title(max(60, int(width * 13)))
    with figure_png(path, names, text) as (figure, show, text):
        figure.set_size_inches(width, height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_facecolor(_MISSING)
        limit = _limit(effects)
        # White lines between the cells, as long as the cells are wider than lines.
        lines = {"edgecolors": "white", "linewidth": 0.6} if min(high, wide) >= 0.12 else {}
        mesh = axes.pcolormesh(np.ma.masked_invalid(effects), **_scale(signed, limit), **lines)
        step, apart = -(-n_columns // _LABELS), max(1, -(-n_rows // 40))
        kept = range(0, n_columns, step)
        if marked is not None and marked.any():
            rows, dotted, colours = _dots(effects, marked, limit)
            axes.scatter(dotted + 0.5, rows + 0.5, s=(min(high, wide) * 72 * 0.22) ** 2, c=colours, linewidths=0)
        texts = [show(names[i], 26) if names[i] else "" for i in kept]
        shown = _labels(texts, None if positions is None else [positions[i] for i in kept])
        axes.set_xticks(
            [i + 0.5 for i in kept], shown, rotation=0 if positions is None else 90, fontsize=8 if wide >= 0.13 else 5,
        )
        axes.set_yticks([i + 0.5 for i in range(0, n_rows, apart)], list(layers)[::apart])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(across)
        axes.set_ylabel("layer")
        axes.set_title(text, loc="left", fontsize=9, pad=8)
        # The bar of a low picture is shorter than its label: a longer line would run into the title.
        colour_bar(figure, axes, mesh, "\n".join(textwrap.wrap(measure, 24)))


def sweep_html(
    path: str | os.PathLike, effects: np.ndarray, layers: Sequence[int], names: Sequence[str],
    positions: Sequence[int] | None, measure: str, hover: Sequence[Sequence[str]], title: str, across: str,
    signed: bool = True, marked: np.ndarray | None = None,
) -> None:
    """Writes the same as a page that works offline; `hover` is the text of each cell."""
    import plotly.graph_objects as go

    n_rows, n_columns = effects.shape
    limit = _limit(effects)
    scale = _scale(signed, limit)
    cell = float(np.clip(1100 / n_columns, 6, 40))
    gap = 1 if cell >= 10 else 0
    figure = go.Figure(
        go.Heatmap(
            z=[[None if np.isnan(v) else round(float(v), 6) for v in row] for row in effects],
            hovertext=[[escaped(text) for text in row] for row in hover],
            hovertemplate="%{hovertext}<extra></extra>", hoverongaps=False,
            colorscale=scale["cmap"], zmin=scale["vmin"], zmax=scale["vmax"], xgap=gap, ygap=gap,
            colorbar={"title": {"text": escaped(measure), "side": "right"}, "thickness": 16},
        )
    )
    if marked is not None and marked.any():
        rows, dotted, colours = _dots(effects, marked, limit)
        figure.add_scatter(
            x=dotted.tolist(), y=rows.tolist(), mode="markers", marker={"color": colours, "size": 0.22 * min(cell, 16)},
            hoverinfo="skip", showlegend=False,
        )
    labels = [escaped(label) for label in _labels(names, positions)]
    kept = list(range(0, n_columns, -(-n_columns // _LABELS)))
    below = 60 + (0 if positions is None else 8 * max(map(columns, labels)))
    figure.update_layout(
        title={"text": escaped(title), "font": {"size": 15}},
        width=int(max(480, cell * n_columns) + 220), height=int(max(16 * n_rows, 160) + 120 + below),
        margin={"t": 120, "b": below, "l": 70}, plot_bgcolor=_MISSING,
        xaxis={
            "title": across, "tickvals": kept,
            "ticktext": [labels[i] for i in kept], "tickangle": 0 if positions is None else -90, "showgrid": False,
        },
        yaxis={
            "title": "layer", "tickvals": list(range(n_rows)), "ticktext": list(map(str, layers)), "showgrid": False,
        },
        hoverlabel={"font": {"family": "monospace"}, "align": "left"},
    )
    write_html(path, figure)
