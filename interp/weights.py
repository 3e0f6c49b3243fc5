"""Weights of a loaded model, read back as arrays."""

from __future__ import annotations

import ctypes as ct
import difflib
import re

import numpy as np

from . import header
from .errors import ModelError, RunError
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


def read(lib, handle: int, name: str, n_layer: int) -> np.ndarray:
    """
    Raises:
        ModelError: there is no such weight, or it cannot be read back.
    """
    if not isinstance(name, str):
        raise ModelError(f"{name!r} names no weight; give a name as in the GGUF, such as 'blk.0.attn_output.weight'.")
    info = header.TensorInfo()
    if "\0" in name or lib.weight_info(handle, name.encode(), ct.byref(info)) != 0:
        raise ModelError(_missing(lib, handle, name, n_layer))
    ne = list(info.ne)
    while len(ne) > 1 and ne[-1] == 1:
        ne.pop()
    out = allocate(tuple(ne[::-1]), np.float32, name, "close what else is loaded")
    if lib.weight_read(handle, name.encode(), out.ctypes.data_as(ct.POINTER(ct.c_float)), out.size) != 0:
        reason = lib.reason(handle, "it cannot be read")
        if "memory" in reason:
            raise RunError(f"No memory for a copy of {name} as it lies in the model: {reason}.")
        hint = " Load the model with interp.Model(path, repack=False) to read it." if "repacked" in reason else ""
        raise ModelError(f"{reason}.{hint}")
    return out


def _missing(lib, handle: int, name: str, n_layer: int) -> str:
    layer = _LAYER.match(name)
    if layer and int(layer[1]) >= n_layer:
        return f"There is no weight {name!r}: the model has layers 0 to {n_layer - 1}."
    stems = [*_OUTSIDE, *(f"blk.{layer[1] if layer else 0}.{stem}" for stem in _IN_LAYER)]
    known = [n for stem in stems for n in (f"{stem}.weight", f"{stem}.bias") if has(lib, handle, n)]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.3)
    hint = f" The nearest: {', '.join(near)}." if near else ""
    return f"There is no weight {name!r}; names are as in the GGUF.{hint}"
