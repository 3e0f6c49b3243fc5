"""The stages after apply: compile the moved series, compare layouts and symbols, run the tests on the new library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from ci import cuda, library, plan, toolchain
from ci.project import Project
from ci.rebasing import layouts
from ci.rebasing.upstream import Store
from ci.steps import Report, child_options, read_json, run, tail

#: reports what the library of LLAMA_INTERP_LIB has, beside what the package expects, as JSON
_PROBE = "import json; from interp import native; print(json.dumps(native.abi_report(native.find_library())))"


def target(project: Project, base: str, backend: str) -> library.Target:
    """The patched library of a project, as ``build.py`` names and caches it."""
    return plan.target(project, backend, True, base, Path(sys.prefix), {})


def build(moved: Project, store: Store, backend: str, jobs: int, report: Report) -> tuple[Path, str]:
    """Compiles the store's tree, or takes the same library from the cache.

    Returns:
        the library's folder, and one line that says where it is from.

    Raises:
        BuildError: it does not compile; the message holds the end of the log.
    """
    if backend == "cuda":
        cuda.ensure(moved, Path(sys.prefix), report)
    one = target(moved, store.head.commit, backend)
    library.link_runtime(one)
    if library.from_cache(one, report):
        return one.lib, "taken from the cache, the sources are the same"
    library.compile(one, store.tree, jobs, report)
    library.share(one, report)
    return one.lib, f"compiled for {backend} with {toolchain.version(toolchain.cxx())}"


def compile_ratio(old: Path, new: Path) -> float | None:
    """The time that all objects of a library took to compile, as a ratio to another's; None where it is not known."""
    took = [read_json(lib / "manifest.json").get("compile_seconds") for lib in (old, new)]
    return round(took[1] / took[0], 3) if all(took) else None


def abi(moved: Project, store: Store, lib: Path) -> tuple[dict, str | None]:
    """Compares what the package relies on with what the library has, field by field.

    Layouts of upstream's own structs are compared between the two commits as well. They may differ: none crosses.

    Returns:
        the part ``abi`` of the report, and what is wrong, None where nothing is.

    Raises:
        BuildError: the library does not load.
    """
    probe, env = [sys.executable, "-c", _PROBE], _environment(moved, lib)
    printed = run(probe, cwd=moved.root, env=env, fail="the new library does not load")
    found = json.loads(printed.splitlines()[-1])
    upstream, why = layouts.compare(store)
    found |= {"upstream_structs": upstream, "upstream_structs_unknown": why}
    wrong = [*found["differences"], *(f"{name} is missing" for name in found["missing_symbols"])]
    return found, "; ".join(wrong) or None


def test(moved: Project, lib: Path, arguments: list[str], report: Report) -> tuple[dict, str | None]:
    """Runs pytest in the moved project on the new library.

    Returns:
        the part ``tests`` of the report, and what is wrong, None where nothing is.
    """
    results = moved.build / "tests.xml"
    results.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", *arguments]
    done = subprocess.run(
        command, cwd=moved.root, env=_environment(moved, lib), text=True, encoding="utf-8", errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **child_options(),
    )
    found = count_tests(results) | {"selection": arguments, "exit_code": done.returncode}
    # pytest's own code for "no test was selected" must not pass for success
    return found, None if done.returncode == 0 and found["passed"] else tail(done.stdout, 12)


def count_tests(results: Path) -> dict:
    counts: dict = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    if not results.is_file():
        return counts
    for case in ET.parse(results).iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[kind] += 1
        if kind == "failed":
            counts["failures"].append(f"{case.get('classname')}::{case.get('name')}")
    return counts


def _environment(moved: Project, lib: Path) -> dict[str, str]:
    """The new library and the moved package, and no library of another commit to compare with."""
    env = os.environ | {
        "LLAMA_INTERP_LIB": str(lib),
        "LLAMA_INTERP_UNPATCHED_LIB": str(moved.build / "unpatched-cpu" / "lib"),
        "PYTHONPATH": str(moved.root),
    }
    # a skip for want of the unpatched library is no failure here
    env.pop("LLAMA_INTERP_CI", None)
    return env
