"""What the sweeps share: what they measure, of which prompts, and where their results go."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .. import files
from ..errors import RunError
from ..mean_sweep import MeanSweep
from ..prompts import check_pair
from ..vocab import one_token
from . import output
from .arguments import Count, Output
from .base import check_outputs, json_option, load
from .output import described, print_json
from .pairs import Pair, Pairs

if TYPE_CHECKING:
    from ..grid import Grid
    from ..model import Model
    from ..run import Run


@contextlib.contextmanager
def as_usage() -> Iterator[None]:
    """Of what follows from the arguments alone: a RunError becomes a mistake in the arguments."""
    try:
        yield
    except RunError as err:
        raise click.UsageError(str(err)) from err


# // what is measured


def answer_options(first: str = "What is measured: this token's probability …", required: bool = True):
    """--answer and --instead; ``first`` is the help of the first."""

    def decorate(command):
        command = click.option("--instead", metavar="TOKEN", help="… or its logit minus that of this token.")(command)
        return click.option("--answer", required=required, metavar="TOKEN", help=first)(command)

    return decorate


def check_tokens(model: Model, answer: str, instead: str | None) -> None:
    """
    Raises:
        UsageError: a text is not one token, or both are the same.
    """
    with as_usage():
        found = [one_token(model, text) for text in (answer, instead) if text is not None]
    if len(set(found)) < len(found):
        raise click.UsageError(f"--answer {answer!r} and --instead {instead!r} are the same token: give two")


def metric_of(model: Model, answer: str, instead: str | None) -> Callable[[Run], float]:
    """What --answer and --instead ask for.

    Raises:
        UsageError: they are not two tokens.
    """
    import interp

    check_tokens(model, answer, instead)
    return interp.probability(answer) if instead is None else interp.logit_diff(answer, instead)


# // two prompts, or many pairs of them


@dataclass
class Pairing:
    """The prompts of a sweep that patches one into the other, and what is measured of them.

    Attributes:
        pairs: one, or those of a file.
        is_list: they are those of a file.
    """

    pairs: list[Pair]
    is_list: bool

    @property
    def clean(self) -> str | list[str]:
        return self._each(lambda pair: pair.clean)

    @property
    def corrupted(self) -> str | list[str]:
        return self._each(lambda pair: pair.corrupted)

    def metric(self, model: Model):
        """
        Raises:
            UsageError: of a single pair, the answers are not two tokens.
        """
        if not self.is_list:
            check_tokens(model, self.pairs[0].answer, self.pairs[0].instead)
        return self._each(lambda pair: pair.metric())

    def load(self, path: str | None) -> Model:
        """The model, with room for all prompts.

        Raises:
            UsageError: the prompts of a single pair differ in length, or not at all.
        """
        model = load(path, max((text for pair in self.pairs for text in (pair.clean, pair.corrupted)), key=len))
        if not self.is_list:
            pair = [model.tokens(text) for text in (self.clean, self.corrupted)]
            with as_usage():
                check_pair(*pair, *map(model.pieces, pair))
        return model

    def _each(self, part):
        found = [part(pair) for pair in self.pairs]
        return found if self.is_list else found[0]


def pair_options(command):
    """-p, --corrupted, --answer, --instead, or --pairs: the command receives a `Pairing`; and --direction."""

    @wraps(command)
    def call(*args, prompt, corrupted, answer, instead, pairs, **kwargs):
        given = {"-p": prompt, "--corrupted": corrupted, "--answer": answer}
        if pairs is None:
            if missing := [flag for flag, text in given.items() if text is None]:
                raise click.UsageError(f"missing option '{missing[0]}', or --pairs FILE")
        elif extra := [flag for flag, text in {**given, "--instead": instead}.items() if text is not None]:
            raise click.UsageError(f"--pairs has prompts and answers of its own: leave {', '.join(extra)} out")
        pairing = Pairing([Pair(prompt, corrupted, answer, instead)] if pairs is None else pairs, pairs is not None)
        return command(*args, pairing=pairing, **kwargs)

    for option in (
        click.option(
            "--direction", type=click.Choice(["denoise", "noise"]), default="denoise", show_default=True,
            help="denoise: clean values into the corrupted run; noise: the other way round.",
        ),
        click.option(
            "--pairs", type=Pairs(), metavar="FILE",
            help="Instead of these: many pairs, for their mean; .jsonl or .csv with clean, corrupted, answer, instead.",
        ),
        answer_options(required=False),
        click.option("--corrupted", metavar="TEXT", help="One of as many tokens in which it does not."),
        click.option("-p", "--prompt", metavar="TEXT", help="The clean prompt: the model does what is studied."),
    ):
        call = option(call)
    return call


# // what becomes of the result


def result_options(saves: bool = True):
    """--topk, --out, --png, --html and --json; the command receives them as one argument `results`.

    Args:
        saves: with --out.
    """

    def decorate(command):
        @wraps(command)
        def call(*args, **kwargs):
            found = Results(**{field.name: kwargs.pop(field.name, None) for field in fields(Results)})
            check_outputs(found.out, found.png, found.html)
            return command(*args, results=found, **kwargs)

        save = click.option("--out", type=Output(*files.SUFFIXES), metavar="FILE", help="Save it; see show FILE.")
        for option in (
            json_option,
            click.option("--html", type=Output(".html", ".htm"), metavar="PATH.html", help="A page with details."),
            click.option("--png", type=Output(".png"), metavar="PATH.png", help="Draw it."),
            *([save] if saves else []),
            click.option(
                "--topk", type=Count(1), default=10, show_default=True, metavar="K", help="Largest effects listed."
            ),
        ):
            call = option(call)
        return call

    return decorate


@dataclass
class Results:
    """What is to become of a sweep's result."""

    topk: int
    out: Path | None
    png: Path | None
    html: Path | None
    as_json: bool

    def write(self, made: Grid) -> list[Path]:
        """Writes the files that were asked for."""
        wanted = [(made.save, self.out), (made.plot, self.png), (made.html, self.html)]
        for write, path in wanted:
            if path is not None:
                write(path)
        return [path for _, path in wanted if path is not None]

    def show(self, made: Grid) -> None:
        """Prints its table."""
        made.print(self.topk, output.console())
        if not made.complete:
            click.echo("\ninterrupted: this is what was measured until then")

    def give(self, model: Model, made: Grid) -> None:
        """Writes the files and prints the table, or all of it as JSON."""
        written = self.write(made)
        if self.as_json:
            print_json({**described(model), **_fields_of(made), **self.numbers(made), "files": written})
            return
        self.show(made)
        output.wrote(written)

    def numbers(self, made: Grid) -> dict:
        """For JSON: all values, what each changes, and the largest changes."""
        top = [cell._asdict() for cell in made.top(self.topk)]
        found = {"values": made.values, "effects": made.effects, "top": top}
        if isinstance(made, MeanSweep):
            found["low"], found["high"] = made.interval()
        return found


def _fields_of(made: Grid) -> dict:
    """For JSON: everything that a result says of itself."""
    # its own `model` is the name, which is part of what every object begins with
    names = [field.name for field in fields(made) if field.name not in ("model", "results")]
    found = {name: getattr(made, name) for name in names}
    if isinstance(made, MeanSweep):
        single = _fields_of(made.results[0])
        found = {**{name: single[name] for name in ("site", "direction", "receivers") if name in single}, **found}
        found |= {name: getattr(made, name) for name in ("clean", "corrupted", "positions", "heads", "each")}
        if hasattr(made.results[0], "normalized"):
            found["normalized"] = made.normalized
    return found
