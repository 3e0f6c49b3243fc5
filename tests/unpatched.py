"""Logits of the unpatched library: run as a child process, because a process can load one libllama only.

    python unpatched.py MODEL TOKENS.json OUT.npy FLASH_ATTN DEVICE [CONTROL_VECTOR STRENGTH]

Uses the bindings of llama-cpp-python, whose structs match the pinned llama.cpp, on the library in
``LLAMA_CPP_LIB_PATH``.
"""

from __future__ import annotations

import ctypes as ct
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def backend() -> str:
    """What the patched library in use was built for: ``"cpu"``, ``"cuda"``, …"""
    from interp import native

    try:
        return json.loads((native.find_library().parent / "manifest.json").read_text())["backend"]
    except (OSError, ValueError, KeyError):
        return "cpu"


def library(built_for: str | None = None) -> Path | None:
    """The folder of the unpatched library, as ``build.py --unpatched`` leaves it; None if it was not built.

    ``built_for`` is a backend, else that of the patched library in use.
    """
    given = os.environ.get("LLAMA_INTERP_UNPATCHED_LIB")
    folder = Path(given) if given else ROOT / "build" / f"unpatched-{built_for or backend()}" / "lib"
    return folder if folder.is_dir() else None


def needed(built_for: str | None = None) -> Path:
    """The same for a test, which is skipped where there is none."""
    import pytest

    folder = library(built_for)
    if folder is None and (given := os.environ.get("LLAMA_INTERP_UNPATCHED_LIB")):
        pytest.skip(f"LLAMA_INTERP_UNPATCHED_LIB names {given}, where nothing is")
    if folder is None:
        pytest.skip(f"the unpatched library is not built: python3 build.py --{built_for or backend()} --unpatched")
    return folder


def logits(
    model: Path, tokens: list[int], folder: Path, scratch: Path, flash_attn: bool = True,
    control: tuple[Path, float] | None = None, device: str | None = None,
) -> np.ndarray:
    """Logits of every position, computed by a child process on the library in a folder: ``(n_tokens, n_vocab)``.

    ``control`` is a control vector's file and its strength. ``device`` is ggml's name of where all layers run; None: what
    llama.cpp chooses.
    """
    (scratch / "tokens.json").write_text(json.dumps(tokens))
    out = scratch / "logits.npy"
    command = [sys.executable, __file__, str(model), str(scratch / "tokens.json"), str(out), str(int(flash_attn)), device or ""]
    command += [str(part) for part in control or ()]
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"the unpatched library failed: {done.stderr[-2000:]}"
    return np.load(out)


class Unpatched:
    """A model in the unpatched library of this process, with the options that the tests give to ``interp.Model``."""

    def __init__(
        self, path: str, n_ctx: int, n_threads: int, flash_attn: bool, cb_eval: Callable | None = None,
        device: str | None = None,
    ):
        """``device``: ggml's name of where all layers run; None: what llama.cpp chooses."""
        import llama_cpp

        self._cpp = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library keeps only the address
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        if device is not None:
            self._devices = _devices(device)  # kept: the library reads it while it loads
            model_params.devices = ct.addressof(self._devices)
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), model_params)
        assert self._model, f"the unpatched library does not load {path}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(n_ctx, 512)
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = int(flash_attn)
        params.no_perf = True
        params.kv_unified = True
        if cb_eval is not None:
            # kept as well; (tensor, ask, user data) -> bool, see ggml-backend.h
            self._cb_eval = params.cb_eval = llama_cpp.ggml_backend_sched_eval_callback(cb_eval)
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        self._cpp.llama_memory_clear(self._cpp.llama_get_memory(self._context), False)

    def steer(self, file: str, strength: float) -> None:
        """What ``--control-vector-scaled`` does; that code stands in llama.cpp's tools, so it is written out here."""
        data, n_embd = _control_vector(file, strength)
        n_layer = self._cpp.llama_model_n_layer(self._model)
        floats = data.ctypes.data_as(ct.POINTER(ct.c_float))
        assert self._cpp.llama_set_adapter_cvec(self._context, floats, data.size, n_embd, 1, n_layer) == 0

    def decode(self, tokens: list[int], first: int = 0, logits: str = "all") -> np.ndarray:
        """Run tokens from a position on; the logits of all of them, or of the last."""
        n = len(tokens)
        batch = self._cpp.llama_batch_init(n, 0, 1)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, first + i, 1, 0
            batch.logits[i] = logits == "all" or i == n - 1
        try:
            assert self._cpp.llama_decode(self._context, batch) == 0
        finally:
            self._cpp.llama_batch_free(batch)
        rows = n if logits == "all" else 1
        return np.ctypeslib.as_array(self._cpp.llama_get_logits(self._context), (rows, self.n_vocab)).copy()


