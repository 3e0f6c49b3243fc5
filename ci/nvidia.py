"""NVIDIA's GPUs: what the driver says of them, and how architectures are written."""

from __future__ import annotations

import re
import subprocess
from functools import lru_cache

from .toolchain import which

_ARCHITECTURE = re.compile(r"(\d{2,3})([af]?)(-real|-virtual)?")
_CAPABILITY = re.compile(r"(\d+)\.(\d)([af]?)(-real|-virtual)?")

#: names of CMake for several architectures
GROUPS = ("all", "all-major")


def parse_architectures(text: str) -> list[str]:
    """Reads ``--cuda-arch``: ``90,86``, ``8.6``, ``90a``, ``86-real``, ``native``, ``all``, ``all-major``.

    Raises:
        ValueError: it is none of these; the message says what is.
    """
    words = [word.strip() for word in text.replace(";", ",").split(",")]
    if words in (["native"], *([group] for group in GROUPS)):
        return words
    found = []
    for word in words:
        if match := _CAPABILITY.fullmatch(word):
            word = "".join(part or "" for part in match.groups())
        if not _ARCHITECTURE.fullmatch(word):
            raise ValueError(
                f"{word!r} is no CUDA architecture. Give numbers as 90,86 (which one a GPU has: nvidia-smi "
                "--query-gpu=compute_cap), or native, all-major, all"
            )
        found.append(word)
    return sorted(set(found), key=number)


def number(architecture: str) -> int:
    """``120a-real`` is 120."""
    return int(re.match(r"\d+", architecture)[0])


def capabilities() -> list[str]:
    """The architectures of the GPUs that the driver sees, each once: ``["86", "90"]``."""
    listed = _smi("--query-gpu=compute_cap", "--format=csv,noheader")
    found = {line.strip().replace(".", "") for line in listed.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())}
    return sorted(found, key=int)


def gpus() -> list[dict[str, str]]:
    """The GPUs that the driver sees: their names, memory, and the driver's version."""
    fields = ("name", "memory.total", "driver_version")
    listed = _smi(f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    rows = [line.split(", ") for line in listed.splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def driver_release() -> tuple[int, int] | None:
    """The CUDA version that the driver supports; None without a driver."""
    found = re.search(r"CUDA(?: \w+)? Version\s*:\s*(\d+)\.(\d+)", _smi())
    return (int(found[1]), int(found[2])) if found else None


def _smi(*arguments: str) -> str:
    smi = which("nvidia-smi")
    return _asked(smi, *arguments) if smi else ""


@lru_cache
def _asked(smi: str, *arguments: str) -> str:
    # it takes a second, and a build asks several times
    return output([smi, *arguments])[0]


def output(command: list[str]) -> tuple[str, int]:
    """What a program of NVIDIA prints, and its exit code; one that cannot be started says so in its place."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"error: {error}", 1
    return done.stdout, done.returncode
