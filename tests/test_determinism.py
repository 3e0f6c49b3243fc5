"""The same program, build and number of threads: the same bits, in any process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import determinism_child
import interp
import models
from ci import determinism


@pytest.fixture(scope="module")
def found() -> list[dict[str, str]]:
    """What two processes found, one after the other: threads that share a core would wait for each other."""
    command = [sys.executable, str(Path(determinism_child.__file__))]
    done = [subprocess.run(command, capture_output=True, text=True) for _ in range(2)]
    assert not any(one.returncode for one in done), done[0].stderr[-2000:] + done[1].stderr[-2000:]
    return [json.loads(one.stdout) for one in done]


def test_two_processes_find_the_same_bits(found, tried):
    first, second = found
    tried("programs compared between two processes", len(first))
    assert first.keys() == second.keys() and len(first) > 100
    assert [case for case in first if first[case] != second[case]] == []


def test_the_hash_of_what_is_found_tells_one_bit():
    with interp.Model(models.tiny("llama"), n_ctx=64, n_threads=1) as model:
        run = model.run([1, 2, 3], capture="l_out-1")
        before = determinism_child.digest(run)
        assert determinism_child.digest(model.run([1, 2, 3], capture="l_out-1")) == before
        run["l_out-1"][0, 0] = np.nextafter(run["l_out-1"][0, 0], np.inf)
        assert determinism_child.digest(run) != before
