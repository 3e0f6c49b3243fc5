"""`llama-interp generate`: continue a prompt, greedily or sampled, with edits in force."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .arguments import Count, Number, Output, Source
from .base import Command, json_option, load, model_option, prompt_option
from .edits import Edits, edit_options
from .output import described, print_json

if TYPE_CHECKING:
    from ..model import Model
    from ..run import Generation

STATE_SUFFIX = ".safetensors"


class Between(Number):
    """A finite number of a range; the lower end counts only if `closed`."""

    def __init__(self, low: float, high: float, closed: bool = True):
        self._low, self._high, self._closed = low, high, closed

    def convert(self, value, param, ctx):
        number = super().convert(value, param, ctx)
        if not (self._low <= number <= self._high) or (number == self._low and not self._closed):
            least = f"at least {self._low:g}" if self._closed else f"above {self._low:g}"
            self.fail(f"{value!r} is out of range: give a number {least} and at most {self._high:g}", param, ctx)
        return number


def state_options(command):
    """--save-state and --load-state."""
    for option in (
        click.option(
            "--load-state", type=Source(), metavar="FILE", help="Continue a state: the prompt follows what it holds.",
        ),
        click.option(
            "--save-state", type=Output(STATE_SUFFIX), metavar=f"FILE{STATE_SUFFIX}",
            help="Save the state after the prompt, for --load-state.",
        ),
    ):
        command = option(command)
    return command


def check_state(save_state: Path | None, load_state: Path | None) -> None:
    if save_state is not None and load_state is not None:
        raise click.UsageError("--save-state saves the state of a prompt from its start: leave --load-state out")


def write_state(model: Model, prompt: str, path: Path) -> None:
    """Computes the cache of a prompt, without edits, and saves it."""
    with model.prefix(prompt):
        model.save_state(path)


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def continued(
    model: Model, prompt: str, n: int, edits: list, *, stream: bool = False, chat: bool = False, **sampling
) -> Generation:
    """Generates; with `stream`, the text appears on stdout as it becomes available."""
    on_text = _to_stdout if stream else None
    if chat:
        messages = [{"role": "user", "content": prompt}]
        generation = model.chat(messages, max_tokens=n, edits=edits, on_text=on_text, **sampling)
    else:
        generation = model.generate(prompt, max_tokens=n, edits=edits, on_text=on_text, **sampling)
    if stream:
        click.echo()
    return generation


@click.command(cls=Command)
@model_option
@prompt_option
@click.option("-n", "n", type=Count(1), default=64, show_default=True, metavar="N", help="At most N tokens.")
@click.option(
    "--temperature", type=Between(0, 1e6), default=0.0, show_default=True, metavar="T",
    help="0 takes the likeliest token; 1 draws from the model's own distribution.",
)
@click.option("--top-k", type=Count(0), default=0, metavar="K", help="Draw from the K likeliest; 0: all.")
@click.option(
    "--top-p", type=Between(0, 1, closed=False), default=1.0, metavar="P",
    help="Draw from the likeliest that have P together.",
)
@click.option("--seed", type=Count(0), default=0, show_default=True, metavar="S", help="Of the draws.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT.")
@click.option("--chat", is_flag=True, help="The prompt is a message, put into the model's chat template.")
@edit_options(generates=True)
@state_options
@json_option
def generate(
    path: str | None, prompt: str, n: int, temperature: float, top_k: int, top_p: float, seed: int,
    stop: tuple[str, ...], chat: bool, edits: Edits, save_state: Path | None, load_state: Path | None, as_json: bool,
) -> None:
    """Continue a prompt, greedily or sampled, with edits in force.

    The text appears as it is generated. Edits hold for the prompt and for what is generated; --positions generated
    spares the prompt.
    """
    check_state(save_state, load_state)
    if "" in stop:
        raise click.UsageError("--stop needs a text that is not empty")
    if chat and save_state is not None:
        raise click.UsageError("--save-state saves the state of a plain prompt: leave --chat out")
    model = load(path, prompt, n)
    built = edits.build(model)
    if load_state is not None:
        model.load_state(load_state)
    if save_state is not None:
        write_state(model, prompt, save_state)
    if not (as_json or chat):
        click.echo(prompt, nl=False)
    generation = continued(
        model, prompt, n, built, stream=not as_json, chat=chat,
        temperature=temperature, seed=seed, top_k=top_k, top_p=top_p, stop=stop,
    )
    if as_json:
        result = {"prompt": prompt, "text": generation.text, "tokens": generation.tokens}
        print_json({**described(model, edits=built), **result, "files": [save_state] if save_state else []})
