"""`llama-interp run`: the likeliest next tokens, with and without edits, and what sites held."""

from __future__ import annotations

from pathlib import Path

import click

from .. import files
from . import output
from .arguments import Count, Output
from .base import check_outputs, json_option, load, model_option, prompt_option
from .edits import Edits, edit_options
from .generate import check_state, state_options, write_state
from .output import described, likeliest, print_json, print_likeliest
from .root import cli, runs, save_sites


@cli.command()
@model_option
@prompt_option
@click.option("--topk", type=Count(1), default=5, show_default=True, metavar="K", help="How many tokens.")
@edit_options()
@click.option(
    "--save", "saves", type=(str, Output(*files.SUFFIXES)), multiple=True, metavar="SITE FILE",
    help="Save what a site held, after the edits.",
)
@state_options
@json_option
def run(
    path: str | None, prompt: str, topk: int, edits: Edits, saves: tuple[tuple[str, Path], ...],
    save_state: Path | None, load_state: Path | None, as_json: bool,
) -> None:
    """The likeliest next tokens, with and without edits."""
    check_state(save_state, load_state)
    check_outputs(save_state, *dict.fromkeys(file for _, file in saves))
    model = load(path, prompt)
    built = edits.build(model)
    if load_state is not None:
        model.load_state(load_state)
    after, before = runs(model, prompt, built, list(dict.fromkeys(site for site, _ in saves)), compare=True)
    written = save_sites(after, saves)
    if save_state is not None:
        write_state(model, prompt, save_state)
        written.append(save_state)
    top, other = likeliest(after, topk), before and likeliest(before, topk)
    if as_json:
        result = {**described(model, after, built), "top": top}
        print_json({**result, **({"top_without_edits": other} if before else {}), "files": written})
        return
    print_likeliest(top, other)
    output.wrote(written)
