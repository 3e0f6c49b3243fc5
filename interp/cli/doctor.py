"""`llama-interp doctor`: whether everything that a run needs is in place."""

from __future__ import annotations

import click

from ..errors import InterpError
from .base import FAILURE, json_option
from .output import print_json
from .root import cli


@cli.command()
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check that the library and the default model are in place."""
    found = {}
    for name, check in {"native library": _check_library, "default model": _check_model}.items():
        try:
            found[name] = True, check()
        except InterpError as error:
            found[name] = False, " ".join(str(error).split())
    if as_json:
        print_json({name: {"ok": ok, "detail": detail} for name, (ok, detail) in found.items()})
    else:
        for name, (ok, detail) in found.items():
            mark = click.style("ok", fg="green") if ok else click.style("missing", fg="red")
            click.echo(f"{name:<16}{mark}  {detail}")
    ctx.exit(0 if all(ok for ok, _ in found.values()) else FAILURE)


def _check_library() -> str:
    from ..errors import LibraryError
    from ..native import abi_status

    status = abi_status()
    if not status["ok"]:
        raise LibraryError(status["detail"])
    return status["detail"]


def _check_model() -> str:
    from ..load import default_model

    return str(default_model())
