"""Two prompts, position by position: whether they can be patched into each other, and how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import plot
from .errors import RunError

if TYPE_CHECKING:
    from .model import Model

#: which of the two is run: the corrupted one, with clean values, or the clean one, with corrupted values
DIRECTIONS = ("denoise", "noise")


def read_pair(model: Model, clean, corrupted, direction: str) -> tuple[list[list[int]], list[list[str]], int]:
    """Two prompts, texts or token ids, of which one is patched into the other.

    Returns:
        The tokens of both, their pieces, and which of the two is run: 0 is the clean one.

    Raises:
        RunError: they are of different lengths, or the same; or there is no such direction.
    """
    if direction not in DIRECTIONS:
        raise RunError(f'direction={direction!r}: give "denoise" or "noise".')
    tokens = [model._prompt(prompt) for prompt in (clean, corrupted)]
    pieces = [model.pieces(part) for part in tokens]
    check_pair(*tokens, *pieces)
    return tokens, pieces, 1 if direction == "denoise" else 0


def check_pair(clean: list[int], corrupted: list[int], *pieces: list[str]) -> None:
    """
    Raises:
        RunError: the two prompts are of different lengths, or the same.
    """
    if len(clean) != len(corrupted):
        shown = "; ".join(
            f"{name}: {' '.join(map(repr, part[:40]))}{' …' if len(part) > 40 else ''}"
            for name, part in zip(("clean", "corrupted"), pieces)
        )
        raise RunError(
            f"The clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}: position by position, "
            f"they must have the same number. Reword one of them. {shown}"
        )
    if clean == corrupted:
        raise RunError("The clean and the corrupted prompt are the same: patching one into the other changes nothing.")


def two_prompts(pair: tuple[list[str], list[str]], values: tuple[float, float], width: int) -> list[str]:
    """The clean and the corrupted prompt in a line each, around the first token in which they differ."""
    first = next((i for i, (a, b) in enumerate(zip(*pair)) if a != b), 0)
    return [
        f"{name}: {around(part, first, width)} ({value:.2f})".replace("(-", "(−")
        for name, part, value in zip(("clean", "corrupted"), pair, values)
    ]


def around(pieces: list[str], first: int, width: int) -> str:
    """A prompt in at most ``width`` columns; where it is longer, what lies around one of its tokens."""
    text = plot.visible("".join(pieces)).replace("␣", " ").strip()
    if plot.columns(text) <= width:
        return text
    start = first
    while start > 0 and plot.columns("".join(pieces[start - 1 : first + 1])) < width // 2:
        start -= 1
    text = ("… " if start else "") + "".join(pieces[start:]).strip()
    return plot.visible(text, width).replace("␣", " ")
