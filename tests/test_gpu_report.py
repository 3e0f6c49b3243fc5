"""ci/gpu.sh run: which steps follow which, what the report says, when it fails. Its steps are stand-ins here."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from ci import gpu
from ci.benchmark import light
from ci.project import Project

TESTS = {"passed": "<testcase/>", "failed": "<testcase><failure/></testcase>", "skipped": "<testcase><skipped/></testcase>"}

DEVICE = "<property name='device' value='made up'/>"

ROWS = [{"case": case, "seconds": 1.0, "ratio": 1.001} for case in gpu.BOUNDS]


@pytest.fixture
def steps(tmp_path, monkeypatch) -> dict[str, str]:
    """The Python code of each step; a test replaces what it wants to go wrong."""
    out = tmp_path / "out"
    code = {
        "build": "print('built')",
        "tests": writes(out / "tests.xml", results("passed", "passed")),
        "bench": writes(out / "bench.json", json.dumps(ROWS)),
    }
    monkeypatch.setattr(gpu, "_commands", lambda *_: {name: [sys.executable, "-c", code[name]] for name in code})
    return code


def results(*said: str) -> str:
    """What pytest writes with ``--junitxml``."""
    return f"<testsuites><testsuite><properties>{DEVICE}</properties>{''.join(TESTS[one] for one in said)}</testsuite></testsuites>"


def writes(path: Path, text: str) -> str:
    return f"import pathlib; pathlib.Path({str(path)!r}).write_text({text!r})"


def run(tmp_path: Path, *more: str) -> tuple[int, dict]:
    code = gpu.main(["run", "--out", str(tmp_path / "out"), *more])
    file = tmp_path / "out/report.json"
    return code, json.loads(file.read_text()) if file.exists() else {}


def test_all_steps_and_what_hooks_cost_are_in_one_report(tmp_path, steps, capsys):
    code, report = run(tmp_path)
    assert (code, report["result"], report["schema"]) == (0, "passed", gpu.SCHEMA)
    assert [(step["name"], step["result"]) for step in report["steps"]] == [
        ("build", "passed"), ("tests", "passed"), ("bench", "passed"),
    ]
    assert report["tests"] == {"passed": 2, "failed": 0, "skipped": 0, "failures": []}
    assert report["device"] == "made up"
    assert report["bench"] == ROWS
    assert [cost["case"] for cost in report["costs"]] == list(gpu.BOUNDS) and all(cost["holds"] for cost in report["costs"])
    assert "generate, patched: 1.001, at most 1.01" in capsys.readouterr().out
    assert report["machine"]["cores"] >= 1


def test_a_hook_that_costs_too_much_fails_the_run(tmp_path, steps, capsys):
    slow = [row | {"ratio": 1.05 if row["case"] == "generate, patched" else 1.0} for row in ROWS]
    steps["bench"] = writes(tmp_path / "out/bench.json", json.dumps(slow))
    code, report = run(tmp_path)
    assert (code, report["result"]) == (1, "failed")
    assert [cost["case"] for cost in report["costs"] if not cost["holds"]] == ["generate, patched"]
    assert "generate, patched: 1.050, at most 1.01: too much" in capsys.readouterr().out


def test_after_a_build_that_fails_nothing_runs(tmp_path, steps):
    steps["build"] = "print('no compiler'); raise SystemExit(1)"
    code, report = run(tmp_path)
    assert (code, report["result"], report["tests"], report["bench"]) == (1, "failed", None, None)
    assert [(step["name"], step["exit_code"], step["said"].strip()) for step in report["steps"]] == [("build", 1, "no compiler")]


def test_tests_that_fail_do_not_keep_the_bench_from_running(tmp_path, steps):
    steps["tests"] = writes(tmp_path / "out/tests.xml", results("passed", "failed")) + "; raise SystemExit(1)"
    code, report = run(tmp_path)
    assert (code, report["result"], report["tests"]["failed"]) == (1, "failed", 1)
    assert [step["result"] for step in report["steps"]] == ["passed", "failed", "passed"]


@pytest.mark.parametrize("said", [("skipped", "skipped"), ("passed", "skipped")])
def test_tests_that_skip_are_no_success(tmp_path, steps, said):
    steps["tests"] = writes(tmp_path / "out/tests.xml", results(*said))
    assert run(tmp_path)[0] == 1


def test_where_the_device_is_a_cpu_no_time_is_measured(tmp_path, steps, capsys):
    steps["tests"] = writes(tmp_path / "out/tests.xml", results("passed").replace("made up", "vulkan:0, llvmpipe (LLVM 15)"))
    steps["bench"] = "raise SystemExit(1)"
    code, report = run(tmp_path)
    assert (code, report["result"], report["bench"], report["costs"]) == (0, "passed", None, None)
    assert report["steps"][-1] == {"name": "bench", "result": "left out", "why": "vulkan:0, llvmpipe (LLVM 15) is no GPU"}
    assert "left out" in capsys.readouterr().out


def test_nothing_of_an_earlier_run_is_taken_for_one_of_this(tmp_path, steps):
    run(tmp_path)
    steps["bench"] = "raise SystemExit(1)"
    code, report = run(tmp_path)
    assert (code, report["bench"], report["costs"]) == (1, None, None)
    steps["build"] = "raise KeyboardInterrupt"
    assert run(tmp_path)[1]["tests"] is None


def test_a_bundle_that_is_none_is_refused_in_one_line(tmp_path, steps, capsys):
    code, report = run(tmp_path, "--bundle", str(tmp_path))
    assert (code, report) == (2, {})
    assert capsys.readouterr().err == f"error: {tmp_path} was not made by: bash ci/gpu.sh pack {tmp_path}\n"


def test_with_a_bundle_nothing_is_fetched(tmp_path, steps):
    (tmp_path / "bundle/wheels").mkdir(parents=True)
    steps["build"] = "import os; print(*(os.environ[n] for n in ('PIP_NO_INDEX', 'PIP_FIND_LINKS', 'LLAMA_INTERP_CACHE')))"
    _, report = run(tmp_path, "--bundle", str(tmp_path / "bundle"))
    assert report["steps"][0]["said"].strip() == f"1 {tmp_path}/bundle/wheels {tmp_path}/bundle"


def test_the_bounds_are_for_cases_that_the_bench_has():
    assert set(gpu.BOUNDS) <= set(light.CASES)


def test_the_bundle_holds_what_the_bindings_are_built_with_and_what_they_need(tmp_path):
    text = b"[build-system]\nrequires = ['some-builder>=1']\n[project]\nname = 'b'\ndependencies = ['some-cache>=5']\n"
    with tarfile.open(tmp_path / "bindings.tar.gz", "w:gz") as packed:
        for name in ("bindings-1/pyproject.toml", "bindings-1/vendor/pyproject.toml"):
            member = tarfile.TarInfo(name)
            member.size = len(text) if name.count("/") == 1 else 0
            packed.addfile(member, io.BytesIO(text))
    wanted = gpu._build_requirements(Project(), tmp_path / "bindings.tar.gz")
    assert {"some-builder>=1", "some-cache>=5"} < set(wanted) and any(one.startswith("setuptools") for one in wanted)
