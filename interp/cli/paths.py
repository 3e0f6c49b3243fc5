"""`llama-interp paths`: path patching, from each head to chosen heads or to the logits."""

from __future__ import annotations

import click

from .arguments import Heads, Receivers
from .base import model_option
from .names import as_pair
from .results import Pairing, Results, pair_options, result_options
from .root import cli


@cli.command()
@model_option
@pair_options
@click.option(
    "--receivers", type=Receivers(), default="logits", show_default=True, metavar="L.H:q,…",
    help="Where the paths end: at the query (q), key (k) or value (v) of heads, or at the logits. k and v count the "
    "heads of the keys.",
)
@click.option("--senders", type=Heads(), metavar="L.H,…", help="Where they begin; without it at every head.")
@click.option("--freeze-mlp", is_flag=True, help="Hold the MLPs too, so that nothing passes through them.")
@result_options()
def paths(
    path: str | None, pairing: Pairing, direction: str, receivers, senders, freeze_mlp: bool, results: Results
) -> None:
    """What each head does through chosen heads, or by itself.

    Patches what each head sends along the direct paths to the receivers, and nothing else that it does, and measures
    what the model answers. Ctrl-C ends the sweep, and what was measured until then is shown and written.
    """
    import interp

    model = pairing.load(path)
    sender = None if senders is None else [as_pair(model, head, "--senders") for head in senders]
    made = interp.path_patch(
        model, pairing.clean, pairing.corrupted, sender, receivers, pairing.metric(model), freeze_mlp, direction
    )
    results.give(model, made)
