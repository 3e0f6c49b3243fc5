"""`llama-interp attribution`: what each part of the model adds to a logit."""

from __future__ import annotations

import click

from .arguments import Position
from .base import load, model_option, prompt_option
from .names import check_positions
from .results import Results, answer_options, check_tokens, result_options
from .root import cli


@cli.command()
@model_option
@prompt_option
@answer_options("What is explained: this token's logit …")
@click.option(
    "--position", type=Position(), default=-1, show_default=True, metavar="POS",
    help="After which token; negative counts from the end.",
)
@result_options()
def attribution(
    path: str | None, prompt: str, answer: str, instead: str | None, position: int, results: Results
) -> None:
    """What each head and each MLP adds to the answer's logit.

    Direct logit attribution: what each part of the model adds along the residual stream alone, in one run.
    """
    import interp

    model = load(path, prompt)
    check_positions(model, prompt, [position], "--position")
    check_tokens(model, answer, instead)
    results.give(model, interp.direct_logit_attribution(model, prompt, answer, instead, position))
