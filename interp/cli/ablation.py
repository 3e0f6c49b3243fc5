"""`llama-interp ablation`: each head, or each layer of a module, taken out in turn."""

from __future__ import annotations

from pathlib import Path

import click

from ..sweep import plan_of
from .arguments import Layers, Source
from .base import load, model_option, prompt_option
from .results import Results, answer_options, metric_of, result_options
from .root import cli
from .sources import Sources


@cli.command()
@model_option
@prompt_option
@answer_options()
@click.option(
    "--site", default="z", show_default=True, metavar="SITE",
    help="What is taken out: z, each head; mlp_out or attn_out, each layer's.",
)
@click.option(
    "--mean", type=Source(), metavar="FILE",
    help="Put the mean in its place, not zero: of a run saved with --save SITE FILE, or of statistics of SITE.",
)
@click.option("--layers", type=Layers(), metavar="LAYERS", help="5, 3,7, 0-11, -1 or all.")
@result_options()
def ablation(
    path: str | None, prompt: str, answer: str, instead: str | None, site: str, mean: Path | None, layers,
    results: Results,
) -> None:
    """What the answer loses without each head, or each MLP.

    Takes each of them out of the computation, one at a time, and measures what the model answers. Ctrl-C ends the
    sweep, and what was measured until then is shown and written.
    """
    import interp

    sources = Sources()
    if mean is not None:
        sources.read(mean)
    model = load(path, prompt)
    metric = metric_of(model, answer, instead)
    how = {}
    if mean is not None:
        chosen = plan_of(model, len(model.tokens(prompt)), site, False, layers, None).sites
        how = {"mode": "mean", "mean": sources.means(mean, model, site, set(chosen))}
    results.give(model, interp.ablation_sweep(model, prompt, metric, site, layers=layers, **how))
