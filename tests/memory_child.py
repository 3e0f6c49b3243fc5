"""Calls of a model that run out of memory, each in a fork; answers on stdout, one JSON line each.

    LD_PRELOAD=failing_malloc.so python memory_child.py failing MODEL POINTS [STAGE …]
    python memory_child.py limits MODEL POINTS [STAGE …]

``failing``: it is counted first how many allocations the library makes; then a fork runs the stage with the first of them
failing, another one with a later one, at so many points; and the same with all of them failing from there on. ``places``: the
first and the last allocation of each place in the library that no stage before came to, a place being four functions deep.

``limits``: it is measured how much address space the stage takes; then forks run it with limits (``RLIMIT_AS``) from
what is in use up to what is enough.

The answers are ``{"stage": …, "at": …, "outcome": …}``: see :func:`outcome`.
"""

from __future__ import annotations

import contextlib
import ctypes as ct
import hashlib
import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import numpy.random  # what is imported when it is needed could fail, and that is not what is tried here
import safetensors.numpy  # noqa: F401

import interp
from forks import fork_with_models

os.environ["GGML_NO_BACKTRACE"] = "1"  # gdb at every abort

OPTIONS = {"n_ctx": 512, "kv_type": "f32", "flash_attn": False, "n_threads": 1}
TOKENS, OTHER = [11, 4711, 300, 9, 1024, 77], [11, 4711, 301, 9, 1024, 77]

MANY = [7 * i % 40000 + 11 for i in range(400)]


def load(path) -> list[np.ndarray]:
    with interp.Model(path, **OPTIONS) as model:
        return [model.run(TOKENS).logits]


def first_run(model) -> list[np.ndarray]:
    return [model.run(TOKENS).logits]


def captures(model) -> list[np.ndarray]:
    run = model.run(TOKENS, capture=["l_out", "z", interp.at("q", positions=[0, 3]), interp.at("mlp_act", positions=-1)])
    return [run.logits, *(run[str(key)] for key in run.keys)]


def attention(model) -> list[np.ndarray]:
    some = interp.at("attn_logits", layers=1, heads=[0, 2], queries=[-1])
    run = model.run(TOKENS, capture=["attn_scores", some], logits="last")
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
    return [found.var("l_out", 1), found.max("l_out", 3)]


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
    tokens, n_sites = model.tokens("two words, and a third"), len(model.sites())
    return [np.array([*tokens, n_sites]), model.weight("blk.1.attn_output.weight")]


def many_captures(model) -> list[np.ndarray]:
    run = model.run(MANY, capture=["l_out", "q", "mlp_act", "attn_scores"])
    return [run.logits, *(run[str(key)] for key in run.keys)]


def many_edits(model) -> list[np.ndarray]:
    values = np.random.default_rng(0).normal(size=(len(MANY), model.n_embd)).astype(np.float32)
    changes = [interp.add(interp.at("l_out", layers=layer, positions=range(len(MANY))), values) for layer in (0, 1)]
    changes.append(interp.edit("l_out-2", lambda x: x + np.ones((len(MANY), model.n_embd), np.float32)))
    return [model.run(MANY, edits=changes, logits="last").logits]


def saved(model) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        path = model.run(MANY, capture="l_out").save(Path(folder) / "run.npz")
        return [interp.Run.load(path)["l_out"]]


def many_generated(model) -> list[np.ndarray]:
    made = model.generate(MANY, max_tokens=4, capture="attn_scores")
    return [np.array(made.tokens), made.run["attn_scores"]]


_FAILING = load, first_run, captures, attention, edits, parts, generate, stats, sweep, state, read
_LIMITED = load, many_captures, many_edits, saved, many_generated, parts, stats, sweep, state
FAILING, LIMITED = ({fn.__name__: fn for fn in fns} for fns in (_FAILING, _LIMITED))


# // how memory runs out


class _Place(ct.Structure):
    # struct failing_place, failing_malloc.cpp
    _fields_ = [("hash", ct.c_uint64), ("first", ct.c_int64), ("last", ct.c_int64)]


