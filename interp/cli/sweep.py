"""`llama-interp sweep`: activation patching over all layers and positions, or heads."""

from __future__ import annotations

import click

from .arguments import Layers, Positions
from .base import model_option
from .names import check_positions
from .results import Pairing, Results, pair_options, result_options
from .root import cli


@cli.command()
@model_option
@pair_options
@click.option("--site", default="l_out", show_default=True, metavar="SITE", help="What is patched.")
@click.option("--per-head", is_flag=True, help="Each head at all positions, instead of each position; for z, q, k, v.")
@click.option("--layers", type=Layers(), metavar="LAYERS", help="5, 3,7, 0-11, -1 or all.")
@click.option("--positions", type=Positions(generated=False), metavar="POS", help="3,7, 0-4 or -1; without it all.")
@result_options()
def sweep(
    path: str | None, pairing: Pairing, direction: str, site: str, per_head: bool, layers, positions, results: Results
) -> None:
    """Which layer, position or head carries the answer.

    Patches each of them from one prompt into the other and measures what the model answers. Ctrl-C ends the sweep, and
    what was measured until then is shown and written.
    """
    import interp

    model = pairing.load(path)
    if not pairing.is_list:
        check_positions(model, pairing.clean, positions, "--positions")
    made = interp.patch_sweep(
        model, pairing.clean, pairing.corrupted, site, metric=pairing.metric(model), per_head=per_head, layers=layers,
        positions=positions, direction=direction,
    )
    results.give(model, made)
