"""`llama-interp lens`: what each layer would predict, and where a chosen token stands."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .. import plot
from ..errors import RunError
from ..lens import Lens, logit_lens
from . import output
from .arguments import Count, Folder, Output, Position
from .base import check_outputs, json_option, load, model_option, prompt_option
from .edits import Edits, edit_options
from .names import check_positions, residual_sites
from .output import described, lens_json, print_json
from .root import cli, runs


@cli.command()
@click.argument("sites", nargs=-1, metavar="[SITE|all]…")
@model_option
@prompt_option
@click.option("--topk", type=Count(1), default=10, show_default=True, metavar="K", help="Tokens listed.")
@click.option(
    "--position", type=Position(), default=-1, show_default=True, metavar="POS",
    help="After which token the tables are; negative counts from the end.",
)
@click.option(
    "--token", "tokens", multiple=True, metavar="TEXT",
    help="Also the rank and the probability of a token over layers; most words begin with a space."
)
@click.option("--png", type=Output(".png"), help="Draw one site's lens at all positions.", metavar="PATH.png")
@click.option("--html", type=Output(".html", ".htm"), help="The same as a page with details.", metavar="PATH.html")
@click.option("--out", type=Folder(), metavar="DIR", help="Both for every site, as lens-SITE.png and .html in DIR.")
@edit_options()
@json_option
def lens(
    path: str | None, prompt: str, sites: tuple[str, ...], topk: int, position: int, tokens: tuple[str, ...],
    png: Path | None, html: Path | None, out: Path | None, edits: Edits, as_json: bool,
) -> None:
    """What each layer would predict, and where a token stands.

    SITE is any site of the residual stream's shape, l_out if none is given. Others are ffn_inp, attn_out, mlp_out, …;
    what is only a part of the stream is read as if it were all of it.
    """
    check_outputs(png, html)
    model = load(path, prompt)
    check_positions(model, prompt, [position], "--position")
    built = edits.build(model)
    chosen = [s for site in sites or ("l_out",) for s in (residual_sites(model) if site == "all" else [site])]
    chosen = list(dict.fromkeys(chosen))
    if len(chosen) > 1 and (png or html):
        raise click.UsageError("--png and --html take one site; --out DIR writes all of them")
    run, _ = runs(model, prompt, built, chosen, compare=False)
    lenses = [logit_lens(run, site=site, k=topk) for site in chosen]
    column = lenses[0]._column(position)
    standings = [{text: _standing(made, text) for text in tokens} for made in lenses]

    written = _write(lenses, png, html, out)
    if as_json:
        results = [
            {**lens_json(made), "tokens": [{"token": text, **found} for text, found in standing.items()]}
            for made, standing in zip(lenses, standings)
        ]
        print_json({**described(model, run, built), "logit_lens": results, "files": written})
        return
    for made, standing in zip(lenses, standings):
        made.print(position)
        click.echo()
        if standing:
            output.show(_standing_table(made, standing, column))
            click.echo()
    output.wrote(written)


def _standing(made: Lens, text: str) -> dict:
    """Rank (1 is the likeliest) and probability of a token, each (n_layers, n_positions)."""
    try:
        return {"rank": made.rank(text) + 1, "prob": made.prob(text)}
    except RunError as err:
        raise click.UsageError(f"--token: {err}") from err


def _standing_table(made: Lens, standing: dict[str, dict], column: int):
    from rich.text import Text

    names = [plot.visible(text, 20) for text in standing]
    title = f"rank and probability of {', '.join(names)} in {made.site} at position {column}"
    table = output.table(">layer", *(f">{name} {what}" for name in names for what in ("rank", "prob.")), title=title)
    for row, layer in enumerate(made.layers):
        cells = [
            cell for found in standing.values()
            for cell in (str(found["rank"][row, column]), f"{100 * found['prob'][row, column]:.3g} %")
        ]
        table.add_row(str(layer), *map(Text, cells))
    return table


def _write(lenses: list[Lens], png: Path | None, html: Path | None, out: Path | None) -> list[Path]:
    todo = [(lenses[0].plot, png), (lenses[0].html, html)]
    for made in lenses if out is not None else []:
        name = "lens-" + re.sub(r"[^\w.-]+", "_", made.site)
        todo += [(made.plot, out / f"{name}.png"), (made.html, out / f"{name}.html")]
    todo = [(write, path) for write, path in todo if path is not None]
    for write, path in todo:
        write(path)
    return [path for _, path in todo]
