"""`llama-interp devices`: where a model can run here."""

from __future__ import annotations

from dataclasses import asdict

import click

from .base import json_option
from .output import print_json
from .root import cli

_SHOWN = ("name", "description", "kind", "memory_free", "memory_total")


@cli.command()
@json_option
def devices(as_json: bool) -> None:
    """List the devices that --device takes here."""
    from .. import devices as all_devices

    found = all_devices.available()
    if as_json:
        print_json({"devices": [{key: value for key, value in asdict(d).items() if key in _SHOWN} for d in found]})
        return
    click.echo(repr(found))
    click.echo("\nOther machines: rpc://HOST:PORT, where llama-interp rpc-server runs.")
