"""`llama-interp sweep`: activation patching over all layers and positions, or heads."""

from __future__ import annotations

from pathlib import Path

import click

from .. import files
from ..errors import RunError
from . import output
from .arguments import Count, Layers, Output, Positions
from .base import check_outputs, json_option, load, model_option
from .output import described, print_json
from .pairs import Pair, Pairs
from .root import cli


@cli.command()
@model_option
@click.option("-p", "--prompt", metavar="TEXT", help="The clean prompt: the model does what is studied.")
@click.option("--corrupted", metavar="TEXT", help="One of as many tokens in which it does not.")
@click.option("--answer", metavar="TOKEN", help="What is measured: this token's probability …")
@click.option("--instead", metavar="TOKEN", help="… or its logit minus that of this token.")
@click.option(
    "--pairs", type=Pairs(), metavar="FILE",
    help="Instead of these: many pairs, whose mean is shown; .jsonl or .csv with clean, corrupted, answer, instead.",
)
@click.option("--site", default="l_out", show_default=True, metavar="SITE", help="What is patched.")
@click.option("--per-head", is_flag=True, help="Each head at all positions, instead of each position; for z, q, k, v.")
@click.option("--layers", type=Layers(), metavar="LAYERS", help="5, 3,7, 0-11, -1 or all.")
@click.option("--positions", type=Positions(), metavar="POS", help="3,7, 0-4 or -1; without it all.")
@click.option(
    "--direction", type=click.Choice(["denoise", "noise"]), default="denoise", show_default=True,
    help="denoise: clean values into the corrupted run; noise: the other way round.",
)
@click.option("--topk", type=Count(1), default=10, show_default=True, metavar="K", help="Largest effects listed.")
@click.option("--out", type=Output(*files.SUFFIXES), metavar="FILE", help="Save the sweep.")
@click.option("--png", type=Output(".png"), metavar="PATH.png", help="Draw it.")
@click.option("--html", type=Output(".html", ".htm"), metavar="PATH.html", help="The same as a page with details.")
@json_option
def sweep(
    path: str | None, prompt: str | None, corrupted: str | None, answer: str | None, instead: str | None,
    pairs: list[Pair] | None, site: str, per_head: bool, layers, positions, direction: str, topk: int,
    out: Path | None, png: Path | None, html: Path | None, as_json: bool,
) -> None:
    """Which layer, position or head carries the answer.

    Patches each of them from one prompt into the other and measures what the model answers. Ctrl-C ends the sweep, and
    what was measured until then is shown and written.
    """
    if isinstance(positions, str):
        if positions != "last":
            raise click.UsageError("--positions: nothing is generated here")
        positions = [-1]
    check_outputs(out, png, html)
    _check_given(pairs, {"-p": prompt, "--corrupted": corrupted, "--answer": answer}, instead)
    one = pairs is None
    pairs = [Pair(prompt, corrupted, answer, instead)] if one else pairs
    model = load(path, max((text for pair in pairs for text in (pair.clean, pair.corrupted)), key=len))
    options = {"site": site, "per_head": per_head, "layers": layers, "positions": positions, "direction": direction}
    made = _of_one(model, pairs[0], options) if one else _of_many(model, pairs, options)
    written = [file for file in (out, png, html) if file is not None]
    for write, file in ((made.save, out), (made.plot, png), (made.html, html)):
        if file is not None:
            write(file)
    if as_json:
        found = _of_sweep(made) if one else _of_mean(made)
        print_json({**described(model), **found, "top": [cell._asdict() for cell in made.top(topk)], "files": written})
        return
    made.print(topk, output.console())
    if not made.complete:
        click.echo("\ninterrupted: this is what was measured until then")
    output.wrote(written)


def _check_given(pairs: list[Pair] | None, needed: dict[str, str | None], instead: str | None) -> None:
    if pairs is None:
        if missing := [flag for flag, text in needed.items() if text is None]:
            raise click.UsageError(f"missing option '{missing[0]}', or --pairs FILE")
    elif extra := [flag for flag, text in {**needed, "--instead": instead}.items() if text is not None]:
        raise click.UsageError(f"--pairs has prompts and answers of its own: leave {', '.join(extra)} out")


def _of_one(model, pair: Pair, options: dict):
    import interp

    for text in (pair.answer, pair.instead):
        if text is not None:
            _check_token(model, text)
    try:
        return interp.patch_sweep(model, pair.clean, pair.corrupted, metric=pair.metric(), **options)
    except RunError as err:
        clean, corrupted = model.tokens(pair.clean), model.tokens(pair.corrupted)
        if len(clean) != len(corrupted) or clean == corrupted:
            raise click.UsageError(str(err)) from err
        raise


def _of_many(model, pairs: list[Pair], options: dict):
    import interp

    clean, corrupted, metrics = zip(*((pair.clean, pair.corrupted, pair.metric()) for pair in pairs))
    return interp.patch_sweep(model, clean, corrupted, metric=metrics, **options)


def _of_sweep(made) -> dict:
    names = "site metric direction clean corrupted layers positions heads tokens pieces values effects complete"
    return {name: getattr(made, name) for name in names.split()}


def _of_mean(made) -> dict:
    names = "metric clean corrupted layers positions heads values effects normalized complete n_given each"
    low, high = made.interval()
    single = {name: getattr(made.results[0], name) for name in ("site", "direction")}
    return {**single, **{name: getattr(made, name) for name in names.split()}, "low": low, "high": high}


def _check_token(model, text: str) -> None:
    from ..vocab import one_token

    try:
        one_token(model, text)
    except RunError as err:
        raise click.UsageError(str(err)) from err
