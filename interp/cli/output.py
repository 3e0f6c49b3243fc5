"""Printing: tables on a terminal or in a pipe, and results as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from .. import plot

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..edits import Edit
    from ..lens import Lens
    from ..model import Model
    from ..run import Run


def console() -> Console:
    from rich.console import Console

    made = Console(highlight=False)
    # A pipe has no width of its own, and rich would cut every table to 80 columns.
    return made if made.is_terminal else Console(width=1000, no_color=True, highlight=False)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; columns whose name starts with `>` are aligned right."""
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, title_justify="left", title_style="bold",
    )
    for i, column in enumerate(columns):
        right = column.startswith(">")
        made.add_column(column.lstrip(">"), justify="right" if right else "left", style="cyan" if i == 0 else None)
    return made


def show(made: Table) -> None:
    """Prints a table. Its title stands on lines of its own: rich would wrap it to the width of the columns."""
    title, made.title = made.title, None
    out = console()
    if title:
        out.print(title, style="bold", soft_wrap=True, markup=False)
    out.print(made)


def wrote(paths: Sequence[Path]) -> None:
    for path in paths:
        click.echo(f"wrote {path}")


def shape_text(shape: Sequence[int | None]) -> str:
    return " x ".join("n" if size is None else str(size) for size in shape)


# // JSON


def print_json(result: Mapping) -> None:
    """One JSON object on stdout. JSON has no infinity and no NaN: they become null."""
    json.dump(_plain(result), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def described(model: Model, run: Run | None = None, edits: Sequence[Edit] = ()) -> dict:
    """What every JSON object begins with: the model, the prompt and the edits."""
    result: dict = {
        "model": {
            "name": model.name, "path": str(model.path), "arch": model.arch, "n_layer": model.n_layer,
            "n_head": model.n_head, "n_embd": model.n_embd,
        },
    }
    if run is not None:
        result |= {"prompt": run.prompt, "tokens": run.tokens, "pieces": run.pieces}
    result["edits"] = [repr(edit).strip("<>") for edit in edits]
    return result


def likeliest(run: Run, k: int) -> list[dict]:
    """The likeliest next tokens: `id`, `piece`, `prob` and `logit` of each."""
    logits = run.logits[-1]
    if not np.isfinite(logits).any():
        return []
    high = float(logits.max())
    total = np.exp(logits.astype(np.float64) - high).sum()
    ids = np.argsort(-logits, kind="stable")[:k].tolist()
    found = []
    for token, piece in zip(ids, run.model.pieces(ids)):
        logit = float(logits[token])
        found.append({"id": token, "piece": piece, "prob": float(np.exp(logit - high) / total), "logit": logit})
    return found


def lens_json(lens: Lens) -> dict:
    """All layers and positions of a lens: for each position the layers, each with its `top` tokens."""
    return {
        "site": lens.site,
        "layers": lens.layers,
        "positions": [
            {
                "position": position,
                "piece": piece,
                "layers": [
                    {"layer": layer, "top": [{"piece": text, "prob": prob} for text, prob in lens.top(layer, position)]}
                    for layer in lens.layers
                ],
            }
            for position, piece in enumerate(lens.pieces)
        ],
    }


# // the likeliest next tokens


def _cell(entry: dict | None) -> str:
    return "" if entry is None else f"{100 * entry['prob']:6.2f} %  {plot.visible(entry['piece'], 20)}"


def print_likeliest(top: list[dict], before: list[dict] | None = None) -> None:
    """The likeliest next tokens; with `before`, those of the run without edits beside them."""
    from rich.text import Text

    if not top:
        click.echo("the logits are not finite: an edit drove them to infinity or NaN")
        return
    if before is None:
        for entry in top:
            click.echo(f"{100 * entry['prob']:6.2f} %  {entry['piece']!r}")
        return
    made = table(">", "without edits", "with edits")
    for rank in range(max(len(top), len(before))):
        cells = [_cell(side[rank] if rank < len(side) else None) for side in (before, top)]
        made.add_row(str(rank + 1), *map(Text, cells))
    show(made)
