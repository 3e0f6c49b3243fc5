"""What every picture shares: text that can be shown, fonts, and files written whole."""

from __future__ import annotations

import contextlib
import html
import operator
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .. import files
from ..errors import SiteError

# ---------------------------------------------------------------- text

DPI = 120

_GLYPHS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}

# Tried in this order, if installed, for characters that the base font lacks.
_BASE_FONT = "DejaVu Sans"
_MORE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "PingFang SC",
    "Hiragino Sans", "Microsoft YaHei", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai",
    "Noto Sans Bengali", "Arial Unicode MS", "Symbola", "Noto Emoji", "FreeSans", "Unifont",
)


def visible(piece: str, width: int | None = None) -> str:
    """A token's text as it can be shown in a cell.

    Spaces become `␣`, newlines `↵`, tabs `⇥`; what cannot be printed is escaped
    and an empty text becomes `∅`. With `width`, a longer text is cut to that
    many columns, the last of them `…`; an East Asian character takes two.
    """
    text = "".join(_GLYPHS.get(c) or (c if c.isprintable() else repr(c)[1:-1]) for c in piece) or "∅"
    return text if width is None else _shortened(text, width)


def _shortened(text: str, width: int) -> str:
    if columns(text) <= width:
        return text
    cut = ""
    for c in text:
        if columns(cut + c) > width - 1:
            break
        cut += c
    return cut + "…"


def columns(text: str) -> int:
    """How many character cells a text takes; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words: `0-5, 8`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def whole(number: object, what: str) -> int:
    """`number` as an int; raises SiteError, naming `what`, where it is not a whole one."""
    try:
        return operator.index(number)
    except TypeError:
        raise SiteError(f"a {what} is a whole number, not {number!r}") from None


def _fonts(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """The font families that show these texts, and the characters that none of them has."""
    from matplotlib import font_manager

    def covered(family: str, chars: set[str]) -> set[str]:
        face = font_manager.get_font(font_manager.findfont(family))
        return {c for c in chars if face.get_char_index(ord(c))}

    families = [_BASE_FONT]
    missing = {c for text in texts for c in text if ord(c) > 126}
    missing -= covered(_BASE_FONT, missing)
    if missing:
        installed = set(font_manager.get_font_names())
        for family in _MORE_FONTS:
            found = covered(family, missing) if missing and family in installed else set()
            if found:
                families.append(family)
                missing -= found
    return families, missing


def _spelled(text: str, missing: set[str]) -> str:
    """Characters that no font has, by their code point: an empty box says nothing."""
    return "".join(f"U+{ord(c):X}" if c in missing else c for c in text)


# ---------------------------------------------------------------- files


def written(path: str | os.PathLike, suffixes: Sequence[str]) -> contextlib.AbstractContextManager[Path]:
    """Yields a temporary path beside `path`, as `interp.files.written` does; parent folders are created.

    Pictures come in many and are made again at will, so a new folder for them is no mistake.
    """
    return files.written(path, suffixes, make_folders=True)


@contextlib.contextmanager
def figure_png(path: str | os.PathLike, pieces: Iterable[str], title: str) -> Iterator[tuple]:
    """Yields a new figure, a function that makes a piece showable, and the title to draw.

    The figure becomes a PNG at the end. The function takes a piece and a width in columns.
    """
    with written(path, (".png",)) as temporary:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        families, missing = _fonts({visible(piece) for piece in pieces} | {title})

        def show(piece: str, width: int) -> str:
            return _shortened(_spelled(visible(piece), missing), width)

        # Tokens hold dollar signs, which matplotlib would otherwise take for formulas.
        with matplotlib.rc_context({"font.family": families, "text.parse_math": False, "font.size": 8}):
            # Figure without pyplot: no global state, no display, nothing left open.
            figure = Figure(dpi=DPI, facecolor="white")
            FigureCanvasAgg(figure)
            yield figure, show, _spelled(title, missing)
            figure.savefig(temporary, bbox_inches="tight", pad_inches=0.15)


def write_html(path: str | os.PathLike, figure) -> None:
    with written(path, (".html", ".htm")) as temporary:
        # plotly.js goes into the file, so that it opens without a network.
        page = figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True)
        temporary.write_text(page, encoding="utf-8")


def escaped(text: str) -> str:
    """Text for plotly, which reads tags in every label."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def colour_bar(figure, axes, image, label: str):
    """A colour bar of fixed size at the right: a share of a wide or tall figure would be a slab. Returns its axes."""
    width, height = figure.get_size_inches()
    box = axes.get_position()
    tall = np.clip(box.height * height, 1.4, 3.2) / height
    bar = figure.add_axes((box.x1 + 0.15 / width, box.y1 - tall, 0.14 / width, tall))
    figure.colorbar(image, cax=bar, label=label)
    bar.spines[:].set_visible(False)
    return bar