def _devices(name: str) -> ct.Array:
    """The list that ``llama_model_params.devices`` takes, ended by null; of the CPU alone it is empty."""
    if name == "CPU":
        return (ct.c_void_p * 1)(None)
    registry = ct.CDLL(str(next(Path(os.environ["LLAMA_CPP_LIB_PATH"]).glob("*ggml.*"))))
    registry.ggml_backend_dev_by_name.restype = ct.c_void_p
    found = registry.ggml_backend_dev_by_name(name.encode())
    assert found, f"the unpatched library has no device {name}"
    return (ct.c_void_p * 2)(found, None)


class _GgufParams(ct.Structure):
    _fields_ = [("no_alloc", ct.c_bool), ("ctx", ct.POINTER(ct.c_void_p))]


def _control_vector(file: str, strength: float) -> tuple[np.ndarray, int]:
    """A control vector as llama.cpp's ``common_control_vector_load_one`` reads it, with ggml's own reader of GGUF."""
    base = ct.CDLL(str(next(Path(os.environ["LLAMA_CPP_LIB_PATH"]).glob("*ggml-base.*"))))
    for name, result, args in (
        ("gguf_init_from_file", ct.c_void_p, [ct.c_char_p, _GgufParams]),
        ("gguf_get_n_tensors", ct.c_int64, [ct.c_void_p]),
        ("gguf_get_tensor_name", ct.c_char_p, [ct.c_void_p, ct.c_int64]),
        ("ggml_get_tensor", ct.c_void_p, [ct.c_void_p, ct.c_char_p]),
        ("ggml_get_data_f32", ct.POINTER(ct.c_float), [ct.c_void_p]),
        ("ggml_nelements", ct.c_int64, [ct.c_void_p]),
        ("ggml_n_dims", ct.c_int, [ct.c_void_p]),
    ):
        function = getattr(base, name)
        function.restype, function.argtypes = result, args
    context = ct.c_void_p()
    gguf = base.gguf_init_from_file(file.encode(), _GgufParams(False, ct.pointer(context)))
    assert gguf, "llama.cpp does not read the file"
    data, n_embd = np.zeros(0, np.float32), 0
    for i in range(base.gguf_get_n_tensors(gguf)):
        name = base.gguf_get_tensor_name(gguf, i)
        start, _, layer = name.partition(b".")
        tensor = base.ggml_get_tensor(context, name)
        assert start == b"direction" and int(layer) > 0 and base.ggml_n_dims(tensor) == 1
        n_embd = base.ggml_nelements(tensor)
        data.resize(max(data.size, n_embd * int(layer)), refcheck=False)
        values = np.ctypeslib.as_array(base.ggml_get_data_f32(tensor), (n_embd,))
        data[n_embd * (int(layer) - 1) : n_embd * int(layer)] += values * np.float32(strength)
    return data, n_embd


if __name__ == "__main__":
    path, tokens_file, out_file, flash, where, *control = sys.argv[1:]
    model = Unpatched(path, 512, 1, flash == "1", device=where or None)
    if control:
        model.steer(control[0], float(control[1]))
    np.save(out_file, model.decode(json.loads(Path(tokens_file).read_text())))
