"""Memory that runs out is an error of the call, which works afterwards and gives the same bits: at every allocation of the
library, and with a limit on the process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest

import interp
import models
from ci import sanitize
from isolation import OPTIONS, TOKENS, bits

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits and the loading of libraries as Linux has them"),
    pytest.mark.skipif(sanitize.ACTIVE, reason="a sanitizer has its own allocator, and ends the process where that finds nothing"),
]

HERE = Path(__file__).resolve().parent

#: every allocation, and many limits: half an hour
LONG = bool(os.environ.get("LLAMA_INTERP_TEST_LONG"))


@pytest.fixture(scope="module")
def failing_malloc(cxx, tmp_path_factory) -> Path:
    """A library that lets allocations fail, to be loaded before all others."""
    library = tmp_path_factory.mktemp("malloc") / "failing_malloc.so"
    subprocess.run([cxx, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_malloc.cpp"], check=True)
    return library


def outcomes(how: str, model: Path | str, points: int | str, *stages: str, preload: Path | None = None) -> list[dict]:
    """What ``memory_child.py`` answers."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    if preload is not None:
        env["LD_PRELOAD"] = str(preload)
    command = [sys.executable, str(HERE / "memory_child.py"), how, str(model), str(points), *stages]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(answers: list[dict]) -> Counter[str]:
    """No death, no wrong bits, and a message with every error."""
    for answer in answers:
        outcome = answer["outcome"]
        assert outcome.startswith(("ok", "error ")), f"{answer['stage']} at {answer['at']}: {outcome}"
        assert outcome == "ok" or "GGML_ASSERT" not in outcome or "out of memory" in outcome, outcome
    return Counter(answer["outcome"].split()[0] for answer in answers)


def test_every_allocation_of_the_library_may_fail(failing_malloc, tried):
    """In the short form the first and the last one of each place: the last may find something that can be freed twice."""
    answers = outcomes("failing", models.tiny("llama"), 10**9 if LONG else "places", *_RUNS, preload=failing_malloc)
    found = check(answers)
    tried("allocations of the library that failed", len(answers))
    assert found["error"] > 800 and {answer["stage"] for answer in answers} == set(_RUNS)
    # llama.cpp makes its scheduler anew when names of a graph were listed
    assert any("GGML_ASSERT(sched" in answer["outcome"] for answer in answers)


_RUNS = ["first_run", "captures", "attention", "edits", "parts", "generate", "stats", "sweep", "state", "read"]


def test_every_allocation_of_a_load_may_fail(failing_malloc, tried):
    answers = outcomes("failing", models.tiny("llama"), 400 if LONG else 4, "load", preload=failing_malloc)
    assert check(answers)["error"] >= 8
    tried("allocations of the library that failed", len(answers))


def test_a_limit_on_the_process_is_an_error_and_no_death(tried):
    answers = outcomes("limits", models.tiny("llama"), 60 if LONG else 5)
    found = check(answers)
    tried("limits on memory", len(answers))
    assert len(answers) >= 40 and found["error"] >= 6 and found["ok"] >= 6
    # the message says how much was asked for, and what to do
    said = " ".join(answer["outcome"] for answer in answers)
    assert 'No memory for the logits of 400 tokens, 400 x 49152 numbers, 75 MiB: run fewer, or with logits="last".' in said


def test_the_default_model_under_a_limit(tried):
    answers = outcomes("limits", models.default_gguf(), *([40, "load", "many_captures"] if LONG else [4, "load"]))
    assert check(answers)["error"] >= 1
    tried("limits on memory", len(answers))


def test_a_limit_on_an_isolated_model_costs_at_most_its_process(tried):
    """Whatever the library does there, the caller gets one error, and the next call works."""
    kinds = set()
    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        expected = bits(model.run(TOKENS * 20, capture="attn_scores"))
        for kib in [0, 64, 256, 1 << 10, 4 << 10, 16 << 10, 1 << 20]:
            pages = int(Path(f"/proc/{model.pid}/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (kib << 10)
            resource.prlimit(model.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                assert bits(model.run(TOKENS * 20, capture="attn_scores")) == expected
                kinds.add("ok")
            except (interp.InterpError, MemoryError) as err:
                assert str(err)
                kinds.add(type(err).__name__)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.tokens("another process is started where it died")
            resource.prlimit(model.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert bits(model.run(TOKENS * 20, capture="attn_scores")) == expected
            tried("limits on memory")
    assert len(kinds) > 1 and "ok" in kinds
