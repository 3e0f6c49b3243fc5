"""Pictures of results: PNG through matplotlib, one-file HTML through plotly.

Nothing here knows a model: the functions take arrays and strings and write a
file. A file is written beside its target and renamed, so a run that is killed
leaves the old file or none, never half of one.
"""

from .attention import (
    attention_head_png,
    attention_html,
    attention_layer_png,
    attention_overview_png,
    thumbnail,
    unreachable,
)
from .base import columns, spans, visible, whole, written
from .lens import lens_html, lens_png
from .lines import lines_html, lines_png
from .stats import stats_html, stats_png
from .sweep import sweep_html, sweep_png

__all__ = [
    "attention_head_png", "attention_html", "attention_layer_png", "attention_overview_png", "columns",
    "lens_html", "lens_png", "lines_html", "lines_png", "spans", "stats_html", "stats_png", "sweep_html", "sweep_png",
    "thumbnail", "unreachable", "visible", "whole", "written",
]
