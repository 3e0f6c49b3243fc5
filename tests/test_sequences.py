"""Whatever was called before, a call gives the bits or the error that it gives on a model that was just loaded."""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, example, given, settings

from call_sequences import sequences
from child import Child
from sequence_child import MODELS

#: sequences that a run of the tests makes; LLAMA_INTERP_SEQUENCES=5000 makes more, and other ones
COUNT = 120
MORE = int(os.environ.get("LLAMA_INTERP_SEQUENCES", "0"))

#: which sequences hypothesis draws depends on the modules that were imported before, whose constants it takes as well;
#: these are always among them: a run that an exception ends from within, and the same run whole
ENDED = [
    {"call": "fail", "prompt": [1, 2, 3], "capture": [], "edits": [], "at": "l_out-1", "after": 1, "kind": kind}
    for kind in ("Raised", "KeyboardInterrupt")
]
WHOLE = {"call": "run", "prompt": [1, 2, 3], "capture": [], "edits": [], "logits": "all", "stop_after": None}


@pytest.fixture
def child():
    with Child("sequence_child.py") as child:
        yield child


def check(child: Child, sequence: dict) -> list[str]:
    """What became of the calls of a sequence, none of which may show that there were others before it."""
    became = child.ask(sequence)
    assert isinstance(became, list), f"this sequence: {json.dumps(sequence)}\n{became}"
    return became


def test_no_call_shows_what_was_called_before_it(child, tried):
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=MORE or COUNT, deadline=None, derandomize=not MORE, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )  # fmt: skip
    @example({"model": MODELS[0], "calls": [ENDED[0], WHOLE, ENDED[1], WHOLE]})
    @given(sequences)
    def abuse(sequence):
        outcomes.update(check(child, sequence))
        tried("sequences of calls on one model")

    abuse()
    tried("calls in sequences, compared with the same call on a new model", outcomes.total())
    print(dict(outcomes))
    assert child.deaths == 0
    # calls that nearly all fail at their first argument would prove nothing
    assert outcomes["ok"] > outcomes.total() / 3
    assert {"SiteError", "EditError", "RunError", "Raised", "KeyboardInterrupt"} <= outcomes.keys()
