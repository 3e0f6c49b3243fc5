"""Calls of a model, each with some of its allocations failing, in a fork for each; answers on stdout, one JSON line each.

    LD_PRELOAD=failing_malloc.so python memory_child.py MODEL STRIDE [STAGE …]

For each stage it is counted first how many allocations the library makes; then a fork runs it with the first of them
failing, another one with the second, and so on, every ``STRIDE``-th; and the same with all of them failing from there
on. The answer is ``{"stage": …, "first": …, "last": …, "outcome": …}``: see :func:`outcome`.
"""

from __future__ import annotations

import ctypes as ct
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import interp

OPTIONS = {"n_ctx": 64, "kv_type": "f32", "flash_attn": False, "n_threads": 1}
TOKENS, OTHER = [11, 4711, 300, 9, 1024, 77], [11, 4711, 301, 9, 1024, 77]

failing = ct.CDLL(None)
failing.failing_arm.argtypes = [ct.c_long, ct.c_long]
failing.failing_disarm.restype = failing.failing_count.restype = ct.c_long


def load(path) -> list[np.ndarray]:
    with interp.Model(path, **OPTIONS) as model:
        return [model.run(TOKENS).logits]


def first_run(model) -> list[np.ndarray]:
    return [model.run(TOKENS).logits]


def captures(model) -> list[np.ndarray]:
    run = model.run(TOKENS, capture=["l_out", "z", interp.at("q", positions=[0, 3]), interp.at("mlp_act", positions=-1)])
    return [run.logits, *(run[str(key)] for key in run.keys)]


def attention(model) -> list[np.ndarray]:
    run = model.run(TOKENS, capture=["attn_scores", interp.at("attn_logits", layers=1, heads=[0, 2], queries=[-1])], logits="last")
    return [run.logits, *(run[str(key)] for key in run.keys)]


def edits(model) -> list[np.ndarray]:
    changes = [
        interp.replace(interp.at("l_out", layers=1, positions=[0, 1]), np.full((2, model.n_embd), 0.5, np.float32)),
        interp.edit("l_out-2", lambda x: x * np.linspace(0, 1, model.n_embd, dtype=np.float32) + x.rms_norm()),
        interp.edit_host("ffn_inp-2", lambda x: x * 2),
        interp.ablate([(1, 2)]),
        interp.knockout(1, [-1], [0]),
    ]
    return [model.run(TOKENS, edits=changes, capture="l_out-2", logits="last").logits]


def parts(model) -> list[np.ndarray]:
    stopped = model.run(TOKENS, capture="l_out-1", stop_after=1)
    resumed = model.resume(stopped["l_out", 1], 2, TOKENS, logits="last")
    return [resumed.logits, model.unembed(stopped["l_out", 1][-1:])]


def generate(model) -> list[np.ndarray]:
    made = model.generate(TOKENS, max_tokens=3, capture="l_out-3")
    return [np.array(made.tokens), made.run["l_out", 3]]


def stats(model) -> list[np.ndarray]:
    found = interp.stats(model, [TOKENS, OTHER], "l_out", n_top=2)
    return [found.channels[1].mean, found.channels[3].max]


def sweep(model) -> list[np.ndarray]:
    return [interp.patch_sweep(model, TOKENS, OTHER, metric=interp.logit_diff(500, 700), layers=[0, 2]).values]


def state(model) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        with model.prefix(TOKENS):
            model.save_state(path)
        with model.load_state(path):
            return [model.run(OTHER[1:], logits="last").logits]


def read(model) -> list[np.ndarray]:
    return [np.array(model.tokens("two words, and a third")), model.weight("blk.1.attn_output.weight"), np.array([len(model.sites())])]


STAGES = {fn.__name__: fn for fn in (load, first_run, captures, attention, edits, parts, generate, stats, sweep, state, read)}


def bits(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def outcome(stage, given, first: int, last: int, expected: str) -> str:
    """``ok``: the bits of a run that lacks nothing. ``error``: one of ours, and the same call gave those bits afterwards.
    ``none failed``: it makes fewer allocations. Anything else begins with ``BUG``."""
    failing.failing_arm(first, last)
    try:
        try:
            found = stage(given)
        finally:
            failing.failing_disarm()
    except (interp.InterpError, MemoryError) as err:
        found, said = None, f"{type(err).__name__}: {err}"
    except BaseException as err:  # noqa: BLE001 - told to the test
        return f"BUG {err!r}"
    if found is not None:
        if bits(found) != expected:
            return "BUG other bits, and no error"
        return "ok" if failing.failing_count() else "none failed"
    try:
        again = bits(stage(given))
    except BaseException as err:  # noqa: BLE001
        return f"BUG after {said!r} the next call fails: {err!r}"
    return f"error {said}" if again == expected else f"BUG after {said!r} other bits"


def forked(stage, given, first: int, last: int, expected: str) -> str:
    """The outcome in a fork, or ``DEAD`` with its status, where the allocation was asked for, and where it died."""
    said, where = os.memfd_create("said"), os.memfd_create("where")
    pid = os.fork()
    if pid == 0:
        try:
            failing.failing_watch(where)
            os.write(said, outcome(stage, given, first, last, expected).encode())
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(said, "rb") as file, os.fdopen(where, "rb") as stacks:
        file.seek(0), stacks.seek(0)
        found = file.read().decode(errors="replace")
        return found if status == 0 and found else f"DEAD {status} {stacks.read().decode(errors='replace')}"


def main(path: str, stride: int, *names: str) -> None:
    model = interp.Model(path, **OPTIONS)
    model.sites()
    for name in names or STAGES:
        stage, given = STAGES[name], path if name == "load" else model
        stage(given)
        failing.failing_arm(0, 0)
        expected = bits(stage(given))
        count = failing.failing_disarm()
        print(json.dumps({"stage": name, "count": count}), flush=True)
        for first in range(1, count + stride, stride):
            for last in (first, 1 << 60):
                found = forked(stage, given, first, last, expected)
                print(json.dumps({"stage": name, "first": first, "last": last, "outcome": found}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
