"""Parts of a model: the layers from one on, and the output head alone, on residual streams that are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .errors import RunError
from .program import allocate
from .run import Run
from .session import as_layer

if TYPE_CHECKING:
    from .model import Model


def resume(model: "Model", resid, from_layer: int, tokens, edits, capture, logits: str) -> Run:
    """:meth:`Model.resume`: the output of the layer before is replaced, so what computes it is left out."""
    if logits not in ("all", "last"):
        raise RunError(f'logits={logits!r}: give "all" or "last".')
    model._check_open()
    if model.n_prefix:
        raise RunError("A resumed run starts from nothing; a prefix is in force. End it first: model.prefix(None).")
    prompt, tokens = tokens, model._prompt(tokens, 0)
    first = model._table.layer_index(as_layer(from_layer))
    if first == 0:
        raise RunError("Layer 0 starts from tokens. Replace its input: edits=interp.replace('resid_pre-0', resid).")
    resid = np.ascontiguousarray(resid, dtype=np.float32)
    if resid.shape != (len(tokens), model.n_embd):
        raise RunError(f"resid has shape {resid.shape}; for this prompt it must be {(len(tokens), model.n_embd)}.")
    program = model._program(capture, edits, len(tokens), first_layer=first, n_prefix=0)
    outputs = np.ones(len(tokens), np.int8)
    with model._session(program, None, (model._residual(first - 1), resid)) as handle:
        if logits == "last":
            model._choose_logits(program, handle, outputs, len(tokens) - 1)
        read = model._decode(program, handle, tokens, 0, outputs, logits)
        return model._as_run(program, tokens, read, handle, prompt)


def unembed(model: "Model", resid) -> np.ndarray:
    """:meth:`Model.unembed`: the last layer's output is replaced, as many rows at a time as the context has room for."""
    resid = np.asarray(resid, dtype=np.float32)
    if resid.ndim < 1 or resid.shape[-1] != model.n_embd or resid.size == 0:
        raise RunError(f"unembed takes (…, {model.n_embd}); this is {resid.shape}.")
    rows = np.ascontiguousarray(resid.reshape(-1, model.n_embd))
    last = model._residual(model.n_layer - 1)
    out = allocate((len(rows), model.n_vocab), np.float32, f"the logits of {len(rows)} rows", "unembed fewer at a time")
    empty = model._program((), (), 1)
    room = model.n_ctx - empty.offset
    for first in range(0, len(rows), room):
        part = rows[first : first + room]
        outputs = np.ones(len(part), np.int8)
        # the library takes the row of each token's position, and the first positions are the prefix's
        with model._session(empty, None, (last, np.pad(part, ((empty.offset, 0), (0, 0))))) as handle:
            out[first : first + len(part)] = model._decode(empty, handle, [0] * len(part), 0, outputs, "all")
    return out.reshape(*resid.shape[:-1], model.n_vocab)
