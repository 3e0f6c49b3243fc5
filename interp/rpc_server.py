"""An RPC server: the devices of this machine, for models on other machines; ``llama-interp rpc-server``."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable

from . import devices, load, native, remote
from .errors import DeviceError

#: seconds that the library may take to begin
_START_SECONDS = 30.0


def serve(
    host: str = "127.0.0.1", port: int = 50052, device=None, n_threads: int | None = None, *,
    on_ready: Callable[[str, int, list[str]], object] | None = None,
) -> None:  # fmt: skip
    """Serve until Ctrl-C; one program at a time, which gets the devices for a model or several.

    The protocol has no authentication and no encryption: whoever reaches the port uses the devices, and may be able to
    do worse to this process. Bind it to an address of others only in a network that you trust.

    Args:
        host: the address to listen at; another one than the loopback's opens the machine to the network.
        port: 0 takes a free one.
        device: as in :class:`interp.Model`, but without RPC servers; None: all GPUs of this machine, else the CPU.
        n_threads: CPU threads; None: as many as this process may use.
        on_ready: called with the address, the port and the devices' names when the server answers.

    Raises:
        DeviceError: the port is in use, the address is not this machine's, or a device does not exist.
    """
    lib = native.load()
    chosen = _chosen(lib, device)
    threads = load.usable_cores() if n_threads is None else load.as_count(n_threads, "n_threads", 1, load.MAX_THREADS)
    address, port = _free_address(host, port)
    names = ",".join(found.ggml_name for found in chosen)

    # a signal reaches the thread that waits in Python; the library's would never come back to see it
    thread = threading.Thread(
        target=lib.rpc_serve, args=(f"{address}:{port}".encode(), names.encode(), threads), daemon=True
    )
    thread.start()
    _wait_until_ready(thread, _reachable(address), port)
    if on_ready is not None:
        on_ready(address, port, [found.name for found in chosen])
    thread.join()
    raise DeviceError(f"The RPC server at {address}:{port} ended by itself. Start it again.")


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _chosen(lib: native.Library, device) -> list[devices.Device]:
    here = devices.available(lib)
    if device is None:
        gpus = [found for found in here if found.kind in ("gpu", "igpu")]
        return gpus or [found for found in here if found.kind == "cpu"]
    return [found for part in devices.parse(device) for found in devices.local(here, part)]


def _free_address(host: str, port: int) -> tuple[str, int]:
    """The address as numbers, which is all that ggml takes, and a port that can be listened at."""
    port = load.as_count(port, "port", 0, (1 << 16) - 1)
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
            return address, trial.getsockname()[1]
    except socket.gaierror as err:
        raise DeviceError(f"Cannot listen at {host}:{port}: the host is unknown ({err.strerror}).") from None
    except OSError as err:
        reason = (err.strerror or str(err)).lower()
        hint = " Choose another port." if err.errno == errno.EADDRINUSE else " Choose an address of this machine."
        raise DeviceError(f"Cannot listen at {host}:{port}: {reason}.{hint}") from None


def _reachable(address: str) -> str:
    return "127.0.0.1" if address == "0.0.0.0" else address


def _wait_until_ready(thread: threading.Thread, address: str, port: int) -> None:
    end = time.monotonic() + _START_SECONDS
    while thread.is_alive():
        try:
            return remote.probe(address, port, seconds=2)
        except DeviceError:
            if time.monotonic() > end:
                raise
            thread.join(0.05)
    raise DeviceError(f"The RPC server at {address}:{port} did not start: {native.load().reason()}.")


def quit_now(status: int) -> None:
    """End the process at once: the library serves in a thread that cannot be told to stop."""
    os._exit(status)
