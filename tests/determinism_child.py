"""Runs programs of every kind and writes a hash of all that each found: two processes must write the same.

    python determinism_child.py     # one JSON object on stdout: case -> hash
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import interp
import models
from ci.soak.programs import PROGRAMS, Draw
from isolation import bits

#: what calls each kind of kernel; of several threads, which wait for each other where others use the cores, and of the
#: default model these alone
FEW = ("capture_everything", "expression", "generation")
SEVERAL_THREADS = (*FEW, "patch_sweep", "statistics")

N_CTX = 64


def digest(found) -> str:
    """Of every bit of what a program found."""
    into = hashlib.sha256()
    _add(bits(found), into)
    return into.hexdigest()


def _add(part, into) -> None:
    if isinstance(part, dict):
        part = list(part.items())
    if isinstance(part, (list, tuple)):
        into.update(f"{type(part).__name__} of {len(part)}".encode())
        for inner in part:
            _add(inner, into)
    else:
        into.update(part if isinstance(part, bytes) else repr(part).encode())


def cases():
    """Names and functions, a model at a time."""
    tiny = models.tiny("llama")
    for path, n_threads, names in (
        (tiny, 1, PROGRAMS), (tiny, 2, SEVERAL_THREADS), (None, 1, FEW), (None, 2, FEW[1:2]),
    ):  # fmt: skip
        for flash_attn in (True, False):
            with interp.Model(path, n_ctx=N_CTX, flash_attn=flash_attn, n_threads=n_threads) as model:
                where = f"{model.name}, {n_threads} threads, flash attention {'on' if flash_attn else 'off'}"
                for seed, name in enumerate(names):
                    yield f"{name}: {where}", PROGRAMS[name](model, Draw(model, seed))


if __name__ == "__main__":
    print(json.dumps({case: digest(found) for case, found in cases()}))
