"""`llama-interp rpc-server`: this machine's devices for models on other machines."""

from __future__ import annotations

import os
import sys

import click

from ..load import MAX_THREADS
from .arguments import Count
from .root import cli


@cli.command("rpc-server")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen at; 127.0.0.1.")
@click.option("--port", default=50052, type=Count(0, 65535), metavar="PORT", help="0 takes a free one; 50052.")
@click.option("--device", metavar="DEVICE,…", help="What it serves; all GPUs, else the CPU.")
@click.option("--threads", type=Count(1, MAX_THREADS), metavar="N", help="CPU threads; all cores.")
def rpc_server(host: str, port: int, device: str | None, threads: int | None) -> None:
    """Serve this machine's devices to models elsewhere.

    They name it with --device rpc://HOST:PORT. It serves one program at a time, until Ctrl-C. The protocol has no
    authentication: open it to no network that you do not trust.
    """
    from .. import rpc_server as server

    # ggml prints about every connection
    with open(os.devnull, "w") as nowhere:
        out = os.dup(sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stdout.fileno())

    def say(address: str, port: int, names: list[str]) -> None:
        if server.is_loopback(address):
            warning = "the protocol has no authentication: every user of this machine can use it"
        else:
            warning = (
                f"WHOEVER REACHES {address}:{port} can use this machine's devices and may take over this process: the "
                "protocol has no authentication and no encryption. Only for networks that you trust"
            )
        click.secho(f"warning: {warning}", fg="yellow", err=True)
        os.write(out, f"RPC server at {address}:{port}, serving {', '.join(names)}; Ctrl-C ends it\n".encode())

    try:
        server.serve(host, port, device, threads, on_ready=say)
    except KeyboardInterrupt:
        os.write(out, b"ended\n")
        server.quit_now(0)
