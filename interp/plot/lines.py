"""Pictures of what changes from layer to layer, a line for each way of measuring it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .base import escaped, figure_png, write_html

# Okabe and Ito's colours, which are told apart by everyone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def lines_png(
    path: str | os.PathLike, values: np.ndarray, layers: Sequence[int], names: Sequence[str], baseline: float,
    measure: str, title: str, band: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Draws values, (n_lines, n_layers), with `names`, of which one alone may be empty; `baseline` is dashed.

    NaN values are gaps. `band`: low and high, shaped like the values, between which each line is shaded.
    """
    with figure_png(path, names, title) as (figure, show, text):
        figure.set_size_inches(float(np.clip(0.16 * len(layers) + 1.5, 3.5, 9)), 2.6)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axhline(baseline, color="#777777", linewidth=1, linestyle=(0, (4, 3)), label="no change", zorder=1)
        for i, (row, name) in enumerate(zip(values, names)):
            label = show(name, 60).replace("␣", " ") if name else None
            axes.plot(
                layers, row, color=_COLOURS[i % len(_COLOURS)], marker="o", markersize=2.5, linewidth=1.2, label=label
            )
            if band is not None:
                low, high = (np.atleast_2d(bound)[i] for bound in band)
                axes.fill_between(layers, low, high, color=_COLOURS[i % len(_COLOURS)], alpha=0.15, linewidth=0)
        axes.set_xlabel("layer")
        axes.set_ylabel(measure, wrap=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=7)
        axes.set_title(text, loc="left", fontsize=9, pad=8)


def lines_html(
    path: str | os.PathLike, values: np.ndarray, layers: Sequence[int], names: Sequence[str], baseline: float,
    measure: str, hover: Sequence[Sequence[str]], title: str, band: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Writes the same as a page that works offline; `hover` is the text of each point."""
    import plotly.graph_objects as go

    figure = go.Figure(
        [
            go.Scatter(
                x=list(layers), y=[None if np.isnan(v) else round(float(v), 6) for v in row], name=escaped(name),
                mode="lines+markers", line={"color": _COLOURS[i % len(_COLOURS)]},
                hovertext=[escaped(text) for text in texts], hovertemplate="%{hovertext}<extra></extra>",
            )
            for i, (row, name, texts) in enumerate(zip(values, names, hover))
        ]
    )
    for i, bounds in enumerate(zip(*map(np.atleast_2d, band)) if band is not None else ()):
        known = np.isfinite(bounds[0])
        low, high = (bound[known].tolist() for bound in bounds)
        there = np.asarray(layers)[known].tolist()
        figure.add_scatter(
            x=there + there[::-1], y=high + low[::-1], fill="toself", fillcolor=_COLOURS[i % len(_COLOURS)],
            opacity=0.15, mode="none", hoverinfo="skip", showlegend=False,
        )
    figure.add_hline(y=baseline, line={"dash": "dash", "color": "#777777", "width": 1})
    figure.update_layout(
        title={"text": escaped(title), "font": {"size": 15}}, width=900, height=480, margin={"t": 120},
        plot_bgcolor="white", showlegend=len(names) > 1, xaxis={"title": "layer"},
        yaxis={"title": escaped(measure), "gridcolor": "#eeeeee"},
        hoverlabel={"font": {"family": "monospace"}, "align": "left"},
    )
    write_html(path, figure)
