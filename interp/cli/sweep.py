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
from .root import cli


@cli.command()
@model_option
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="The clean prompt: the model does what is studied.")
@click.option("--corrupted", required=True, metavar="TEXT", help="One of as many tokens in which it does not.")
@click.option("--answer", required=True, metavar="TOKEN", help="What is measured: this token's probability …")
@click.option("--instead", metavar="TOKEN", help="… or its logit minus that of this token.")
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
    path: str | None, prompt: str, corrupted: str, answer: str, instead: str | None, site: str, per_head: bool, layers,
    positions, direction: str, topk: int, out: Path | None, png: Path | None, html: Path | None, as_json: bool,
) -> None:
    """Which layer, position or head carries the answer.

    Patches each of them from one prompt into the other and measures what the model answers. Ctrl-C ends the sweep, and
    what was measured until then is shown and written.
    """
    import interp

    if isinstance(positions, str):
        if positions != "last":
            raise click.UsageError("--positions: nothing is generated here")
        positions = [-1]
    check_outputs(out, png, html)
    model = load(path, max(prompt, corrupted, key=len))
    for text in (answer, instead):
        if text is not None:
            _check_token(model, text)
    metric = interp.probability(answer) if instead is None else interp.logit_diff(answer, instead)
    try:
        made = interp.patch_sweep(
            model, prompt, corrupted, site, metric=metric, per_head=per_head, layers=layers, positions=positions,
            direction=direction,
        )
    except RunError as err:
        one, other = model.tokens(prompt), model.tokens(corrupted)
        if len(one) != len(other) or one == other:
            raise click.UsageError(str(err)) from err
        raise
    written = [file for file in (out, png, html) if file is not None]
    for write, file in ((made.save, out), (made.plot, png), (made.html, html)):
        if file is not None:
            write(file)
    if as_json:
        names = "site metric direction clean corrupted layers positions heads tokens pieces values effects complete"
        found = {name: getattr(made, name) for name in names.split()}
        print_json({**described(model), **found, "top": [cell._asdict() for cell in made.top(topk)], "files": written})
        return
    made.print(topk, output.console())
    if not made.complete:
        click.echo("\ninterrupted: this is what was measured until then")
    output.wrote(written)


def _check_token(model, text: str) -> None:
    from ..vocab import one_token

    try:
        one_token(model, text)
    except RunError as err:
        raise click.UsageError(str(err)) from err
