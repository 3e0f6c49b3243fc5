"""Whether a model fits into the memory of its devices, before it is loaded; and how many layers do."""

from __future__ import annotations

import ctypes as ct
import os
from pathlib import Path

from . import devices, header, native
from .errors import DeviceError


def check(lib: native.Library, path: Path, params: header.Params) -> None:
    """Compare what a model needs on each device with what is free there.

    What it needs comes from the header of the file, computed by llama.cpp itself without allocating: weights, the KV
    cache of ``n_ctx`` tokens, and room for computing. A file that cannot be read so is left to whoever loads it.

    Args:
        params: as for loading.

    Raises:
        DeviceError: a device has too little; the message says how many layers fit.
    """
    found = _needed(lib, path, params)
    if found is None:
        return
    needed, n_layer = found
    short = [device for device in needed if not _fits(device)]
    if not short:
        return
    # the norm and the head behind the last layer count as one more
    most = n_layer + 1 if params.n_gpu_layers < 0 else min(params.n_gpu_layers, n_layer + 1)
    count = _most_that_fit(lib, path, params, most)
    device, asked = short[0], "all layers" if most > n_layer else f"{most} of {n_layer} layers"
    if count:
        hint = f"{count} of {n_layer} layers fit: n_gpu_layers={count}, or a smaller n_ctx than {params.n_ctx}"
    else:
        hint = f'no layer fits: device="cpu", or a smaller n_ctx than {params.n_ctx}'
    raise DeviceError(
        f"{path.name} does not fit: with {asked}, {device.name} needs {devices.size_text(device.n_bytes)} and has "
        f"{devices.size_text(device.memory_free)} free. {hint[:1].upper()}{hint[1:]}."
    )


def _needed(lib: native.Library, path: Path, params: header.Params) -> tuple[list[devices.Device], int] | None:
    n_layer = ct.c_int32()
    try:
        found = devices.records(
            lib, lambda into, most: lib.devices_needed(os.fsencode(path), ct.byref(params), into, most, ct.byref(n_layer))
        )
    except DeviceError:
        return None
    return devices.named(found), n_layer.value


def _fits(device: devices.Device) -> bool:
    # the host's memory is not checked: it maps the weights, and the system decides what it keeps of them
    return device.kind == "cpu" or not device.memory_total or device.n_bytes <= device.memory_free


def _most_that_fit(lib: native.Library, path: Path, params: header.Params, most: int) -> int:
    """The largest number of layers, below one that does not fit, that does."""
    low, high, asked = 0, most, params.n_gpu_layers
    try:
        while high - low > 1:
            params.n_gpu_layers = (low + high) // 2
            found = _needed(lib, path, params)
            if found is not None and all(map(_fits, found[0])):
                low = params.n_gpu_layers
            else:
                high = params.n_gpu_layers
    finally:
        params.n_gpu_layers = asked
    return low
