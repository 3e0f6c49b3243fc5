"""`llama-interp graph`: the computation graph of a run, with what edits add to it."""

from __future__ import annotations

from pathlib import Path

import click

from .arguments import Output
from .base import load, model_option, prompt_option
from .edits import Edits, edit_options
from .root import cli


@cli.command()
@model_option
@prompt_option
@click.option("--text", "form", flag_value="text", help="One line for each node; what is printed without a flag.")
@click.option("--json", "form", flag_value="json", help="One JSON object.")
@click.option("--dot", "form", flag_value="dot", help="For Graphviz.")
@click.option(
    "--out", type=Output(".txt", ".json", ".dot"), metavar="FILE", help="Write .txt, .json or .dot instead of printing."
)
@edit_options()
def graph(path: str | None, prompt: str, form: str | None, out: Path | None, edits: Edits) -> None:
    """The computation graph of a run, with what edits add.

    Of each node: its number, operation, type, shape, name, inputs, backend, and which edit added it.
    """
    suffix = {"text": ".txt"}.get(form or "", f".{form}")
    if out is not None and form is not None and out.suffix.lower() != suffix:
        raise click.UsageError(f"--{form} and --out {out.name} disagree: name it {out.stem}{suffix}")
    model = load(path, prompt)
    made = model.graph(prompt, edits=edits.build(model))
    if out is not None:
        made.save(out)
        click.echo(f"wrote {out}")
        return
    click.echo({"json": made.json, "dot": made.dot}.get(form or "text", made.text)())
