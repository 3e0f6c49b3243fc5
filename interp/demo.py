"""The demo: what the default model thinks at every layer, in the terminal and as three files.

Run by `python build.py demo`, or `python -m interp.demo` in the project's folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import interp

PROMPT = "The Eiffel Tower is located in the city of"
FOLDER = Path("out/demo")


def main() -> int:
    """Runs the demo; returns the exit code."""
    from rich.console import Console

    console = Console(highlight=False)
    try:
        model = interp.Model()
        run = model.run(PROMPT, capture=("l_out", "attn_scores"))
        lens = interp.logit_lens(run)
        attention = interp.attention(run)
        layer, head, key = looks_back(attention)
        files = FOLDER / "lens.png", FOLDER / "lens.html", FOLDER / "attention.png"
        lens.plot(files[0])
        lens.html(files[1])
        attention.plot(files[2], layer=layer, head=head)
    except interp.InterpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    lens.print(k=5)
    console.print("\nThe five likeliest next tokens", style="bold")
    for piece, prob in run.top(5):
        console.print(f"  {100 * prob:5.1f} %  {piece!r}", markup=False)
    weight = attention.pattern(layer)[head, -1, key]
    console.print(
        f"\nLayer {layer} head {head} looks far back: from {run.pieces[-1]!r} to {run.pieces[key]!r}, "
        f"weight {weight:.2f}\n", markup=False,
    )
    for file, what in zip(files, ("the lens", "the lens, with details under the pointer", "that head")):
        console.print(f"  {str(file):<24}{what}", markup=False)
    return 0


def looks_back(attention: interp.Attention) -> tuple[int, int, int]:
    """The layer, head and key of the strongest look from the last token far back in the prompt.

    The first token is left out, because idle heads rest there, and so are the last three,
    because many heads only look at their neighbours.
    """
    best = (-1.0, 0, 0, 0)
    for layer in attention.layers:
        far = attention.pattern(layer)[:, -1, 1:-3]
        head, key = np.unravel_index(far.argmax(), far.shape)
        best = max(best, (float(far[head, key]), layer, int(head), int(key) + 1))
    return best[1:]


if __name__ == "__main__":
    sys.exit(main())
