"""Devices: what ``device=`` may name, which there are, and what a model has on each."""

from __future__ import annotations

import ctypes as ct
import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import header, native, remote
from .errors import DeviceError

#: how messages call what a user may write
_FORMS = '"cpu", "cuda", "cuda:0", "metal", "vulkan:0", "rpc://HOST:PORT", or several with commas between them'

#: backends of this project's builds, each the flag of ``build.py`` that adds it
BUILD_FLAGS = ("cuda", "metal", "vulkan")

#: what users call a backend, where ggml has another name
_KINDS = {"mtl": "metal"}

_RPC = re.compile(r"rpc://([^:/\s,]+):(\d{1,5})", re.IGNORECASE)
_LOCAL = re.compile(r"([a-z][a-z0-9_]*)(?::(\d{1,3}))?", re.IGNORECASE)

_MOST = 64


@dataclass(frozen=True)
class Device:
    """A device, and what a model has there.

    Attributes:
        name: as ``device=`` takes it.
        description: what its driver calls it; of an RPC server, its endpoint.
        kind: ``"cpu"``, ``"gpu"``, ``"igpu"`` (it shares the host's memory) or ``"accel"`` (it helps the CPU, and cannot
            be chosen).
        memory_free, memory_total: bytes; both 0 where it does not say.
        layers: the model's layers that run there.
        embedding: whether the table of token embeddings lies there.
        head: whether the last norm and the output head run there.
        n_weights, n_cache, n_compute: bytes of the model there: its weights, its KV cache, and room for computing.
        ggml_name: ggml's name, as in the graph's nodes.
    """

    name: str
    description: str
    kind: str
    memory_free: int
    memory_total: int
    layers: tuple[int, ...] = ()
    embedding: bool = False
    head: bool = False
    n_weights: int = 0
    n_cache: int = 0
    n_compute: int = 0
    ggml_name: str = ""

    @property
    def n_bytes(self) -> int:
        """All that the model takes there."""
        return self.n_weights + self.n_cache + self.n_compute


class Devices(list):
    """A list of :class:`Device` that prints as a table."""

    def __repr__(self) -> str:
        has_model = any(device.n_bytes for device in self)
        title = ["device", "description", "free"] + (["layers", "weights", "cache", "compute"] if has_model else [])
        rows = [title]
        for device in self:
            free = size_text(device.memory_free) if device.memory_total else "?"
            row = [device.name, device.description, free]
            if has_model:
                row += [_held(device), *map(size_text, (device.n_weights, device.n_cache, device.n_compute))]
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)

    def names(self) -> list[str]:
        return [device.name for device in self]


def _held(device: Device) -> str:
    """``embedding, 0-3, head``"""
    parts = ["embedding"] if device.embedding else []
    first = None
    for i, layer in enumerate(device.layers):
        first = layer if first is None else first
        if i + 1 == len(device.layers) or device.layers[i + 1] != layer + 1:
            parts.append(str(layer) if layer == first else f"{first}-{layer}")
            first = None
    return ", ".join(parts + (["head"] if device.head else [])) or "none"


