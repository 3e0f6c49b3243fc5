"""Logits of the unpatched library: run as a child process, because a process can load one libllama only.

    python unpatched.py MODEL TOKENS.json OUT.npy FLASH_ATTN

Uses the bindings of llama-cpp-python, whose structs match the pinned llama.cpp, on the library in
``LLAMA_CPP_LIB_PATH``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def library() -> Path | None:
    """The folder of the unpatched library, as ``build.py --unpatched`` leaves it; None if it was not built."""
    given = os.environ.get("LLAMA_INTERP_UNPATCHED_LIB")
    folder = Path(given) if given else ROOT / "build" / "unpatched-cpu" / "lib"
    return folder if folder.is_dir() else None


def logits(model: Path, tokens: list[int], folder: Path, scratch: Path, flash_attn: bool = True) -> np.ndarray:
    """Logits of every position, computed by a child process on the library in a folder: ``(n_tokens, n_vocab)``."""
    (scratch / "tokens.json").write_text(json.dumps(tokens))
    out = scratch / "logits.npy"
    command = [sys.executable, __file__, str(model), str(scratch / "tokens.json"), str(out), str(int(flash_attn))]
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"the unpatched library failed: {done.stderr[-2000:]}"
    return np.load(out)


class Unpatched:
    """A model in the unpatched library of this process, with the options that the tests give to ``interp.Model``."""

    def __init__(self, path: str, n_ctx: int, n_threads: int, flash_attn: bool):
        import llama_cpp

        self._cpp = llama_cpp
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library keeps only the address
        llama_cpp.llama_log_set(self._quiet, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(n_ctx, 512)
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = int(flash_attn)
        params.no_perf = True
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def clear(self) -> None:
        self._cpp.llama_memory_clear(self._cpp.llama_get_memory(self._context), False)

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


if __name__ == "__main__":
    path, tokens_file, out_file, flash = sys.argv[1:]
    np.save(out_file, Unpatched(path, 512, 1, flash == "1").decode(json.loads(Path(tokens_file).read_text())))
