"""`llama-interp attention`: where heads look, as a table of the strongest edges and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from .. import plot
from ..attention import SITE, Attention
from ..attention import attention as attention_of
from ..sites import at
from . import output
from .arguments import Count, Integer, Output, Positions
from .base import check_outputs, json_option, load, model_option, prompt_option
from .edits import Edits, edit_options
from .names import check_positions
from .output import described, print_json
from .root import cli, runs

if TYPE_CHECKING:
    from ..run import Run


@cli.command()
@model_option
@prompt_option
@click.option("--layer", type=Integer(), metavar="LAYER", help="Only this layer; negative counts from the end.")
@click.option("--head", type=Integer(), metavar="HEAD", help="Of this layer only this head.")
@click.option(
    "--queries", type=Positions(generated=False), metavar="POS",
    help="Only these tokens that look: 3,7, 0-4, -1 or last.",
)
@click.option("--topk", type=Count(1), default=15, show_default=True, metavar="K", help="Edges listed.")
@click.option(
    "--first", is_flag=True, help="List looks at the first token too; it is where idle heads rest (attention sinks)."
)
@click.option(
    "--png", type=Output(".png"), metavar="PATH.png",
    help="Draw: one head large, all heads of a layer as a grid, or everything small.",
)
@click.option("--html", type=Output(".html", ".htm"), metavar="PATH.html", help="One head as a page with details.")
@edit_options()
@json_option
def attention(
    path: str | None, prompt: str, layer: int | None, head: int | None, queries, topk: int, first: bool,
    png: Path | None, html: Path | None, edits: Edits, as_json: bool,
) -> None:
    """Where heads look: the strongest edges, and pictures.

    Without --layer all layers and heads are read. The JSON object holds every weight of what was chosen.
    """
    if head is not None and layer is None:
        raise click.UsageError("--head needs its layer: --layer LAYER")
    if html and (layer is None or head is None):
        raise click.UsageError("--html shows one head: give --layer and --head")
    check_outputs(png, html)
    model = load(path, prompt)
    check_positions(model, prompt, queries, "--queries")
    built = edits.build(model)
    selector = at(SITE, layers=layer, heads=head, queries=queries)
    run, _ = runs(model, prompt, built, [selector], compare=False)
    found = attention_of(run, layers=layer, heads=head)

    written = []
    for write, file in ((found.plot, png), (found.html, html)):
        if file is not None:
            write(file, **{"layer": layer, "head": head} if layer is not None else {})
            written.append(file)
    edges = strongest(found, run, topk, first)
    if as_json:
        patterns = [
            {"layer": il, "head": h, "queries": run.positions(SITE, il), "weights": weights}
            for il in found.layers for h, weights in zip(*found._patterns(il))
        ]
        print_json({**described(model, run, built), "edges": edges, "attention": patterns, "files": written})
        return
    _print(edges, run, first)
    output.wrote(written)


def strongest(found: Attention, run: Run, k: int, first: bool) -> list[dict]:
    """The k edges of the largest weight, largest first; of the first token's own look there is no choice."""
    edges = []
    for layer in found.layers:
        heads, weights = found._patterns(layer)
        queries = run.positions(SITE, layer)
        # A prefix has keys too, in front of the prompt's.
        before = weights.shape[-1] - len(run.tokens)
        left_out = np.zeros(weights.shape, bool)
        left_out[..., 0] = not first
        left_out[:, [i for i, query in enumerate(queries) if query == 0]] = True
        flat = np.where(left_out, -1.0, weights).ravel()
        for i in np.argsort(-flat, kind="stable")[:k]:
            if flat[i] <= 0.0:
                break
            head, query, key = np.unravel_index(int(i), weights.shape)
            edges.append({
                "layer": layer, "head": heads[head], "query": queries[query], "key": int(key) - before,
                "weight": float(weights[head, query, key]),
            })
    return sorted(edges, key=lambda edge: -edge["weight"])[:k]


def _print(edges: list[dict], run: Run, first: bool) -> None:
    from rich.text import Text

    if not edges:
        click.echo("no edges: from the first token on there is nothing to choose; a longer prompt has some")
        return

    def named(position: int) -> Text:
        # what lies in a prefix has no piece here
        piece = plot.visible(run.pieces[position], 20) if position >= 0 else "(prefix)"
        return Text(f"{position:>4}  {piece}")

    title = "strongest looks" + ("" if first else ", without those at the first token (--first lists them)")
    made = output.table(">layer", ">head", ">weight", "query: looks", "key: is looked at", title=title)
    for edge in edges:
        made.add_row(
            str(edge["layer"]), str(edge["head"]), f"{edge['weight']:.3f}", named(edge["query"]), named(edge["key"]),
        )
    output.show(made)
