"""`llama-interp knockout`: edges of attention cut in a window of layers around each."""

from __future__ import annotations

from collections.abc import Iterable

import click

from .arguments import Count, Keys, Layers, Positions
from .base import load, model_option, prompt_option
from .names import check_positions, numbered
from .results import Results, answer_options, metric_of, result_options
from .root import cli


@cli.command()
@model_option
@prompt_option
@answer_options()
@click.option(
    "--keys", "sets", type=Keys(), multiple=True, metavar="[NAME=]POS",
    help="The tokens that are no longer seen: 1-3, or subject=1-3; several are lines of one picture. Without it the "
    "prompt's tokens are listed with their numbers.",
)
@click.option(
    "--queries", type=Positions(generated=False), default="-1", show_default=True, metavar="POS",
    help="The tokens that no longer see them: 3,7, 0-4, -1 or all.",
)
@click.option("--window", type=Count(1), default=9, show_default=True, metavar="N", help="In how many layers at once.")
@click.option("--layers", type=Layers(), metavar="LAYERS", help="Around which: 5, 3,7, 0-11, -1 or all.")
@result_options()
def knockout(
    path: str | None, prompt: str, answer: str, instead: str | None, sets: tuple, queries, window: int, layers,
    results: Results,
) -> None:
    """What the answer loses when tokens no longer see others.

    Cuts the attention from the queries to the keys in a window of layers around each layer, and measures what the
    model answers: where it falls, information passes. Ctrl-C ends the sweep, and what was measured until then is shown
    and written.
    """
    import interp

    names = [name for name, _ in sets]
    for name in names:
        if names.count(name) > 1:
            raise click.UsageError(f"--keys {name}: given twice; each needs a name of its own")
    model = load(path, prompt)
    if not sets:
        raise click.UsageError(f"which tokens are no longer seen? --keys POS; the prompt has {numbered(model, prompt)}")
    metric = metric_of(model, answer, instead)

    def counted(positions: Iterable[int] | None, option: str) -> list[int]:
        check_positions(model, prompt, positions, option)
        return list(range(len(model.tokens(prompt))) if positions is None else positions)

    keys = {name: counted(positions, f"--keys {name}") for name, positions in sets}
    chosen = counted(queries, "--queries")
    results.give(model, interp.knockout_sweep(model, prompt, metric, chosen, keys, window=window, layers=layers))
