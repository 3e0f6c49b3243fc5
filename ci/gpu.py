"""Everything that wants a machine with a GPU, in one command: build, tests, bench, and one JSON report.

    bash ci/gpu.sh pack DIR [--backend cuda]       with a network: puts all that is downloaded into a folder
    bash ci/gpu.sh run [--bundle DIR]              on the machine with the GPU; with the folder no network is needed

The folder fits machines with the same system, processor and version of Python. ``run`` goes through build (the patched
and the unpatched library, from the pinned source archive), tests (pytest -m gpu) and bench (ci/bench.py, whose ratios
must keep the bounds that hooks have on a GPU), and writes out/gpu/report.json after each, so that a machine that is
taken away leaves what was measured. On Mesa's llvmpipe, which is no GPU, the bench is left out: its times say nothing. It ends with 0 if all went well, with 1 if a step failed: then the steps after it,
which need it, are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tarfile
import time
import tomllib
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ci import environment, nvidia, source, toolchain, vulkan
from ci.project import BuildError, Project
from ci.steps import Report, exit_code, read_json, remove, run, tail, write_json

#: counted up when a field of the report changes its meaning or goes
SCHEMA = 1

#: rounds of the bench: the quartiles of seven are the second and the sixth
ROUNDS = 7

#: case of the bench -> the most that its median ratio may be: to the unpatched library, of steering to the idle hooks
BOUNDS = {
    "prefill, patched": 1.01,
    "generate, patched": 1.01,
    "generate, l_out of every layer": 1.02,
    "generate, steering at one layer": 1.01,
}


def main(given: list[str] | None = None) -> int:
    args = parse(given)
    project, report = Project(), Report()
    work = pack if args.verb == "pack" else measure
    return exit_code(lambda: work(project, args, report), "out/gpu/report.json holds what was done")


def parse(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ci/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="pack|run")
    packing = verbs.add_parser("pack", help="put all that is downloaded into a folder")
    packing.add_argument("folder", type=Path, metavar="DIR")
    running = verbs.add_parser("run", help="build, test, measure")
    running.add_argument("--bundle", type=Path, metavar="DIR", help="what pack made: nothing is fetched")
    running.add_argument("--out", type=Path, default=Project().root / "out" / "gpu", metavar="DIR",
                         help="where report.json and the logs go (default: out/gpu)")
    running.add_argument("--rounds", type=int, default=ROUNDS, help="of the bench (default: %(default)s)")
    running.add_argument("--arch", metavar="LIST", help="for CUDA: architectures, as build.py --cuda-arch takes them")
    for one in (packing, running):
        one.add_argument("--backend", choices=toolchain.BACKENDS, default="cuda", help="default: %(default)s")
    return parser.parse_args(given)


# // with a network


def pack(project: Project, args: argparse.Namespace, report: Report) -> int:
    """Downloads what ``run --bundle`` will install and compile."""
    pin, wheels = project.pin(), args.folder / "wheels"
    os.environ["LLAMA_INTERP_CACHE"] = str(args.folder)
    wheels.mkdir(parents=True, exist_ok=True)
    with report.step("archives") as step:
        headers = vulkan.lacking(vulkan.found(), {}) if args.backend == "vulkan" else []
        files = [source.download(project, package) for package in (pin.sdist, pin.model, *headers)]
        step.result = ", ".join(file.name for file in files)
    with report.step("packages") as step:
        extras = {"build", "test", *({"cuda"} if args.backend == "cuda" else ())}
        wanted = [*environment.requirements(project, extras), *_build_requirements(project, files[0])]
        run([sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input",
             "-d", wheels, *wanted], fail="cannot download the packages")
        step.result = f"{len(list(wheels.iterdir()))} files"
    size = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
    report.line("ready", f"{args.folder}, {size / 2**20:.0f} MiB. There: bash ci/gpu.sh run --bundle DIR")
    return 0


def _build_requirements(project: Project, bindings: Path) -> list[str]:
    """What pip needs to build this project, and to build and install the bindings."""
    ours = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))
    with tarfile.open(bindings) as packed:
        name = next(name for name in packed.getnames() if name.count("/") == 1 and name.endswith("/pyproject.toml"))
        theirs = tomllib.loads(packed.extractfile(name).read().decode())
    requires = [*ours["build-system"]["requires"], *theirs["build-system"]["requires"]]
    return requires + theirs["project"].get("dependencies", [])


# // on the machine with the GPU


def measure(project: Project, args: argparse.Namespace, report: Report) -> int:
    """Runs the steps; returns the exit code."""
    env = os.environ | _offline(args.bundle)
    args.out.mkdir(parents=True, exist_ok=True)
    # nothing of an earlier run may be taken for one of this
    for leftover in ("report.json", "tests.xml", "bench.json"):
        remove(args.out / leftover)
    found = {
        "schema": SCHEMA, "result": "passed", "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": args.backend, "machine": _machine(), "seconds": None, "library": None, "steps": [], "device": None,
        "tests": None, "bench": None, "costs": None,
    }
    started = time.monotonic()
    for name, command in _commands(project, args).items():
        if name == "bench" and "llvmpipe" in (found["device"] or ""):
            found["steps"].append({"name": name, "result": "left out", "why": f"{found['device']} is no GPU"})
            write_json(args.out / "report.json", found)
            report.line(name, f"left out: {found['device']} is no GPU")
            continue
        passed = _step(name, command, env, project, args.out, found, report)
        found["library"] = read_json(project.build / args.backend / "lib" / "manifest.json") or None
        found["bench"] = _rows(args.out / "bench.json")
        found["seconds"] = round(time.monotonic() - started, 1)
        if found["bench"]:
            found["costs"] = costs(found["bench"])
            passed = passed and all(cost["holds"] for cost in found["costs"])
        if not passed:
            found["result"] = "failed"
        write_json(args.out / "report.json", found)
        # a test that fails does not spoil what is measured after it
        if not passed and name != "tests":
            break
    for cost in found["costs"] or ():
        said = "" if cost["holds"] else ": too much"
        report.line("cost", f"{cost['case']}: {cost['ratio']:.3f}, at most {cost['at_most']:.2f}{said}")
    report.line("report", f"{found['result']} ({found['seconds']:.0f} s) {args.out / 'report.json'}")
    return 0 if found["result"] == "passed" else 1


def _rows(path: Path) -> list[dict] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def costs(rows: list[dict]) -> list[dict]:
    """What hooks cost, and whether that keeps the bounds; ``rows`` are those of the bench's light table."""
    ratios = {row["case"]: row["ratio"] for row in rows if "ratio" in row}
    return [
        {"case": case, "ratio": ratios[case], "at_most": most, "holds": ratios[case] <= most}
        for case, most in BOUNDS.items()
    ]


