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
from ci.soak.programs import PROGRAMS


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
    assert first.keys() == second.keys() and len(first) == 2 * (len(PROGRAMS) + 5 + 3 + 1)
    assert [case for case in first if first[case] != second[case]] == []


def test_the_hash_of_what_is_found_tells_one_bit():
    with interp.Model(models.tiny("llama"), n_ctx=64, n_threads=1) as model:
        run = model.run([1, 2, 3], capture="l_out-1")
        before = determinism_child.digest(run)
        assert determinism_child.digest(model.run([1, 2, 3], capture="l_out-1")) == before
        run["l_out-1"][0, 0] = np.nextafter(run["l_out-1"][0, 0], np.inf)
        assert determinism_child.digest(run) != before


# the measured sizes


def found_as(rows, first: int = 0, resid=None) -> determinism.Found:
    resid = None if resid is None else np.array(resid, np.float32)
    return determinism.Found([1, 2, 3, 4], first, np.array(rows, np.float32), resid)


def test_a_difference_is_given_by_itself_and_as_a_share_of_its_row():
    a, b = np.array([[1.0, -100.0], [2.0, 1.0]], np.float32), np.array([[1.0, -99.0], [2.5, 1.0]], np.float32)
    assert determinism.difference(a, b) == (1.0, 0.25)
    assert determinism.difference(a, a) == (0.0, 0.0)


def test_rows_are_compared_from_the_first_that_was_found():
    plain = found_as([[0, 1], [0, 1], [1, 0], [4, 2]], resid=[[[1], [1], [1], [2]]])
    row = determinism.compare(plain, found_as([[0, 1], [4, 5]], first=2, resid=[[[1], [3]]]))
    assert row == {"logits": (3.0, 1.0), "resid": (1.0, 0.5), "top": [2, 2]}


def test_what_was_not_measured_is_a_row_with_the_reason():
    measured = {"case": "nothing", "logits": (0.0, 0.0), "top": [0, 9]}
    shown = determinism.table("F32", [{"case": "Vulkan", "missing": "no library"}, measured])
    assert shown.lines == [
        ("Vulkan: no library", "", "", "", "", ""), ("nothing", "same bits", "same bits", "", "", "0 of 9"),
    ]  # fmt: skip
