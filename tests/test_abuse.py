"""No program that Python can write ends the process: hundreds of generated ones, good and bad, in one child."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import abuse_child
from abuse_programs import programs

#: programs that a run of the tests sends
COUNT = 400


class Child:
    """A process that runs programs, one at a time; a dead one is replaced, so that hypothesis can shrink."""

    def __init__(self):
        self._process: subprocess.Popen | None = None
        self.deaths = 0

    def _start(self) -> None:
        # a file: nobody empties a pipe while answers are waited for
        self._errors = tempfile.TemporaryFile("w+")
        command = [sys.executable, str(Path(abuse_child.__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )

    def ask(self, program) -> str:
        """What became of a program: "ok", the name of an InterpError, "BUG …" or "DEAD …"."""
        if self._process is None:
            self._start()
        self._process.stdin.write(json.dumps(program) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer:
            return json.loads(answer)["outcome"]
        return self._died()

    def _died(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read()[-3000:]
        self.close()
        self.deaths += 1
        return f"DEAD: exit status {status}\n{said}"

    def close(self) -> None:
        if self._process is not None:
            self._process.stdout.close()
            self._process.stdin.close()
            self._process.wait()
            self._errors.close()
            self._process = None


@pytest.fixture
def child():
    child = Child()
    yield child
    child.close()


def check(child: Child, program) -> str:
    """The outcome of a program, which must be success or an error of this package."""
    outcome = child.ask(program)
    assert not outcome.startswith(("BUG", "DEAD")), f"this program: {json.dumps(program)}\n{outcome}"
    return outcome


def test_generated_programs_end_well_or_in_an_error_and_leave_no_trace(child):
    before = child.ask("plain")
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=COUNT, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(programs())
    def abuse(program):
        outcomes[check(child, program)] += 1

    abuse()
    print(dict(outcomes))
    assert child.deaths == 0
    assert child.ask("plain") == before
    # a generator whose programs all fail at the first argument would prove nothing
    assert outcomes["ok"] > COUNT / 8
    assert {"SiteError", "EditError", "RunError"} < outcomes.keys()
