"""No program that Python can write ends the process: hundreds of generated ones, good and bad, in one child."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from abuse_programs import programs
from child import Child

#: programs that a run of the tests sends
COUNT = 400


@pytest.fixture
def child():
    with Child("abuse_child.py") as child:
        yield child


def check(child: Child, program) -> str:
    """What became of a program: "ok", or the name of an InterpError."""
    outcome = child.ask(program)
    assert not outcome.startswith(("BUG", "DEAD", "HANGS")), f"this program: {json.dumps(program)}\n{outcome}"
    return outcome


def test_generated_programs_end_well_or_in_an_error_and_leave_no_trace(child, tried):
    before = child.ask("plain")
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=COUNT, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(programs())
    def abuse(program):
        outcomes[check(child, program)] += 1
        tried("programs of one call")

    abuse()
    print(dict(outcomes))
    assert child.deaths == 0
    assert child.ask("plain") == before
    # a generator whose programs all fail at the first argument would prove nothing
    assert outcomes["ok"] > COUNT / 8
    assert {"SiteError", "EditError", "RunError"} < outcomes.keys()
