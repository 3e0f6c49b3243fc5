"""How much a build will compile, and roughly for how long, said before it starts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from .steps import remove, temporary

#: seconds of processor time that one object takes, measured (docs/backends.md); one of CUDA, for each architecture
SECONDS = {"CUDA": 23.0, "CXX": 3.0, "C": 1.0}

_OBJECT = re.compile(r"Building (\w+) object")


def ahead(ninja: str, folder: Path, targets: tuple[str, ...], architectures: str, jobs: int) -> str | None:
    """What ninja would do, in words.

    Args:
        folder: CMake's, configured.
        architectures: CUDA's, as CMake gets them: ``86;90``, or ``all-major``, of which nobody has counted how many.

    Returns:
        One line; None where nothing is left to compile.
    """
    objects = count(ninja, folder, targets)
    if not objects:
        return None
    told = f"{sum(objects.values())} objects"
    if objects["CUDA"]:
        told += f", {objects['CUDA']} of them CUDA for {architectures.replace(';', ', ')}"
    took = duration(seconds(objects, len(architectures.split(";")), jobs))
    each = " for each architecture" if architectures.startswith("all") else ""
    return f"{told}: about {took}{each} with -j {jobs} on free cores"


def count(ninja: str, folder: Path, targets: tuple[str, ...]) -> Counter[str]:
    """How many objects of each language are not built yet."""
    # under its own name ninja would first pretend to run CMake again, and stop there
    copy = temporary(folder / "ahead.ninja")
    try:
        shutil.copyfile(folder / "build.ninja", copy)
        command = [ninja, "-C", str(folder), "-f", copy.name, "-n", *targets]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    finally:
        remove(copy)
    return Counter(_OBJECT.findall(done.stdout))


def seconds(objects: dict[str, int], architectures: int, jobs: int) -> float:
    """How long some objects take, by language."""
    each = {name: SECONDS.get(name, 1.0) * (architectures if name == "CUDA" else 1) for name in objects}
    return sum(number * each[name] for name, number in objects.items()) / jobs


def duration(seconds: float) -> str:
    """``40 s``, ``12 minutes``, ``2.5 hours``."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
