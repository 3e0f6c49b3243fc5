"""Weights of a loaded model as arrays: read back from where they lie, or from the file where a kernel rearranged them."""

from __future__ import annotations

import ctypes as ct
import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import files, header
from .errors import FileError, ModelError, RunError
from .graph import shape_of
from .program import allocate

#: names that many architectures have, to offer for one that is missing: the library lists none
_OUTSIDE = ("token_embd", "position_embd", "output_norm", "output", "token_embd_norm")
_IN_LAYER = (
    "attn_norm attn_q attn_k attn_v attn_qkv attn_output attn_q_norm attn_k_norm attn_post_norm post_attention_norm "
    "ffn_norm ffn_gate ffn_up ffn_down ffn_gate_inp ffn_gate_exps ffn_up_exps ffn_down_exps post_ffw_norm"
).split()

_LAYER = re.compile(r"^blk\.(\d+)\.")


def has(lib, handle: int, name: str) -> bool:
    return lib.weight_info(handle, name.encode(), ct.byref(header.TensorInfo())) == 0


def read(lib, handle: int, name: str, n_layer: int, path: Path) -> np.ndarray:
    """
    Args:
        path: the file of the model, or the first of several; read where the weight has been repacked.

    Raises:
        ModelError: there is no such weight, or it cannot be read back.
    """
    if not isinstance(name, str):
        raise ModelError(f"{name!r} names no weight; give a name as in the GGUF, such as 'blk.0.attn_output.weight'.")
    info = header.TensorInfo()
    if "\0" in name or lib.weight_info(handle, name.encode(), ct.byref(info)) != 0:
        raise ModelError(_missing(lib, handle, name, n_layer))
    out = allocate(shape_of(info.ne), np.float32, name, "close what else is loaded")
    if lib.weight_read(handle, name.encode(), out.ctypes.data_as(ct.POINTER(ct.c_float)), out.size) != 0:
        reason = lib.reason(handle, "it cannot be read")
        if "memory" in reason:
            raise RunError(f"No memory for a copy of {name} as it lies in the model: {reason}.")
        if "repacked" not in reason:
            raise ModelError(f"{reason}.")
        try:
            with files.refusing(path):
                _from_file(path, name, info, out)
        except FileError as err:
            hint = "Or load the model with interp.Model(path, repack=False) to read it"
            raise ModelError(f"{reason}, and its file does not help: {err} {hint}.") from err
    return out


class _Stored(NamedTuple):
    """Where a file has a weight."""

    path: Path
    offset: int
    n_bytes: int
    kind: int
    shape: tuple[int, ...]


def _from_file(path: Path, name: str, info: header.TensorInfo, out: np.ndarray) -> None:
    """Fills ``out``; which kernels repack, and so what comes here, depends on the processor.

    Raises:
        RunError: there is no memory for the weight as it lies in the file.
        Exception: anything that gguf raises for a damaged file, or for a type that it does not dequantise (Q1_0).
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    stored = _stored(path, path.stat().st_mtime_ns).get(name)
    if stored is None or (stored.kind, stored.shape) != (info.type, out.shape):
        raise ValueError(f"it has no {name} like the one that was loaded")
    try:
        data = np.fromfile(stored.path, np.uint8, stored.n_bytes, offset=stored.offset)
        if data.size != stored.n_bytes:
            raise ValueError("it is shorter than it was")
        # a damaged block may be no number, as it is for the kernels
        with np.errstate(all="ignore"):
            out[...] = dequantize(data.reshape(*out.shape[:-1], -1), GGMLQuantizationType(stored.kind))
    except MemoryError as err:
        raise RunError(f"No memory to read {name} from {path}: close what else is loaded.") from err


@lru_cache(maxsize=4)
def _stored(path: Path, _changed: int) -> dict[str, _Stored]:
    """All weights of a model; several files are read as one."""
    from gguf import GGUFReader

    first = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    parts = [path.with_name(f"{first[1]}-{i:05}-of-{first[2]}.gguf") for i in range(1, int(first[2]) + 1)] if first else [path]
    return {
        t.name: _Stored(part, int(t.data_offset), int(t.n_bytes), int(t.tensor_type), shape_of(t.shape))
        for part in parts
        for t in GGUFReader(part).tensors
    }


def _missing(lib, handle: int, name: str, n_layer: int) -> str:
    layer = _LAYER.match(name)
    if layer and int(layer[1]) >= n_layer:
        return f"There is no weight {name!r}: the model has layers 0 to {n_layer - 1}."
    stems = [*_OUTSIDE, *(f"blk.{layer[1] if layer else 0}.{stem}" for stem in _IN_LAYER)]
    known = [n for stem in stems for n in (f"{stem}.weight", f"{stem}.bias") if has(lib, handle, n)]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.3)
    hint = f" The nearest: {', '.join(near)}." if near else ""
    return f"There is no weight {name!r}; names are as in the GGUF.{hint}"
