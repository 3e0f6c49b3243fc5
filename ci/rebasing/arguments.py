"""The command line of ci/rebase.py."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from ci.project import ROOT
from ci.toolchain import BACKENDS

#: in the order in which they run; "report" is written whatever happens
STAGES = ("apply", "build", "abi", "test")

#: of ``--bench``: no timing
NONE = "none"

#: the tools' own tests, which no library changes. The bindings' structs match the pin alone, so what loads the library
#: through them says nothing about another commit either
TOOLS = (
    "attach", "benchmark", "build", "build_tools", "cuda_build", "cuda_gpus", "cuda_runtime", "gpu_report", "patches",
    "publish", "rebase", "rebase_snapshots", "vulkan_build", "wheel", "workflows",
)
#: of ``--tests``: what the library computes
TESTS = " ".join(f"--ignore=tests/test_{name}.py" for name in TOOLS)


def parse(arguments: list[str] | None, description: str) -> argparse.Namespace:
    """Reads the command line; argparse ends a bad one with exit code 2."""
    parser = argparse.ArgumentParser(
        prog="ci/rebase.py", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", required=True, metavar="URL|PATH",
                        help="a git URL, or the path of a repository, of a source tree, or of an archive that holds "
                        "one of them")
    parser.add_argument("--ref", help="branch, tag or commit (default: upstream's HEAD)")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "rebase", metavar="DIR",
                        help="where report.json and report.md go (default: out/rebase)")
    parser.add_argument("--stage", type=_stages, default=list(STAGES), metavar=",".join(STAGES),
                        help="only these stages (default: all)")
    parser.add_argument("--tests", type=shlex.split, default=shlex.split(TESTS), metavar="ARGS",
                        help="what the test stage gives to pytest (default: what depends on the library)")
    parser.add_argument("--backend", choices=BACKENDS, default="cpu", help="default: %(default)s")
    parser.add_argument("--jobs", "-j", type=_positive, default=2, metavar="N",
                        help="compilers at a time (%(default)s)")
    parser.add_argument("--find-break", action="store_true",
                        help="where a stage fails, also search for the first upstream commit at which it does")
    parser.add_argument("--bench", type=_library, default=None, metavar="LIB",
                        help="the pin's library, which the new one is timed beside (default: the one in build/, where "
                        "it is current); none: no timing")
    parser.add_argument("--write", action="store_true",
                        help="where every stage passed: move the pin and export the patches, ready to commit")
    return parser.parse_args(arguments)


def _stages(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STAGES]:
        raise argparse.ArgumentTypeError(f"no stage is called {unknown[0]!r}: there are {', '.join(STAGES)}")
    if names != list(STAGES[: len(names)]):
        raise argparse.ArgumentTypeError(f"a stage needs those before it: give the first of {','.join(STAGES)}")
    return names


def _library(text: str) -> Path | str:
    if text == NONE:
        return NONE
    path = Path(text)
    if not (path / "manifest.json").is_file():
        raise argparse.ArgumentTypeError(f"{text} holds no library that build.py made (as build/cpu/lib does)")
    return path.resolve()


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)
