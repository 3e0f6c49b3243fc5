"""Cases that llama.cpp runs: this project, the unpatched library, and its eval callback.

Each function loads a model in the process that calls it and returns ``{case: function}``.
"""

from __future__ import annotations

import ctypes as ct
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .prompts import LAYER, N_BEGIN, N_CTX, N_GENERATE, corpus, prompt, vector

Cases = dict[str, Callable[[], object]]


def light_patched(path: str, threads: int) -> Cases:
    """The light table's cases of this project."""
    import interp

    model = _model(path, threads)

    def generate(capture=(), edits=()):
        return lambda: model.generate(prompt()[:N_BEGIN], max_tokens=N_GENERATE, capture=capture, edits=edits)

    added = vector(model.n_embd)
    return {
        "prefill, patched": lambda: model.run(prompt()),
        "prefill, l_out of every layer": lambda: model.run(prompt(), capture="l_out"),
        "prefill, attention of every layer and head": lambda: model.run(prompt(), capture="attn_scores"),
        "generate, patched": generate(),
        "generate, l_out of every layer": generate("l_out"),
        "generate, steering at one layer": generate(edits=interp.steer("l_out", LAYER, added)),
        "generate, steering what is generated": generate(
            edits=interp.steer("l_out", LAYER, added, positions="generated")
        ),
        "generate, one head ablated": generate(edits=interp.ablate([(10, 3)])),
        "corpus, statistics of l_out of every layer": lambda: interp.stats(model, corpus(), progress=False),
    }


def light_unpatched(path: str, threads: int, folder: str) -> Cases:
    """The light table's cases of the unpatched library."""
    model = _unpatched(path, threads, folder)

    def decode_corpus() -> None:
        for chunk in corpus():
            model.clear()
            model.decode(chunk, logits="last")

    return {
        "prefill, unpatched": lambda: _prefill(model),
        "generate, unpatched": lambda: _generate(model),
        "corpus, unpatched": decode_corpus,
    }


def ours(path: str, threads: int, subject: str, exact: bool) -> Cases:
    """This project's cases beside other libraries.

    Args:
        exact: F32 cache and no flash attention, which is what the torch libraries compute: flash attention casts keys
            and values to halves, and moves the logits of a sweep by 7e-3.
    """
    import interp
    from reference import sweeps

    model = _model(path, threads, **({"kv_type": "f32", "flash_attn": False} if exact else {}))

    def generate(capture=(), edits=()):
        return lambda: model.generate(prompt()[:N_BEGIN], max_tokens=N_GENERATE, capture=capture, edits=edits)

    prompts = [model.tokens(text) for text in (sweeps.CLEAN, sweeps.CORRUPTED)]
    answers = [model.tokens(text)[0] for text in (sweeps.ANSWER, sweeps.INSTEAD)]
    pair = sweeps.Pair(*prompts, *answers)

    return named(
        subject,
        prefill=lambda: model.run(prompt()),
        prefill_resid=lambda: model.run(prompt(), capture="l_out"),
        prefill_attention=lambda: model.run(prompt(), capture="attn_scores"),
        generate=generate(),
        generate_resid=generate("l_out"),
        generate_steer=generate(edits=interp.steer("l_out", LAYER, vector(model.n_embd))),
        sweep_resid=lambda: sweeps.ours(model, "resid_pre", pair),
        sweep_resid_unpruned=lambda: sweeps.ours(model, "resid_pre", pair, prune=False),
        sweep_z=lambda: sweeps.ours(model, "z", pair),
    )


def unpatched(path: str, threads: int, subject: str, folder: str) -> Cases:
    """The unpatched library's cases; it steers with its own control vectors."""
    model = _unpatched(path, threads, folder)

    def steered() -> None:
        cpp, context = model._cpp, model._context
        n_embd = cpp.llama_model_n_embd(model._model)
        rows = np.zeros((LAYER, n_embd), np.float32)  # the first is of layer 1
        rows[-1] = vector(n_embd)
        floats = rows.ctypes.data_as(ct.POINTER(ct.c_float))
        assert cpp.llama_set_adapter_cvec(context, floats, rows.size, n_embd, LAYER, LAYER) == 0
        _generate(model)
        assert cpp.llama_set_adapter_cvec(context, None, 0, n_embd, LAYER, LAYER) == 0

    return named(
        subject, prefill=lambda: _prefill(model), generate=lambda: _generate(model), generate_steer=steered
    )


def cb_eval(path: str, threads: int, subject: str, folder: str) -> Cases:
    """The unpatched library with an eval callback that copies ``l_out`` of every layer."""
    reader = EvalReader(folder)
    model = _unpatched(path, threads, folder, reader.callback)

    def reading(run: Callable) -> Callable[[], None]:
        def case() -> None:
            reader.held.clear()
            run(model)
            assert len(reader.held) % model._cpp.llama_model_n_layer(model._model) == 0 and reader.held

        return case

    return named(subject, prefill_resid=reading(_prefill), generate_resid=reading(_generate))


class EvalReader:
    """An eval callback of ggml's scheduler that keeps a copy of each ``l_out``.

    ``ggml-backend.h``: the callback is first asked of each node whether its data is wanted, and is then called once
    the node is computed; between two wanted nodes all others are computed at once.
    """

    def __init__(self, folder: str):
        base = ct.CDLL(str(next(Path(folder).glob("*ggml-base.*"))))
        # const char * ggml_get_name(const struct ggml_tensor * tensor);
        base.ggml_get_name.restype, base.ggml_get_name.argtypes = ct.c_char_p, [ct.c_void_p]
        # size_t ggml_nbytes(const struct ggml_tensor * tensor);
        base.ggml_nbytes.restype, base.ggml_nbytes.argtypes = ct.c_size_t, [ct.c_void_p]
        # void ggml_backend_tensor_get(const struct ggml_tensor * tensor, void * data, size_t offset, size_t size);
        base.ggml_backend_tensor_get.restype = None
        base.ggml_backend_tensor_get.argtypes = [ct.c_void_p, ct.c_void_p, ct.c_size_t, ct.c_size_t]
        self._base = base
        self.held: list[np.ndarray] = []

    def callback(self, tensor: int, ask: bool, _user_data: int | None) -> bool:
        if ask:
            return self._base.ggml_get_name(tensor).startswith(b"l_out-")
        copy = np.empty(self._base.ggml_nbytes(tensor) // 4, np.float32)
        self._base.ggml_backend_tensor_get(tensor, copy.ctypes.data, 0, copy.nbytes)
        self.held.append(copy)
        return True


def named(subject: str, **cases: Callable[[], object]) -> Cases:
    """The cases of a subject under the keys that the table of peers gives them."""
    return {f"{row}, {subject}": case for row, case in cases.items()}


def _model(path: str, threads: int, **options):
    import interp

    model = interp.Model(path, n_ctx=N_CTX, n_threads=threads, **options)
    model.vocab.is_end = lambda token: False  # as many tokens as the others generate
    return model


def _unpatched(path: str, threads: int, folder: str, callback: Callable | None = None):
    os.environ["LLAMA_CPP_LIB_PATH"] = folder
    from unpatched import Unpatched

    return Unpatched(path, N_CTX, threads, flash_attn=True, cb_eval=callback)


def _prefill(model) -> None:
    model.clear()
    model.decode(prompt())


def _generate(model) -> None:
    model.clear()
    token = int(model.decode(prompt()[:N_BEGIN], logits="last")[0].argmax())
    for i in range(N_GENERATE - 1):
        token = int(model.decode([token], N_BEGIN + i, "last")[0].argmax())
