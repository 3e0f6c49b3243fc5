"""NVIDIA's run-time libraries, for a library that was built for CUDA and lies where it does not find them by itself.

Beside ``build/cuda/lib`` and in an installed wheel the loader finds them on its own. A folder that was moved or copied
needs this module: it loads them first, from the packages of this environment or a toolkit, and then they are there.
"""

from __future__ import annotations

import ctypes as ct
import importlib.util
import json
import os
import re
from pathlib import Path

from .errors import LibraryError

_LACKING = re.compile(r"(lib[\w+-]+\.so[.\d]*): cannot open shared object file")

#: the package that installs a file, by the beginning of the file's name
_PACKAGES = {"libcudart.": "nvidia-cuda-runtime", "libcublas.": "nvidia-cublas", "libcublasLt.": "nvidia-cublas"}


def load(path: Path, error: OSError) -> ct.CDLL:
    """Loads a library once more, with what it lacked.

    Args:
        error: what the loader said the first time.

    Raises:
        LibraryError: the driver or a library of NVIDIA's is missing; the message says how to get it.
        OSError: it is about something else.
    """
    lacking = _lacking(error)
    if lacking == "libcuda.so.1":
        raise LibraryError(
            f"{path} needs NVIDIA's driver ({lacking}), and this machine has none. Use a library that does without: "
            "python3 build.py --cpu"
        ) from error
    wanted = _wanted(path)
    if lacking not in wanted:
        raise error
    for place in filter(None, map(find, wanted)):
        ct.CDLL(str(place))
    try:
        return ct.CDLL(str(path))
    except OSError as again:
        if (lacking := _lacking(again)) not in wanted:
            raise
        raise LibraryError(
            f"{path} needs {lacking}, which is neither in this environment nor on this machine. "
            f"Install it with: pip install {_packages(wanted)}"
        ) from again


def find(name: str) -> Path | None:
    """A file of NVIDIA's by name: in the packages of this environment, else in a toolkit."""
    packages = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (packages.submodule_search_locations or ())] if packages else []
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [file for folder in folders for file in sorted(folder.glob(f"*/lib/{name}"))]
    places += [Path(folder) / "lib64" / name for folder in toolkits if folder]
    return next((place for place in places if place.is_file()), None)


def _lacking(error: OSError) -> str | None:
    found = _LACKING.search(str(error))
    return found[1] if found else None


def _wanted(path: Path) -> list[str]:
    """What a library loads, as its build wrote down beside it."""
    try:
        return list(json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["runtime"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _packages(names: list[str]) -> str:
    found = {}
    for name in names:
        major = name.rpartition(".")[2]
        package = next((package for start, package in _PACKAGES.items() if name.startswith(start)), None)
        if package:
            # before CUDA 13 the packages carry its version in their name
            found[f"'{package}=={major}.*'" if int(major) >= 13 else f"{package}-cu{major}"] = None
    return " ".join(found)
