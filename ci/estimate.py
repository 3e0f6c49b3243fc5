"""How much a build will compile, and roughly for how long, said before it starts."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

#: seconds that one object takes on one core that is free, measured on full builds (docs/backends.md);
#: an object of CUDA takes that for each architecture
SECONDS = {"CUDA": 15.0, "CXX": 3.0, "C": 1.0}

_OBJECT = re.compile(r"Building (\w+) object")


def ahead(command: list[str], architectures: str, jobs: int) -> str | None:
    """What ninja would do, in words.

    Args:
        command: the call of ninja that builds.
        architectures: CUDA's, as CMake gets them: ``86;90``, or ``all-major``, of which nobody has counted how many.

    Returns:
        One line; None where nothing is left to compile.
    """
    done = subprocess.run([*command, "-n"], capture_output=True, text=True, errors="replace")
    objects = Counter(_OBJECT.findall(done.stdout))
    if not objects:
        return None
    count = f"{sum(objects.values())} objects"
    if objects["CUDA"]:
        count += f", {objects['CUDA']} of them CUDA for {architectures.replace(';', ', ')}"
    took = duration(seconds(objects, len(architectures.split(";")), jobs))
    each = " for each architecture" if architectures.startswith("all") else ""
    return f"{count}: about {took}{each} with {jobs} jobs on free cores"


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
