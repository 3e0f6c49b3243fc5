"""The sites of a loaded model: what llama.cpp's graph names, with the axes that this package documents."""

from __future__ import annotations

import ctypes as ct

from . import header, native
from .errors import RunError
from .sites import ATTENTION, Site

#: the batch in which sites are listed
_N_TOKENS = 13

#: the smallest context in which they can be: they are listed twice, the second time with one token more
MIN_BATCH = _N_TOKENS + 1

_HEADED = {"Qcur", "Kcur", "Vcur", "Qcur_normed", "Kcur_normed", "q_pe", "k_pe"}

_NORMED = {"Qcur_normed": "Qcur", "Kcur_normed": "Kcur"}


def scan(lib: native.Library, handle: int, n_embd: int, n_vocab: int) -> list[Site]:
    """List the sites from a graph that is built but not run, in graph order."""
    count = lib.scan(handle, _N_TOKENS)
    if count < 0:
        raise RunError(lib.reason(handle, "the sites cannot be listed"))
    found = [_get(lib, handle, i) for i in range(count)]
    counts: dict[tuple[bytes, int], int] = {}
    for info in found:
        counts[info.name, info.il] = max(counts.get((info.name, info.il), 0), info.occurrence + 1)
    n_heads = _heads_of_flat(found)
    return [
        _describe(info, counts[info.name, info.il], n_heads.get((info.name.decode(), info.il), 0), n_embd, n_vocab)
        for info in found
    ]


def _get(lib: native.Library, handle: int, i: int) -> header.SiteInfo:
    info = header.SiteInfo()
    lib.scan_get(handle, i, ct.byref(info))
    return info


def _heads_of_flat(found: list[header.SiteInfo]) -> dict[tuple[str, int], int]:
    """How many heads lie side by side in a row, for tensors that ggml holds flat: (name, layer) -> heads."""
    heads: dict[tuple[str, int], int] = {}
    for info in found:
        name = info.name.decode()
        if name in ATTENTION:
            heads["kqv_out", info.il] = heads["attn_gated", info.il] = int(info.ne[2])
    split = {(info.name.decode(), info.il): int(info.ne[1]) for info in found if info.rows_axis == 2}
    for info in found:
        name = info.name.decode()
        # one norm over all heads comes before the row is split, and then the projection is never named split either
        if name in _NORMED and info.rows_axis == 1 and (_NORMED[name], info.il) in split:
            heads[name, info.il] = heads[_NORMED[name], info.il] = split[_NORMED[name], info.il]
    return heads


def _describe(info: header.SiteInfo, count: int, n_head: int, n_embd: int, n_vocab: int) -> Site:
    name = info.name.decode()
    # dimensions beyond the tokens' are ones
    n_dims = max([info.rows_axis + 1, *(d + 1 for d in range(4) if info.ne[d] > 1), 1])
    shape = tuple(None if d == info.rows_axis else int(info.ne[d]) for d in reversed(range(n_dims)))
    flat_heads = n_head if n_head and len(shape) == 2 and shape[1] % n_head == 0 else 0
    if name in ATTENTION:
        axes, shape = ("n_head", "n_query", "n_key"), (shape[0], None, None)
    elif flat_heads:
        axes, shape = ("n_tokens", "n_head", "d_head"), (None, flat_heads, shape[1] // flat_heads)
    else:
        axes = _axes(name, shape, n_embd, n_vocab)
    return Site(
        name=name,
        layer=info.il,
        axes=axes,
        shape=shape,
        occurrence=info.occurrence,
        n_occurrences=count,
        dtype="int32" if info.type == header.GGML_TYPE_I32 else "float32",
        editable=not info.is_leaf and info.type == header.GGML_TYPE_F32,
        rows_axis=info.rows_axis,
        n_heads=flat_heads,
    )


def _axes(name: str, shape: tuple[int | None, ...], n_embd: int, n_vocab: int) -> tuple[str, ...]:
    """Names of the axes, as far as shape and name tell."""
    if len(shape) == 3 and shape[0] is None and name in _HEADED:
        return ("n_tokens", "n_head", "d_head")
    axes = []
    for axis, length in enumerate(shape):
        if length is None:
            axes.append("n_tokens")
        elif axis == len(shape) - 1 and length == n_embd:
            axes.append("n_embd")
        elif axis == len(shape) - 1 and length == n_vocab:
            axes.append("n_vocab")
        elif axis == len(shape) - 1 and len(shape) == 2 and name.startswith("ffn"):
            axes.append("n_ff")
        else:
            axes.append(f"dim_{axis}")
    return tuple(axes)
