"""A library that checks itself while tests run: the compilers' sanitizers, for ``build.py --sanitize``.

    build/address-undefined-cpu/lib    the library, never the one that ``interp`` loads by itself

A sanitizer's run-time library must come before all others of a process, so Python itself starts with it (``environment``).
What upstream is known to do is allowed by file, in ``patches/native/build.cmake``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import toolchain
from .project import BuildError

#: whether this process was started for a library with sanitizers
ACTIVE = "LLAMA_INTERP_SANITIZE" in os.environ

#: as -fsanitize has them -> the run-time libraries of GCC
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}

#: as without a sanitizer: too much memory is an error of the call
_NO_MEMORY = {"allocator_may_return_null": "1"}

#: where an error is found the process ends with SIGABRT, as a crash would; a test that waits for a child sees it
_OPTIONS = {
    "ASAN_OPTIONS": {
        # Python keeps what it has made until it ends
        "detect_leaks": "0",
        **_NO_MEMORY,
        "abort_on_error": "1",
    },
    "UBSAN_OPTIONS": {"halt_on_error": "1", "abort_on_error": "1", "print_stacktrace": "1"},
    "TSAN_OPTIONS": {**_NO_MEMORY, "halt_on_error": "1", "abort_on_error": "1", "second_deadlock_stack": "1"},
}


def parse(text: str) -> tuple[str, ...]:
    """The kinds in a list with commas, in one order.

    Raises:
        ValueError: there is no such kind, or two exclude each other.
    """
    kinds = tuple(sorted(set(text.split(","))))
    if unknown := [kind for kind in kinds if kind not in RUNTIMES]:
        raise ValueError(f"{unknown[0]!r} is no sanitizer: {', '.join(RUNTIMES)}, or address,undefined")
    if "thread" in kinds and len(kinds) > 1:
        raise ValueError("thread does not go together with another sanitizer")
    return kinds


def check(backend: str) -> None:
    """Raises:
        BuildError: this machine or backend has no sanitizers that this project knows.
    """
    if backend != "cpu":
        raise BuildError(f"sanitizers look at code of the CPU, and this builds for {backend}. Give --cpu in its place")
    if sys.platform != "linux":
        raise BuildError("--sanitize is for Linux and GCC: elsewhere Python cannot be started with the sanitizer's library")


def settings(kinds: tuple[str, ...], given: dict[str, str]) -> dict[str, str]:
    """The CMake settings; ``-D`` of the user's wins over them."""
    chosen = {f"{project}_SANITIZE_{kind.upper()}": "ON" for project in ("LLAMA", "GGML") for kind in kinds}
    # lines in what a sanitizer prints, no code to go on after an error, and a quarter of the time that -O3 takes to compile
    flags = "-O1 -g1 -DNDEBUG -fno-omit-frame-pointer -fno-sanitize-recover=all"
    return chosen | {
        "CMAKE_C_FLAGS_RELEASE": flags,
        "CMAKE_CXX_FLAGS_RELEASE": flags,
        "LLAMA_INTERP_ONCE": "-O0",
        "LLAMA_INTERP_HOT": "-O0",
        # the same kernels everywhere; among those for one processor, upstream's for AMX read numbers that are not aligned,
        # which the processor allows and C++ does not (ggml-org/llama.cpp#16315 mended some of them)
        "GGML_NATIVE": "OFF",
    } | given


def environment(kinds: tuple[str, ...], lib: Path) -> dict[str, str]:
    """What a process needs in its environment to load the library; its children inherit it.

    Args:
        lib: the folder of the library.

    Raises:
        BuildError: the compiler has no run-time library for a kind.
    """
    # with the C++ library behind it, or the sanitizer would not see exceptions begin
    preload = [_runtime(RUNTIMES[kind]) for kind in kinds] + [_runtime("libstdc++.so")]
    chosen = {
        "LD_PRELOAD": ":".join(preload),
        # what pytest keeps of the file handles is lost where the process ends, and with it what the sanitizer found
        "PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} --capture=sys".strip(),
        "LLAMA_INTERP_LIB": str(lib),
        "LLAMA_INTERP_SANITIZE": ",".join(kinds),
        # compiled with other flags, the unpatched library of a usual build rounds otherwise: nothing to compare bits with
        "LLAMA_INTERP_UNPATCHED_LIB": str(lib.parent / "unpatched"),
    }
    if "thread" in kinds:
        # numpy's BLAS is not instrumented: how its threads wait for each other is not seen, and each result is a race
        chosen["OPENBLAS_NUM_THREADS"] = "1"
    for name, options in _OPTIONS.items():
        # the user's come last and win
        given = [os.environ[name]] if name in os.environ else []
        chosen[name] = ":".join([*(f"{key}={value}" for key, value in options.items()), *given])
    return chosen


def _runtime(name: str) -> str:
    command = [toolchain.cxx() or "c++", f"-print-file-name={name}"]
    path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    # what it does not find it answers with the bare name
    if not os.path.isabs(path):
        raise BuildError(f"{command[0]} has no {name}, which --sanitize needs. Take GCC: CC=gcc CXX=g++")
    return os.path.realpath(path)
