"""The soak's judgement on made-up readings, and on a process that keeps what it should not."""

from __future__ import annotations

import ctypes as ct
import dataclasses
import gc
import json
import math
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import interp
import models
from ci import sanitize
from ci.soak import __main__ as command
from ci.soak import parts, readings, verdict
from ci.soak.readings import Reading
from interp.isolated import border

BOUNDS = {"resident": 100.0, "child": 100.0, "heap": 20.0, "blocks": 0.05}

MB = 1 << 20

TESTS = Path(__file__).resolve().parent
PATHS = os.pathsep.join([str(TESTS.parent), str(TESTS)])

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the soak reads /proc")


def series(n: int = 50, every: int = 200, **grown: float) -> list[Reading]:
    """Readings of a process that settles at 400 MB, with noise of pages; ``grown`` is added for each unit of work."""
    rng, found = np.random.default_rng(0), []
    for done in range(every, (n + 1) * every, every):
        # buffers and caches are filled in the first tenth
        warm = 400 * MB + 30 * MB * min(1.0, 10 * done / (n * every))
        values = {
            "resident": int(warm + 4096 * rng.integers(-20, 20)), "heap": int(warm + 64 * rng.integers(-99, 99)),
            "blocks": int(200_000 + rng.integers(-30, 30)), "threads": 2, "handles": 9, "processes": 0,
        }  # fmt: skip
        found.append(Reading(done, **{name: value + int(grown.get(name, 0) * done) for name, value in values.items()}))
    return found


def test_a_flat_noisy_series_passes():
    assert verdict.complaints(series(), BOUNDS) == []


@pytest.mark.parametrize("what, amount", [("resident", 150), ("heap", 40), ("blocks", 0.1)])
def test_a_small_leak_in_a_noisy_series_fails(what, amount):
    (line,) = verdict.complaints(series(**{what: amount}), BOUNDS)
    assert line.startswith(f"{what} grows by ")


def test_a_leak_of_the_process_that_holds_the_model_fails():
    leaking = [dataclasses.replace(reading, child=100 * MB + 200 * reading.done) for reading in series()]
    (line,) = verdict.complaints(leaking, BOUNDS)
    assert line.startswith("child grows by 200 ")


@pytest.mark.parametrize("what", ["threads", "handles", "processes"])
def test_one_that_stays_fails(what):
    good = series()
    left = [dataclasses.replace(r, **{what: getattr(r, what) + (r.done > 6000)}) for r in good]
    (line,) = verdict.complaints(left, BOUNDS)
    assert line.startswith(f"{what}: ")
    # those of the warm-up are the library's own
    started = [dataclasses.replace(r, **{what: getattr(r, what) + (r.done > 1000)}) for r in good]
    assert verdict.complaints(started, BOUNDS) == []


def test_logits_that_changed_once_fail():
    good = series()
    good[30] = dataclasses.replace(good[30], changed=1)
    assert verdict.complaints(good, BOUNDS) == ["logits of 1 plain runs are not those of the first"]


def test_a_series_too_short_or_too_noisy_to_tell_does_not_pass():
    assert len(verdict.complaints(series(n=2), BOUNDS)) == 3
    wild = [dataclasses.replace(r, resident=r.resident + 50 * MB * (i % 2)) for i, r in enumerate(series())]
    assert verdict.complaints(wild, BOUNDS)


def test_the_slope_is_the_line_of_least_squares():
    done = [10, 20, 30, 40, 50]
    values = [3.0, 1.0, 7.0, 4.0, 9.0]
    (value, _), covariance = np.polyfit(done, values, 1, cov="unscaled")
    rest = np.array(values) - np.polyval(np.polyfit(done, values, 1), done)
    found = verdict.slope(done, values)
    assert math.isclose(found.value, value) and math.isclose(found.error, math.sqrt(covariance[0, 0] * (rest @ rest) / 3))


@pytest.mark.skipif(sanitize.ACTIVE, reason="asks the C library's malloc, and a sanitizer has its own")
def test_a_reading_sees_what_is_held():
    """Memory by the page, handles, threads."""
    before = readings.read(0)
    kept, pipe = np.ones(8 * MB, np.uint8), os.pipe()
    thread = threading.Thread(target=(gate := threading.Event()).wait)
    thread.start()
    after = readings.read(0)
    gate.set()
    thread.join()
    for end in pipe:
        os.close(end)
    assert 7 * MB < after.resident - before.resident and 8 * MB <= after.heap - before.heap < 9 * MB
    assert (after.threads - before.threads, after.handles - before.handles) == (1, 2)
    del kept
    gone = readings.read(0)
    assert (gone.threads, gone.handles) == (before.threads, before.handles) and gone.heap < before.heap + MB