def size_text(n: int) -> str:
    """Bytes for people: ``23.5 GiB``."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return f"{n} B"


# // records of the library


def records(lib: native.Library, fill, *before) -> list[header.Device]:
    """What a function of the library fills in.

    Raises:
        DeviceError: it fails.
    """
    found = (header.Device * _MOST)(*(header.Device() for _ in range(_MOST)))
    count = fill(*before, found, _MOST)
    if count < 0:
        raise DeviceError(f"The devices cannot be listed: {lib.reason()}.")
    return list(found[: min(count, _MOST)])


def named(found: Iterable[header.Device]) -> list[Device]:
    """The records with the names that users give."""
    counts: dict[str, int] = {}
    return [_as_device(record, counts) for record in found]


def _as_device(record: header.Device, counts: dict[str, int]) -> Device:
    backend, kind = record.backend.decode(), header.DEVICE_TYPES[record.type]
    description = record.description.decode(errors="replace")
    prefix = _KINDS.get(backend.lower(), backend.lower())
    index = counts[prefix] = counts.get(prefix, -1) + 1
    if kind == "cpu":
        name = "cpu"
    elif prefix.startswith("rpc"):
        name = f"rpc://{description}"
    elif kind == "accel" or prefix == "metal":
        name = prefix if index == 0 else f"{prefix}:{index}"
    else:
        name = f"{prefix}:{index}"
    return Device(
        name, description, kind, record.memory_free, record.memory_total, n_weights=record.n_weights,
        n_cache=record.n_cache, n_compute=record.n_compute, ggml_name=record.name.decode(),
    )  # fmt: skip


def available(lib: native.Library | None = None) -> Devices:
    """The devices of this machine that the library was built for.

    Raises:
        LibraryError: there is no library.
    """
    lib = lib or native.load()
    return Devices(named(records(lib, lib.devices_list)))


def used(lib: native.Library, handle: int, n_layer: int) -> Devices:
    """The devices that hold a part of a model; see :attr:`interp.Model.devices`."""
    # a second GPU is the second of this machine, also where the model has no part on the first
    here = {device.ggml_name: device.name for device in available(lib)}
    holders: dict[str, list[int]] = {}
    for il in range(-1, n_layer + 1):
        layer = header.Layer()
        lib.layer_get(handle, il, ct.byref(layer))
        holders.setdefault(layer.device.decode(), []).append(il)
    found = Devices()
    for device in named(records(lib, lib.devices_used, handle)):
        held = holders.get(device.ggml_name, [])
        found.append(
            Device(
                here.get(device.ggml_name, device.name), device.description, device.kind, device.memory_free,
                device.memory_total, tuple(il for il in held if 0 <= il < n_layer), -1 in held, n_layer in held,
                device.n_weights, device.n_cache, device.n_compute, device.ggml_name,
            )
        )  # fmt: skip
    return found


# // choosing


@dataclass(frozen=True)
class Choice:
    """What ``device=`` asks for, as the library takes it.

    Attributes:
        names: ggml's names with commas between them, ``""`` for the CPU alone; None: llama.cpp's choice.
        servers: the RPC servers among them; None: there is none.
    """

    names: str | None = None
    servers: remote.Servers | None = None

    @property
    def is_offload(self) -> bool:
        """Whether something else than the CPU was asked for."""
        return bool(self.names)


def parse(device) -> list[str]:
    """The single devices that ``device=`` names, in lower case; checked in form only.

    Raises:
        DeviceError: it is malformed.
    """
    if isinstance(device, str):
        parts = [part.strip() for part in device.split(",")]
    elif isinstance(device, (list, tuple)) and all(isinstance(part, str) for part in device):
        parts = [part.strip() for part in device]
    else:
        raise DeviceError(f"device={device!r}: give {_FORMS}.")
    for part in parts:
        rpc = _RPC.fullmatch(part)
        if not (0 < int(rpc[2]) < 1 << 16 if rpc else _LOCAL.fullmatch(part)):
            raise DeviceError(f"device={device!r}: {part!r} is no device; give {_FORMS}.")
    parts = [part.lower() for part in parts]
    if not parts:
        raise DeviceError(f"device={device!r}: give {_FORMS}.")
    if len(set(parts)) < len(parts):
        raise DeviceError(f"device={device!r} names a device twice.")
    if "cpu" in parts and len(parts) > 1:
        raise DeviceError(
            f"device={device!r}: leave the CPU out. It takes the layers that n_gpu_layers leaves to it, from the first on."
        )
    return parts


def choose(lib: native.Library, device) -> Choice:
    """
    Args:
        device: as in :class:`interp.Model`.

    Raises:
        DeviceError: malformed; it does not exist; an RPC server that does not answer.
    """
    if device is None:
        return Choice()
    parts = parse(device)
    if parts == ["cpu"]:
        return Choice("")
    names, connections = [], []
    for part in parts:
        rpc = _RPC.fullmatch(part)
        if rpc:
            connection = remote.Connection.to(lib, rpc[1], int(rpc[2]))
            connections.append(connection)
            names += [found.name.decode() for found in connection.devices]
        else:
            names += [found.ggml_name for found in local(available(lib), part)]
    return Choice(",".join(dict.fromkeys(names)), remote.Servers(connections) if connections else None)


def local(here: Devices, part: str) -> list[Device]:
    """Those of this machine's devices that a name means: ``cuda`` means all of that kind.

    Raises:
        DeviceError: there is none.
    """
    found = [
        device for device in here
        if device.kind in ("cpu", "gpu", "igpu") and part in (device.name, device.name.partition(":")[0], f"{device.name}:0")
    ]  # fmt: skip
    if found:
        return found
    lacking = [flag for flag in BUILD_FLAGS if not any(name.split(":")[0] == flag for name in here.names())]
    flags = " or ".join(f"--{flag}" for flag in lacking)
    raise DeviceError(
        f"There is no device {part!r} here, but {', '.join(device.name for device in here if device.kind != 'accel')}. "
        f"python3 build.py {flags} builds a library for others; rpc://HOST:PORT is another machine."
    )
