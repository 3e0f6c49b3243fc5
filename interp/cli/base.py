"""What every command shares: how it fails, loads a model, and prints."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import EditError, InterpError, SiteError
from .arguments import Count, Number

if TYPE_CHECKING:
    from ..model import Model

#: exit codes: a mistake in the arguments, a failure, and what shells give a program that Ctrl-C or a closed pipe ended
BAD_ARGUMENT, FAILURE, INTERRUPTED, CLOSED_PIPE = 2, 1, 130, 141

#: how messages that are written for Python read in a shell
_IN_A_SHELL = (
    ("All of them: model.sites()", "All of them: llama-interp sites"),
    ("What it names: model.sites()", "What it names: llama-interp sites"),
    (
        "Say which go where: positions=[...], from_positions=[...].",
        "Resample ablation takes a run of as many tokens as the prompt.",
    ),
    ("; give one of them, or a token id", "; give one of them"),
    ("model.sites() lists them", "llama-interp sites lists them"),
)


class EditOption(click.Option):
    """An option that asks for an edit; the help lists them in a section of their own."""


class Command(click.Command):
    """A command in which `--control-vector` may be followed by a coefficient."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [param for param in self.get_params(ctx) if not isinstance(param, EditOption)]
        for title, params in (("Options", own), ("Edits", [p for p in self.get_params(ctx) if p not in own])):
            rows = [record for param in params if (record := param.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        filled: list[str] = []
        for i, arg in enumerate(args):
            filled.append(arg)
            after_option = i > 0 and args[i - 1] == "--control-vector"
            if after_option and not (i + 1 < len(args) and _is_number(args[i + 1])):
                filled.append("1")
        return super().parse_args(ctx, filled)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            # so that the message names this command's help
            error.ctx = error.ctx or ctx
            raise


class _Interrupted(Exception):
    """Ctrl-C."""


class Commands(click.Group):
    """A group of commands that ends with an exit code and at most one line on stderr, whatever happens."""

    command_class = Command

    # at a KeyboardInterrupt click would print an empty line first

    def make_context(self, *args, **extra) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra) -> None:
        extra["standalone_mode"] = False
        code = FAILURE
        # Tokens hold any character, and a terminal or a pipe may be for fewer.
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="backslashreplace")
        try:
            try:
                code = super().main(args, prog_name, **extra)
                sys.stdout.flush()
                code = code if isinstance(code, int) else 0
            except SystemExit:
                # click ends so, without a word, where the reader of a pipe has gone
                raise BrokenPipeError from None
        except click.ClickException as error:
            fail(_usage(error))
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt, _Interrupted):
            fail("interrupted")
            code = INTERRUPTED
        except BrokenPipeError:
            _forget_stdout()
            code = CLOSED_PIPE
        except InterpError as error:
            fail(str(error))
            code = BAD_ARGUMENT if isinstance(error, (SiteError, EditError)) else FAILURE
        except MemoryError as error:
            fail(f"not enough memory: {error or 'ask for fewer layers, or a shorter prompt'}")
        except Exception as error:
            if os.environ.get("LLAMA_INTERP_DEBUG"):
                traceback.print_exc()
            fail(f"{type(error).__name__}: {error} (not expected; LLAMA_INTERP_DEBUG=1 shows where)")
        sys.exit(code)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            names = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"{args[0]!r} is neither a command nor the value of an option; commands: {names}")
        return super().resolve_command(ctx, args)


def _is_number(text: str) -> bool:
    try:
        Number().convert(text, None, None)
    except click.BadParameter:
        return False
    return True


def _usage(error: click.ClickException) -> str:
    """A usage error in one line, with where to look it up."""
    text = error.format_message().strip()
    path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "llama-interp"
    return f"{text[:1].lower()}{text[1:].rstrip('.')} (see {path} --help)"


def fail(message: str) -> None:
    """Prints one line on stderr. A message may list names on lines of their own; a shell script reads one line."""
    line = " ".join(part.strip() for part in message.splitlines())
    for python, shell in _IN_A_SHELL:
        line = line.replace(python, shell)
    with contextlib.suppress(OSError):
        click.secho(f"error: {line}", fg="red", err=True)


def _forget_stdout() -> None:
    """What is still buffered cannot be written, and Python would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# // the model


#: where the options that say where a model runs are kept, for a command and its subcommand
_PLACE = "llama-interp.place"


def model_option(command):
    """-m, --device and -ngl; also accepted before the name of a subcommand."""
    command = click.option(
        "-ngl", "--n-gpu-layers", type=Count(), metavar="N", expose_value=False, callback=_keep_place,
        help="Only the last N layers run on the devices.",
    )(command)
    command = click.option(
        "--device", metavar="DEVICE,…", expose_value=False, callback=_keep_place,
        help="Where it runs: cpu, cuda:0, rpc://HOST:PORT, ….",
    )(command)
    return click.option(
        "-m", "--model", "path", type=click.Path(), metavar="GGUF", help="Model file; without it, the default model.",
    )(command)


def _keep_place(ctx: click.Context, param: click.Parameter, value) -> None:
    if value is not None:
        ctx.meta.setdefault(_PLACE, {})[param.name] = value


def prompt_option(command):
    return click.option("-p", "--prompt", required=True, metavar="TEXT", help="The text to run.")(command)


def json_option(command):
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")(command)


def load(path: str | None, prompt: str | None = None, more: int = 0) -> Model:
    """The model of the call: that of the subcommand, else that of the main command, else the default model.

    Args:
        path: the subcommand's.
        prompt: what will be run; the context is made long enough for it.
        more: tokens that will follow.
    """
    import interp

    ctx = click.get_current_context()
    path, place = path if path is not None else ctx.find_object(str), ctx.meta.get(_PLACE, {})
    # A token is at least a byte, but for the few that a model puts around a text.
    room = len((prompt or "").encode(errors="replace")) + more + 16
    model = interp.Model(path, n_ctx=min(max(room, 2048), 1 << 20), **place)
    if prompt is not None and not model.tokens(prompt):
        raise click.UsageError("the prompt is empty: -p TEXT needs at least one token")
    return model


# // files


def check_outputs(*paths: Path | None) -> None:
    """Refuses two results for one file: the second would replace the first."""
    given = [path for path in paths if path is not None]
    resolved = [path.resolve() for path in given]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise click.UsageError(f"two results cannot both be written to {given[i]}: give another name")
