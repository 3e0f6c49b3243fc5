"""`llama-interp stats`: statistics of activations over a text file."""

from __future__ import annotations

from pathlib import Path

import click

from .. import files
from ..sites import parse
from . import output
from .arguments import Count, Layers, Output, Source
from .base import check_outputs, json_option, load, model_option
from .edits import Edits, edit_options
from .output import described, print_json
from .root import cli


@cli.command()
@click.argument("corpus", type=Source(), metavar="TEXTFILE")
@model_option
@click.option(
    "--site", "sites", multiple=True, metavar="SITE", default=("l_out",),
    help="What to measure, l_out if not given; several are possible.",
)
@click.option("--layers", type=Layers(), metavar="LAYERS", help="5, 3,7, 0-11, -1 or all.")
@click.option(
    "--top", type=Count(0, 4096), default=10, show_default=True, metavar="K",
    help="Largest values kept of each channel, with the tokens around them.",
)
@click.option("--skip-first", is_flag=True, help="Leave out the first token of each context, where sinks sit.")
@click.option("--max-tokens", type=Count(1), metavar="N", help="End after so many tokens.")
@click.option("--topk", type=Count(1), default=20, show_default=True, metavar="K", help="Channels listed.")
@click.option("--out", type=Output(*files.SUFFIXES), metavar="FILE", help="Save everything; also for --ablate-from.")
@click.option("--png", type=Output(".png"), metavar="PATH.png", help="Draw the outlier channels of one site.")
@click.option("--html", type=Output(".html", ".htm"), metavar="PATH.html", help="The same as a page with details.")
@edit_options()
@json_option
def stats(
    path: str | None, corpus: Path, sites: tuple[str, ...], layers, top: int, skip_first: bool, max_tokens: int | None,
    topk: int, out: Path | None, png: Path | None, html: Path | None, edits: Edits, as_json: bool,
) -> None:
    """Statistics of activations over a text file, in one pass.

    Lists the outlier channels: those whose root mean square is largest beside the median of their layer. Ctrl-C ends
    the reading, and what was counted until then is shown and written.
    """
    import interp

    sites = tuple(dict.fromkeys(sites))
    if len(sites) > 1 and (png or html):
        raise click.UsageError("--png and --html show one site: give one --site")
    if layers is not None and (named := [site for site in sites if parse(site)[1] is not None]):
        raise click.UsageError(f"--layers is for sites without a layer: {named[0]} names one")
    check_outputs(out, png, html)
    model = load(path)
    built = edits.build(model)
    made = interp.stats(
        model, corpus, sites=sites, layers=layers, n_top=top, skip_first=skip_first, max_tokens=max_tokens, edits=built,
    )
    written = [file for file in (out, png, html) if file is not None]
    for write, file in ((made.save, out), (made.plot, png), (made.html, html)):
        if file is not None:
            write(file)
    if as_json:
        found = {site: outliers_json(made, site, topk) for site in made.sites}
        print_json({**described(model, edits=built), "info": made.info, "outliers": found, "files": written})
        return
    for site in made.sites:
        made.print(site, k=topk)
        click.echo()
    if not made.complete:
        click.echo("interrupted: this is what was counted until then")
    output.wrote(written)


def outliers_json(made, site: str, k: int) -> list[dict]:
    """The channels that stand out, with their range."""
    rows = []
    for found in made.outliers(site, k):
        row = {"layer": found.layer, "channel": found.channel, "rms": found.rms, "ratio": found.ratio}
        for name in ("mean", "std", "min", "max", "sparsity"):
            row[name] = getattr(made, name)(site, found.layer)[found.channel]
        rows.append(row)
    return rows
