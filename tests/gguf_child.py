"""Opens damaged GGUF files, one after another: for ``child.Child``.

A question is the number of a file of ``gguf_fuzz``. The answer is ``"ok"``, the name of an InterpError, or ``"BUG …"``
for any other exception and for a result of the wrong shape.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from pathlib import Path

import numpy as np

import gguf_fuzz
import interp
from child import serve

#: bytes that the process may have: a file must not take all that the machine has
MEMORY = 4 << 30


def use(path: Path, number: int) -> None:
    """Load a model and use it a little; whatever it raises goes to the caller."""
    threads = 2 if number % 4 == 1 else 1
    with interp.Model(path, n_ctx=16, n_threads=threads, flash_attn=number % 2 == 0) as model:
        tokens = [token % model.n_vocab for token in (1, 70, 301)]
        run = model.run(tokens, capture=("l_out", "attn_scores"))
        assert run.logits.shape == (3, model.n_vocab)
        assert run["attn_scores"].shape[-2:] == (3, 3) and run["l_out"].shape[1:] == (3, model.n_embd)
        assert len(model.pieces(range(model.n_vocab))) == model.n_vocab
        model.run("wörld <|im_start|> 1\n", logits="last")
        try:
            model.chat_prompt("Hello")
        except (interp.ModelError, interp.RunError) as err:
            # these files have no template, or a damaged one; anything else is an outcome of its own
            assert "template" in str(err), err
        if np.isfinite(run.logits).all():
            model.generate(tokens, max_tokens=2)


def outcome(path: Path, number: int) -> str:
    path.write_bytes(gguf_fuzz.changed(number)[0])
    try:
        use(path, number)
    except interp.InterpError as err:
        return type(err).__name__ if str(err) else f"BUG {err!r}"
    except Exception:
        return f"BUG {traceback.format_exc()}"
    return "ok"


if __name__ == "__main__":
    # AddressSanitizer reserves terabytes
    if "LLAMA_INTERP_SANITIZE" not in os.environ:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(lambda number: outcome(Path(sys.argv[1], "changed.gguf"), number))