CACHES = """
import sys
import numpy as np
from ci.soak import readings

before = readings.read(0)
for size in range(1, 2000):
    np.ones(size, np.uint8), np.empty(0), bytes(size)
for i in range(300_000):
    sys.intern(f"another {i}")
after = readings.read(0)
kept = [np.ones(1, np.uint8) for _ in range(100)]
held = readings.read(0)
print(after.heap - before.heap, held.heap - after.heap)
"""


@pytest.mark.skipif(sanitize.ACTIVE, reason="asks the C library's malloc, and a sanitizer has its own")
def test_a_reading_does_not_see_what_caches_keep_and_sees_a_hundred_small_arrays():
    """The caches of malloc, of numpy and of Python's interned names: each once looked like a leak."""
    env = {**os.environ, **parts.ALLOCATOR, "PYTHONPATH": PATHS}
    done = subprocess.run([sys.executable, "-c", CACHES], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    cached, held = map(int, done.stdout.split())
    assert abs(cached) < 1000 and 3000 < held < 12_000, (cached, held)


def test_a_plain_run_with_other_logits_is_seen(tiny):
    checked = parts.Checked()
    for _ in range(2):
        checked.check(tiny, "tiny")
    assert checked.changed == 0
    with interp.Model(models.tiny("qwen3"), n_ctx=64, n_threads=1) as other:
        checked.check(other, "tiny")
    assert checked.changed == 1


def test_what_is_wrong_ends_the_command_with_1(monkeypatch, capsys, tmp_path):
    for grown, status in (({}, 0), ({"heap": 999}, 1)):
        monkeypatch.setattr(command, "apart", lambda *_args, grown=grown: iter(series(**grown)))
        monkeypatch.setattr(command.report, "publish", lambda *_args, **_options: None)
        monkeypatch.setattr(sys, "argv", ["soak", "--parts", "runs"])
        assert command.main() == status
    assert "10,000 hooked runs: heap grows by 999" in capsys.readouterr().err


# what the soak found


CHILD = """
import gc, json, sys
import interp, models

tiny = interp.Model(models.tiny("llama"), n_ctx=128, kv_type="f32", flash_attn=False, n_threads=1)
host = interp.edit_host("mlp_out-1", lambda x: x * 0.5)
run = tiny.run([1, 2, 3])

def edited(i):
    tiny.run(list(range(10, 15 + i)), edits=host, logits=None, capture="l_out-0")

def asked(i):
    interp.logit_diff(1000 + i, 20_000 + i)(run)

def grown(work, warm, n):
    counts = []
    for numbers in (range(warm), range(warm, warm + n)):
        for i in numbers:
            work(i)
        gc.collect()
        counts.append(sys.getallocatedblocks())
    return counts[1] - counts[0]

print(json.dumps({fn.__name__: grown(fn, *n) for fn, *n in ((edited, 40, 20), (asked, 600, 300))}))
"""


@pytest.fixture(scope="module")
def grown() -> dict[str, int]:
    """Python's blocks that more work leaves behind, after a warm-up: in a process that does nothing else."""
    env = {**os.environ, "PYTHONPATH": PATHS}
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_host_edit_leaves_no_type_behind_for_each_length(grown):
    """As numpy's as_array does: ctypes keeps pointer types for ever."""
    assert grown["edited"] < 300


def test_a_metric_remembers_no_token_id(grown):
    assert grown["asked"] < 150


def test_memory_that_crosses_to_an_isolated_model_does_not_wait_for_the_garbage_collector():
    """ctypes.cast makes a cycle: megabytes of logits would stay until there is garbage enough."""
    gc.disable()
    try:
        data = border.room(64)
        there = weakref.ref(data)
        given = border.pointer(data, ct.POINTER(ct.c_float))
        assert border.address_of(given) == ct.addressof(data) and border.address_of(ct.c_void_p(5)) == 5
        del data, given
        assert there() is None
    finally:
        gc.enable()
