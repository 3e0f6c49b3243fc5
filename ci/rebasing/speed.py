"""The new library's speed beside that of the pin, both patched, interleaved in one run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ci import environment
from ci.benchmark import harness, libraries
from ci.benchmark.report import quartiles
from ci.project import BuildError, Project
from ci.steps import Report

#: of what ci/bench.py measures, what needs nothing but the library
CASES = ("prefill, patched", "generate, patched")

ROUNDS = 7


def compare(project: Project, old: Path, new: Path, report: Report) -> list[dict]:
    """The time that the new library takes as a ratio to the old one's: above 1 it is slower.

    Returns:
        for each case ``case``, ``seconds`` (the new one's median), and ``ratio`` with its quartiles ``ratio_low`` and
        ``ratio_high``, taken within rounds.

    Raises:
        BuildError: the default model is not installed, or a library does not run.
    """
    model = environment.model_file(environment.prefix(project), project)
    if model is None:
        raise BuildError("the default model is not installed. Install it with: python3 build.py test -k none")
    workers = [
        harness.Worker(name, _cases, (name, str(lib), str(model), harness.cores())) for name, lib in
        (("old", old), ("new", new))
    ]
    cases = [harness.Case(f"{name}: {case}", name) for case in CASES for name in ("old", "new")]
    try:
        seconds, _ = harness.measure(workers, cases, ROUNDS, 0, lambda text: report.line("bench", text))
    except SystemExit as error:
        # what ci/bench.py ends with, its reason in words
        raise BuildError(str(error)) from error
    return [_row(case, seconds[f"old: {case}"], seconds[f"new: {case}"]) for case in CASES]


def _row(case: str, old: dict[int, float], new: dict[int, float]) -> dict:
    low, middle, high = quartiles(new[number] / old[number] for number in new)
    return {
        "case": case.partition(",")[0], "seconds": quartiles(new.values())[1],
        "ratio_low": low, "ratio": middle, "ratio_high": high,
    }


def _cases(name: str, lib: str, model: str, threads: int) -> dict[str, Callable[[], object]]:
    """In a process of its own: it can load one library only."""
    os.environ["LLAMA_INTERP_LIB"] = lib
    found = libraries.light_patched(model, threads)
    return {f"{name}: {case}": found[case] for case in CASES}