def _offline(bundle: Path | None) -> dict[str, str]:
    if bundle is None:
        return {}
    bundle = bundle.resolve()
    if not (bundle / "wheels").is_dir():
        raise BuildError(f"{bundle} was not made by: bash ci/gpu.sh pack {bundle}")
    return {"LLAMA_INTERP_CACHE": str(bundle), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(bundle / "wheels")}


def _commands(project: Project, args: argparse.Namespace) -> dict[str, list]:
    python = environment.python(environment.prefix(project))
    arch = ["--cuda-arch", args.arch] if args.arch else []
    return {
        # what a test run needs: both libraries, the model, the bindings, the packages
        "build": [sys.executable, "build.py", f"--{args.backend}", *arch, "test", "--collect-only", "-q"],
        "tests": [python, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={args.out / 'tests.xml'}"],
        "bench": [python, "ci/bench.py", "--rounds", args.rounds, "--json", args.out / "bench.json"],
    }


def _step(name: str, command: list, env: dict, project: Project, out: Path, found: dict, report: Report) -> bool:
    from ci.rebasing.checks import count_tests

    command = [str(part) for part in command]
    report.line(name, shlex.join(command))
    started = time.monotonic()
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=project.root, env=env, stdin=subprocess.DEVNULL, stdout=log,
                              stderr=subprocess.STDOUT)
    passed, said = done.returncode == 0, (out / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    if name == "tests":
        found["tests"] = count_tests(out / "tests.xml")
        found["device"] = _device(out / "tests.xml")
        # all of them skip where there is no GPU, and here nothing that one needs may be missing: that is no success
        passed = passed and found["tests"]["passed"] > 0 and found["tests"]["skipped"] == 0
    seconds = round(time.monotonic() - started, 1)
    found["steps"].append({
        "name": name, "command": shlex.join(command), "result": "passed" if passed else "failed", "seconds": seconds,
        "exit_code": done.returncode, "said": tail(said, 3 if passed else 30),
    })
    report.line(name, f"{'passed' if passed else 'failed'} ({seconds:.0f} s), log in {out / name}.log")
    return passed


def _device(results: Path) -> str | None:
    """What the tests ran on, as they say themselves: where Vulkan finds no GPU, that is a CPU."""
    if not results.is_file():
        return None
    named = ET.parse(results).iter("property")
    return next((one.get("value") for one in named if one.get("name") == "device"), None)


def _machine() -> dict:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    driver = nvidia.driver_release()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": toolchain.cpu().partition("; flags")[0],
        "cores": cores,
        "gpus": nvidia.gpus(),
        "cuda_of_driver": ".".join(map(str, driver)) if driver else None,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
