"""The command `llama-interp`: analyses of one prompt from the shell."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import plot
from .attention import attention
from .errors import InterpError, RunError
from .lens import Lens, logit_lens

if TYPE_CHECKING:
    from rich.console import Console

    from .model import Model
    from .run import Run
    from .sites import Site


class _Group(click.Group):
    """A group that prints this package's errors as one line instead of a traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except InterpError as error:
            # An error may list names on lines of their own; a shell script reads one line.
            line = " ".join(part.strip() for part in str(error).splitlines())
            click.secho(f"error: {line}", fg="red", err=True)
            ctx.exit(1)


_MODEL = click.option(
    "-m", "--model", "path", type=click.Path(), metavar="GGUF", help="Model file; without it, the default model.",
)


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@_MODEL
@click.option("-p", "--prompt", metavar="TEXT", help="The text to run.")
@click.option(
    "--logit-lens", "--ll", "sites", multiple=True, metavar="SITE|all",
    help="Print what each layer would predict, read at SITE (l_out, ffn_inp, …) or at every residual-shaped "
    "site. May be given several times.",
)
@click.option(
    "--logit-lens-topk", "--ll-topk", "topk", type=click.IntRange(min=1), default=10, show_default=True,
    metavar="K", help="How many tokens of each layer the lens lists.",
)
@click.option(
    "--logit-lens-position", "--ll-position", "position", type=int, default=-1, show_default=True, metavar="POS",
    help="After which token the lens is printed; negative counts from the end.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Also write each lens, at all positions, as PNG and HTML into DIR.",
)
@click.option(
    "-d", "--draw", type=click.Path(dir_okay=False), metavar="PATH.png",
    help="Draw the attention of all layers and heads.",
)
@click.option("-n", "n_generate", type=click.IntRange(min=1), metavar="N", help="Generate N tokens, greedily.")
@click.pass_context
def cli(
    ctx: click.Context, path: str | None, prompt: str | None, sites: tuple[str, ...], topk: int, position: int,
    out: Path | None, draw: str | None, n_generate: int | None,
) -> None:
    """Look inside a language model that llama.cpp runs.

    With -p alone the likeliest next tokens are printed; options add analyses, in any combination.
    """
    ctx.obj = path
    if ctx.invoked_subcommand is not None:
        if prompt is not None or sites or out or draw or n_generate:
            raise click.UsageError(f"{ctx.invoked_subcommand} takes no prompt and no analysis")
        return
    if prompt is None:
        if sites or draw or n_generate:
            raise click.UsageError("missing the prompt: -p TEXT")
        click.echo(ctx.get_help())
        return
    if out is not None and not sites:
        raise click.UsageError("--out writes lenses: name a site, --ll l_out --out DIR")

    model = _load(path)
    wanted = list(dict.fromkeys(s for site in sites for s in (_residual_sites(model) if site == "all" else [site])))
    run = model.run(prompt, capture=(*wanted, *(["attn_scores"] if draw else [])))
    lenses = [logit_lens(run, site=site, k=topk) for site in wanted]
    # Files before tables: a reader such as `head` may end this process while it prints.
    files = _write(run, lenses, out, draw)
    for lens in lenses:
        lens.print(position)
        click.echo()
    for file in files:
        click.echo(f"wrote {file}")
    if n_generate:
        click.echo(prompt + model.generate(prompt, max_tokens=n_generate, temperature=0.0).text)
    elif not files and not lenses:
        for piece, prob in run.top(5):
            click.echo(f"{100 * prob:6.2f} %  {piece!r}")


def _load(path: str | None) -> Model:
    from . import Model

    return Model(path)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    # A pipe has no width of its own, and rich would cut every table to 80 columns.
    return console if console.is_terminal else Console(width=1000, no_color=True)


def _residual_sites(model: Model) -> list[str]:
    """The names of the per-layer sites that are as wide as the residual stream, in graph order."""
    wide = (s.name for s in _last_of_each(model) if s.layer >= 0 and s.shape == (None, model.n_embd))
    found = list(dict.fromkeys(wide))
    if not found:
        raise RunError("this model names no site of the residual stream's shape: see `llama-interp sites`")
    return found


def _last_of_each(model: Model) -> list[Site]:
    """The sites that a bare name picks: of tensors with one name in one layer the last."""
    return [s for s in model.sites() if s.occurrence == s.n_occurrences - 1]


def _write(run: Run, lenses: list[Lens], out: Path | None, draw: str | None) -> list[Path]:
    """Writes the pictures that were asked for; returns their paths."""
    files: list[Path] = []
    for lens in lenses if out is not None else []:
        name = "lens-" + re.sub(r"[^\w.-]+", "_", lens.site)
        for suffix, write in ((".png", lens.plot), (".html", lens.html)):
            files.append(out / (name + suffix))
            write(files[-1])
    if draw:
        attention(run).plot(draw)
        files.append(Path(draw))
    return files


@cli.command("sites")
@_MODEL
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
@click.pass_obj
def list_sites(default: str | None, path: str | None, as_json: bool) -> None:
    """List the places where a model can be read and edited."""
    groups: dict[tuple, list[Site]] = defaultdict(list)
    for site in _last_of_each(_load(path or default)):
        groups[site.name, site.axes, site.shape, site.n_occurrences].append(site)
    rows = [
        {
            "name": name, "layers": sorted(s.layer for s in group if s.layer >= 0), "axes": list(axes),
            "shape": list(shape), "occurrences": times,
        }
        for (name, axes, shape, times), group in groups.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("site", style="cyan")
    for title in ("layers", "axes", "shape"):
        table.add_column(title)
    table.add_column("times", justify="right")
    for row in rows:
        shape = " x ".join("n" if size is None else str(size) for size in row["shape"])
        layers = plot.spans(row["layers"]) or "-"
        table.add_row(row["name"], layers, ", ".join(row["axes"]), shape, str(row["occurrences"]))
    _console().print(table)


@cli.command()
@click.pass_context
def doctor(ctx: click.Context) -> None:
    """Check that the native library and the default model are in place; change nothing."""
    checks = {"native library": _check_library, "default model": _check_model}
    failed = False
    for name, check in checks.items():
        try:
            mark, detail = "ok", check()
        except InterpError as error:
            mark, detail, failed = "missing", " ".join(str(error).split()), True
        click.echo(f"{name:<16}{click.style(mark, fg='green' if mark == 'ok' else 'red')}  {detail}")
    ctx.exit(1 if failed else 0)


def _check_library() -> str:
    from .errors import LibraryError
    from .native import abi_status

    status = abi_status()
    if not status["ok"]:
        raise LibraryError(status["detail"])
    return status["detail"]


def _check_model() -> str:
    from .load import default_model

    return str(default_model())


def main() -> None:
    """The console script's entry point."""
    cli(prog_name="llama-interp")


if __name__ == "__main__":
    main()
