"""`llama-interp -m MODEL -p PROMPT …`: the features of Llama.MIA, in any combination."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import files
from ..attention import SITE, attention
from ..lens import logit_lens
from . import output
from .arguments import Count, Output
from .base import Commands, check_outputs, json_option, load, model_option
from .edits import Edits, edit_options
from .generate import continued
from .names import residual_sites
from .output import described, lens_json, likeliest, print_json, print_likeliest

if TYPE_CHECKING:
    from ..model import Model
    from ..run import Run

_EXAMPLES = """
Examples:
  llama-interp -p "The Eiffel Tower is in" --ll l_out --draw attention.png
  llama-interp -p "The Colosseum is in" --save l_out rome.npz
  llama-interp -p "The Eiffel Tower is in" --patch l_out-24 rome.npz -1 -1
"""


class _Main(Commands):
    """The group, with a help that fits one screen."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))]
        with formatter.section("Options, in any combination"):
            formatter.write_dl(rows, col_max=31)
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands, each with more options (COMMAND --help)"):
            formatter.write_dl([(name, command.get_short_help_str(67)) for name, command in commands])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(_EXAMPLES)


@click.group(
    cls=_Main, invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    options_metavar="-p TEXT [OPTIONS]", subcommand_metavar="| COMMAND …",
)
@model_option
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt; alone: its likeliest tokens.")
@click.option(
    "--ll", "--logit-lens", "sites", multiple=True, metavar="SITE|all",
    help="What each layer would predict, read at SITE.",
)
@click.option(
    "--ll-topk", "--logit-lens-topk", "topk", type=Count(1), metavar="K",
    help="Tokens that the lens lists per layer; 10.",
)
@click.option(
    "-d", "--draw", type=Output(".png"), metavar="PATH.png", help="Draw the attention of all layers and heads."
)
@edit_options(full=False)
@click.option(
    "--save", "saves", type=(str, Output(*files.SUFFIXES)), multiple=True, metavar="SITE FILE",
    help="Save what a site held: .safetensors or .npz.",
)
@click.option("--print-cgraph", is_flag=True, help="Print the computation graph.")
@click.option("-n", "n_generate", type=Count(1), metavar="N", help="Generate N tokens.")
@json_option
@click.version_option(files._version(), prog_name="llama-interp", help="Print the version.")
@click.pass_context
def cli(
    ctx: click.Context, path: str | None, prompt: str | None, sites: tuple[str, ...], topk: int | None,
    draw: Path | None, edits: Edits, saves: tuple[tuple[str, Path], ...], print_cgraph: bool, n_generate: int | None,
    as_json: bool,
) -> None:
    """Look inside a language model that llama.cpp runs, and change what you find."""
    ctx.obj = path
    wants = bool(sites or topk or draw or edits or saves or print_cgraph or n_generate or as_json)
    if ctx.invoked_subcommand is not None:
        if prompt is not None or wants:
            command = f"llama-interp {ctx.invoked_subcommand} …"
            raise click.UsageError(f"options other than those of the model come after the command: {command}")
        return
    if prompt is None:
        if wants:
            raise click.UsageError("missing the prompt: -p TEXT")
        click.echo(ctx.get_help())
        return
    if topk is not None and not sites:
        raise click.UsageError("--logit-lens-topk needs a lens: --logit-lens SITE")
    # One file may be given for several sites, and then holds them all.
    check_outputs(draw, *dict.fromkeys(file for _, file in saves))

    model = load(path, prompt, n_generate or 0)
    built = edits.build(model)
    run, before = runs(model, prompt, built, _captures(model, sites, draw, saves), compare=as_json or _is_quiet(
        sites, draw, saves, print_cgraph, n_generate))
    lenses = [logit_lens(run, site=site, k=topk or 10) for site in _lens_sites(model, sites)]
    graph = model.graph(prompt, edits=built) if print_cgraph else None
    generation = continued(model, prompt, n_generate, built) if n_generate and as_json else None

    written = _write(run, saves, draw)
    if as_json:
        result = {**described(model, run, built), "top": likeliest(run, 10)}
        if before is not None:
            result["top_without_edits"] = likeliest(before, 10)
        if lenses:
            result["logit_lens"] = [lens_json(lens) for lens in lenses]
        if graph is not None:
            result["graph"] = graph_json(graph)
        if generation is not None:
            result["generated"] = {"text": generation.text, "tokens": generation.tokens}
        print_json({**result, "files": written})
        return
    if graph is not None:
        click.echo(graph.text())
    for lens in lenses:
        lens.print()
        click.echo()
    output.wrote(written)
    if n_generate:
        click.echo(prompt, nl=False)
        continued(model, prompt, n_generate, built, stream=True)
    elif _is_quiet(sites, draw, saves, print_cgraph):
        print_likeliest(likeliest(run, 5), before and likeliest(before, 5))


def _is_quiet(*outputs) -> bool:
    """Whether nothing that a call asked for prints or writes anything."""
    return not any(outputs)


def runs(model: Model, prompt: str, edits: list, capture: list[str], compare: bool) -> tuple[Run, Run | None]:
    """The run with the edits and, to compare, the one without.

    Both read their logits in the same way, because quantised kernels round one row of logits and many differently.
    """
    # Of a long prompt and a large vocabulary the logits of all positions are gigabytes.
    logits = "all" if len(model.tokens(prompt)) * model.n_vocab < 1 << 27 else "last"
    run = model.run(prompt, capture, edits, logits=logits)
    return run, model.run(prompt, capture, logits=logits) if edits and compare else None


def _lens_sites(model: Model, sites: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(s for site in sites for s in (residual_sites(model) if site == "all" else [site])))


def _captures(model: Model, sites, draw: Path | None, saves) -> list[str]:
    wanted = [*_lens_sites(model, sites), *([SITE] if draw else []), *(site for site, _ in saves)]
    return list(dict.fromkeys(wanted))


def part_of(run: Run, sites: list[str]) -> Run:
    """A run that holds only some of the sites captured, and no logits."""
    from ..run import Run

    keys = []
    for site in sites:
        found = run._choose(site, None)
        keys += found.values() if isinstance(found, dict) else [found]
    keys = list(dict.fromkeys(keys))
    arrays, labels = {key: run._arrays[key] for key in keys}, {key: run._labels[key] for key in keys}
    parts = {key: run._parts[key] for key in keys}
    return Run(run.tokens, run.pieces, None, arrays, labels, run.model, run.info, parts)


def save_sites(run: Run, saves: tuple[tuple[str, Path], ...]) -> list[Path]:
    """Writes each file with the sites that were asked into it."""
    by_file: dict[Path, list[str]] = defaultdict(list)
    for site, file in saves:
        by_file[file].append(site)
    for file, sites in by_file.items():
        part_of(run, sites).save(file)
    return list(by_file)


def _write(run: Run, saves, draw: Path | None) -> list[Path]:
    written = save_sites(run, saves)
    if draw is not None:
        attention(run).plot(draw)
        written.append(draw)
    return written


def graph_json(graph) -> dict:
    import json

    return json.loads(graph.json())
