"""Reading a little of a long prompt takes little memory: what was not asked for is never made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import models

CHILD = """
import json, resource, sys
import numpy as np
import interp
path, capture = sys.argv[1], eval(sys.argv[2])
model = interp.Model(path, n_ctx=2048, n_threads=1)
tokens = np.random.default_rng(0).integers(100, 40000, 2000).tolist()
run = model.run(tokens, capture=capture, logits="last")
try:
    # a child's ru_maxrss begins with its parent's on Linux
    status = open("/proc/self/status").read()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
print(json.dumps({"peak": peak, "shape": run["attn_scores"].shape if capture else None}))
"""

MB = 1 << 20


def peak(capture: str) -> dict:
    """Peak resident memory in bytes of a process that reads this of 2,000 tokens."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, models.tiny("llama"), capture],
        capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no peak of resident memory on Windows")


@pytest.fixture(scope="module")
def nothing() -> int:
    return peak("()")["peak"]


def test_one_query_of_one_head_is_one_row_and_not_the_square(nothing):
    """All queries of all heads of that layer would be 61 MB, of one head 15."""
    row = peak("interp.at('attn_scores', layers=2, heads=3, queries=-1)")
    assert row["shape"] == [1, 1, 1, 2000]
    grown = (row["peak"] - nothing) / MB
    assert grown < 10, f"{grown:.0f} MB more for one row"


def test_what_is_asked_for_shows_in_that_measure(nothing):
    square = peak("'attn_scores'")
    assert square["shape"] == [4, 4, 2000, 2000] and square["peak"] - nothing > 200 * MB
