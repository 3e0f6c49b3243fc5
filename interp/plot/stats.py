"""Pictures of channel statistics."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from .base import colour_bar, escaped, figure_png, write_html


def _top(ratio: np.ndarray) -> float:
    """The upper end of the colours, at least a little above the median."""
    return max(float(ratio.max()), 2.0)


def _ticks(low: float, high: float) -> list[float]:
    """Numbers to label on a logarithmic axis: 1, 2, 5, 10, …, or every third of them where they are many."""
    found = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5) if low * 0.999 <= m * 10.0**e <= high * 1.001]
    return found if len(found) <= 9 else [t for t in found if f"{t:e}"[0] == "1"]


def stats_png(
    path: str | os.PathLike, ratio: np.ndarray, names: Sequence[str], chosen: Sequence[int], layers: Sequence[int],
    title: str,
) -> None:
    """Draws channels that stand out: the chosen ones by layer, and all channels in their order below.

    `ratio` is (n_layers, n_channels), the rms relative to the median of its layer; `names` names the channels,
    `chosen` are indices of those of the upper picture, largest first.
    """
    with figure_png(path, [], title) as (figure, _, title):
        from matplotlib.colors import LogNorm

        columns, rows = len(chosen), len(layers)
        width, tall, low = max(5.0, 0.2 * columns), max(0.5, min(0.17 * rows, 8.0)), 1.6
        gap = 0.95
        height = tall + gap + low
        figure.set_size_inches(width, height)

        axes = figure.add_axes((0, 1 - tall / height, 1, tall / height))
        norm = LogNorm(1.0, _top(ratio))
        mesh = axes.pcolormesh(
            np.maximum(ratio[:, chosen], 1.0), cmap="Blues", norm=norm, edgecolors="white", linewidth=0.6
        )
        axes.set_xticks(np.arange(columns) + 0.5, [names[i] for i in chosen], rotation=90, fontsize=7)
        step = max(1, -(-rows // 40))
        axes.set_yticks(np.arange(0, rows, step) + 0.5, [str(layer) for layer in layers[::step]], fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("layer")
        axes.set_xlabel("channel, largest first")
        axes.set_title(title, loc="left", fontsize=10, pad=8)
        bar = colour_bar(figure, axes, mesh, "rms / median")
        _label(bar.yaxis, _ticks(1.0, _top(ratio)))

        below = figure.add_axes((0, 0, 1, low / height))
        high, middle = ratio.max(axis=0), np.median(ratio, axis=0)
        x = np.arange(len(high))
        below.vlines(x, np.maximum(middle, 1e-3), np.maximum(high, 1e-3), color="#9ecae1", linewidth=0.6)
        below.plot(x, high, ".", color="#08519c", markersize=2.5)
        below.set_yscale("log")
        _label(below.yaxis, _ticks(*below.get_ylim()))
        below.set_xlim(-0.01 * len(high), 1.01 * len(high))
        for i in chosen[:5]:
            below.annotate(
                names[i], (i, high[i]), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7
            )
        for side in ("top", "right"):
            below.spines[side].set_visible(False)
        below.set_ylabel("rms / median")
        below.set_xlabel("all channels in order; dot: in the layer where it is largest, line: down to its median layer")


def _label(axis, ticks: list[float]) -> None:
    """Plain numbers: powers of ten would be formulas, which are off because tokens hold dollar signs."""
    from matplotlib.ticker import NullLocator

    axis.set_minor_locator(NullLocator())
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])


def stats_html(
    path: str | os.PathLike, ratio: np.ndarray, names: Sequence[str], layers: Sequence[int],
    hover: Sequence[Sequence[str]], title: str,
) -> None:
    """Writes channels by layer as a page that works offline.

    `ratio` is (n_layers, n_channels), the rms relative to the median of its layer; `hover` tells more of each cell.
    """
    import plotly.graph_objects as go

    top = np.log10(_top(ratio))
    ticks = _ticks(1.0, _top(ratio))
    figure = go.Figure(
        go.Heatmap(
            z=np.log10(np.maximum(ratio, 1.0)).round(4).tolist(), zmin=0, zmax=float(top),
            hovertext=[[escaped(text) for text in row] for row in hover], hovertemplate="%{hovertext}<extra></extra>",
            colorscale="Blues", xgap=1, ygap=1,
            colorbar={
                "title": "rms / median", "thickness": 16, "tickvals": np.log10(ticks).tolist(),
                "ticktext": [f"{tick:g}" for tick in ticks],
            },
        )
    )
    figure.update_layout(
        title=escaped(title), width=max(520, 16 * len(names) + 260), height=max(260, 18 * len(layers) + 210),
        margin={"t": 90, "b": 90},
        xaxis={
            "title": "channel, largest first", "tickvals": list(range(len(names))), "ticktext": list(names),
            "showgrid": False, "tickangle": -90, "tickfont": {"size": 9},
        },
        yaxis={
            "title": "layer", "tickvals": list(range(len(layers))), "ticktext": [str(layer) for layer in layers],
            "showgrid": False, "tickfont": {"size": 9},
        },
        hoverlabel={"font": {"family": "monospace"}, "align": "left"}, plot_bgcolor="white",
    )
    write_html(path, figure)
