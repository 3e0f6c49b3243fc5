"""`llama-interp induction`: induction scores of all heads."""

from __future__ import annotations

import click

from .arguments import Count
from .base import load, model_option
from .results import Results, as_usage, result_options
from .root import cli


@cli.command()
@model_option
@click.option(
    "--tokens", "n_tokens", type=Count(2, 1 << 20), default=50, show_default=True, metavar="N",
    help="Random tokens, given twice.",
)
@click.option(
    "--batch", "n_batch", type=Count(1), default=4, show_default=True, metavar="N", help="Sequences that are averaged.",
)
@click.option("--seed", type=Count(), default=0, show_default=True, metavar="N", help="Of the random tokens.")
@result_options()
def induction(path: str | None, n_tokens: int, n_batch: int, seed: int, results: Results) -> None:
    """Which heads look at what followed a token the last time.

    Gives random tokens twice, and averages each head's attention from the second copy to what followed in the first.
    Ctrl-C ends this, and what was averaged until then is shown and written.
    """
    import interp

    model = load(path, more=2 * n_tokens)
    with as_usage():
        made = interp.induction_scores(model, n_tokens, n_batch, seed)
    results.give(model, made)