class Failing:
    """Of a stage's allocations those from one on fail; ``last``: up to which one."""

    def __init__(self):
        self._lib = ct.CDLL(None)
        self._lib.failing_arm.argtypes = [ct.c_long, ct.c_long]
        self._lib.failing_places.argtypes = [ct.POINTER(_Place), ct.c_long]
        for fn in (self._lib.failing_disarm, self._lib.failing_count, self._lib.failing_places):
            fn.restype = ct.c_long
        #: the places that a stage before came to
        self._tried: set[int] = set()
        self.watch = self._lib.failing_watch

    def points(self, stage, given, number: str) -> list[tuple[int, int]]:
        def measure() -> str:
            self._lib.failing_arm(0, 0)
            stage(given)
            return json.dumps([self._lib.failing_disarm(), self._places()])

        count, places = json.loads(forked(measure))
        if number == "places":
            firsts = {at for place, first, last in places if place not in self._tried for at in (first, last)}
            self._tried.update(place for place, *_ in places)
        else:
            firsts = range(1, count + 1, max(1, count // int(number)))
        return [(first, last) for first in sorted(firsts) for last in (first, 1 << 60)]

    def _places(self) -> list[tuple[int, int, int]]:
        found = (_Place * (1 << 12))()
        return [(place.hash, place.first, place.last) for place in found[: self._lib.failing_places(found, len(found))]]

    @contextlib.contextmanager
    def short(self, point: tuple[int, int]):
        self._lib.failing_arm(*point)
        try:
            yield
        finally:
            self._lib.failing_disarm()

    def was_short(self) -> bool:
        return self._lib.failing_count() > 0


class Limited:
    """The address space may grow by so many bytes."""

    def points(self, stage, given, number: str) -> list[int]:
        def measure() -> str:
            before = self._status("VmSize")
            stage(given)
            return str(max(0, self._status("VmPeak") - before))

        needed = max(int(forked(measure)), 1 << 20)
        return [int(1.3 * needed * i / (int(number) - 1)) for i in range(int(number))]

    def watch(self, _descriptor: int) -> None:
        """Where it died is not known."""

    @contextlib.contextmanager
    def short(self, point: int):
        ct.CDLL(None).malloc_trim(0)
        resource.setrlimit(resource.RLIMIT_AS, (self._status("VmSize") + point, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def was_short(self) -> bool:
        return True

    @staticmethod
    def _status(name: str) -> int:
        return 1024 * int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0])


# // what becomes of it


def bits(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def outcome(memory, point, stage, given, expected: str) -> str:
    """``ok``: the bits of a run that lacks nothing. ``error``: one of ours, and the same call gave those bits afterwards.
    Anything else begins with ``BUG``."""
    try:
        with memory.short(point):
            found = stage(given)
    except (interp.InterpError, MemoryError) as err:
        found, said = None, f"{type(err).__name__}: {err}"
    except BaseException:  # noqa: BLE001 - told to the test
        return f"BUG {traceback.format_exc()}"
    if found is not None:
        if bits(found) != expected:
            return "BUG other bits, and no error"
        return "ok" if memory.was_short() else "BUG nothing failed"
    try:
        again = bits(stage(given))
    except BaseException as err:  # noqa: BLE001
        return f"BUG after {said!r} the next call fails: {err!r}"
    return f"error {said}" if again == expected else f"BUG after {said!r} other bits"


def forked(work, watch=lambda descriptor: None) -> str:
    """What some work says in a fork, or ``DEAD`` with its status, where memory was asked for, and where it died."""
    said, where = os.memfd_create("said"), os.memfd_create("where")
    pid = fork_with_models()
    if pid == 0:
        try:
            os.dup2(where, 2)
            watch(where)
            os.write(said, work().encode(errors="replace"))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(said, "rb") as answer, os.fdopen(where, "rb") as stacks:
        answer.seek(0), stacks.seek(0)
        found = answer.read().decode(errors="replace")
        return found if status == 0 and found else f"DEAD {status} {stacks.read().decode(errors='replace')}"


def main(how: str, path: str, number: str, *names: str) -> None:
    memory, stages = (Failing(), FAILING) if how == "failing" else (Limited(), LIMITED)
    model = interp.Model(path or None, **OPTIONS)
    model.sites()
    for name in names or stages:
        stage, given = stages[name], path or None if name == "load" else model
        # in a fork, and so is the rest: memory that an earlier run has left would be there for the next
        expected = forked(lambda: bits(stage(given)))
        for point in memory.points(stage, given, number):
            found = forked(lambda: outcome(memory, point, stage, given, expected), memory.watch)
            print(json.dumps({"stage": name, "at": point, "outcome": found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
