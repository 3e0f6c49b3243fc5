"""The border to the compiled library: finding it and checking its layout before anything is called."""

from __future__ import annotations

import ctypes as ct
import json
import os
import re
import sys
import threading
from functools import lru_cache
from pathlib import Path

from . import header, runtime
from .errors import LibraryError
from .interrupts import Interrupts

#: what helps where memory is short
_SAVING = "read fewer layers, heads or positions at a time, run fewer tokens, or load the model with a smaller n_ctx"


def _library_name() -> str:
    if sys.platform == "darwin":
        return "libllama.dylib"
    return "llama.dll" if sys.platform == "win32" else "libllama.so"


def find_library() -> Path:
    """The compiled library: ``LLAMA_INTERP_LIB`` (a folder or a file), else what ``build.py`` built last, else the one
    that came with the package, where that was installed from a wheel.

    Raises:
        LibraryError: there is none; the message says how to build it.
    """
    given = os.environ.get("LLAMA_INTERP_LIB")
    if given:
        path = Path(given)
        path = path / _library_name() if path.is_dir() else path
        if not path.is_file():
            raise LibraryError(f"LLAMA_INTERP_LIB points to {path}, which does not exist. Unset it, or run build.py.")
        return path

    package = Path(__file__).resolve().parent
    build = package.parent / "build"
    try:
        active = json.loads((build / "active.json").read_text())
        path = build / active["lib"] / _library_name()
    except (OSError, ValueError, KeyError, TypeError):
        path = None
    if path is None or not path.is_file():
        path = package / "lib" / _library_name()
    if not path.is_file():
        raise LibraryError(
            f"No compiled library under {build}. Build it with: python3 build.py "
            "(or set LLAMA_INTERP_LIB to the folder that holds it)."
        )
    return path


def lacking(path: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Instructions that a library was compiled with and that this processor lacks: the first of them would end the
    process. Known of the libraries in wheels, which are compiled elsewhere, and where the system tells."""
    try:
        needs = json.loads((path.parent / "manifest.json").read_text())["needs"]
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)[1].split()
        return [feature for feature in needs if feature not in flags]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _expected_abi() -> dict[str, int]:
    expected = dict(header.CONSTANTS)
    for name, struct in header.STRUCTS.items():
        expected[f"{name}.size"] = ct.sizeof(struct)
        for field in (f[0] for f in struct._fields_ if f[0] != "size"):
            expected[f"{name}.{field}"] = getattr(struct, field).offset
    return expected


def _reported_abi(lib: ct.CDLL) -> dict[str, int]:
    # const struct llama_interp_abi_entry * llama_interp_abi(void)
    lib.llama_interp_abi.restype = ct.POINTER(header.AbiEntry)
    lib.llama_interp_abi.argtypes = []
    entries, reported, i = lib.llama_interp_abi(), {}, 0
    while entries[i].name is not None:
        reported[entries[i].name.decode()] = entries[i].value
        i += 1
    return reported


def compare_abi(expected: dict[str, int], reported: dict[str, int]) -> list[str]:
    """What differs between the layout of this package and that of a library, one line for each field."""
    differences = []
    for name in sorted(expected.keys() | reported.keys()):
        ours, theirs = expected.get(name), reported.get(name)
        if ours != theirs:
            differences.append(f"{name}: the package has {ours}, the library {theirs}")
    return differences


def abi_report(path: Path) -> dict:
    """How a library fits this package, for whoever moves llama.cpp; a layout that differs is reported, not raised.

    Returns:
        ``fields`` and ``symbols``, the numbers of what was compared; ``differences``, one line for each field that
        differs; ``missing_symbols``, the functions that the library lacks.

    Raises:
        LibraryError: it cannot be loaded, or has none of our patches.
    """
    lib, expected = _load(path), _expected_abi()
    symbols = [f"llama_interp_{name}" for name in header.PROTOTYPES]
    return {
        "fields": len(expected),
        "symbols": len(symbols),
        "differences": compare_abi(expected, _reported_abi(lib)),
        "missing_symbols": [name for name in symbols if not hasattr(lib, name)],
    }


def _load(path: Path) -> ct.CDLL:
    if features := lacking(path):
        raise LibraryError(
            f"{path} was compiled for processors with {', '.join(features)}, which this one lacks. Compile it here, from "
            "the project's source: python3 build.py"
        )
    try:
        try:
            lib = ct.CDLL(str(path))
        except OSError as err:
            lib = runtime.load(path, err)
    except OSError as err:
        raise LibraryError(f"{path} cannot be loaded: {err}. Build it again with: python3 build.py --clean") from err

    if not hasattr(lib, "llama_interp_abi"):
        raise LibraryError(f"{path} is a llama.cpp without our patches. Build a patched one with: python3 build.py")
    return lib


def _open(path: Path) -> ct.CDLL:
    lib = _load(path)
    differences = compare_abi(_expected_abi(), _reported_abi(lib))
    if differences:
        raise LibraryError(
            f"{path} does not match this package ({'; '.join(differences[:3])}"
            f"{', …' if len(differences) > 3 else ''}). Build it again with: python3 build.py"
        )
    return lib


class Library:
    """The functions of the library as attributes, without their ``llama_interp_`` prefix."""

    def __init__(self, path: Path):
        self.path = path
        self._lib = _open(path)
        for name, (restype, argtypes) in header.PROTOTYPES.items():
            try:
                fn = getattr(self._lib, f"llama_interp_{name}")
            except AttributeError as err:
                raise LibraryError(f"{path} lacks llama_interp_{name}. Build it again with: python3 build.py") from err
            fn.restype, fn.argtypes = restype, argtypes
            setattr(self, name, fn)
        self.interrupts = Interrupts()
        self.poll = header.POLL_FN(self._on_poll)
        self.log_init(int(os.environ.get("LLAMA_INTERP_LOG", "0")))

    def take_log(self) -> list[str]:
        """Warnings and errors that llama.cpp logged since the last call."""
        buf = ct.create_string_buffer(1 << 16)
        self.log_take(buf, len(buf))
        return [line for line in buf.value.decode(errors="replace").splitlines() if line.strip()]

    def reason(self, handle: int | None = None, default: str = "no reason is given") -> str:
        """What the last function that failed says; of a handle, or, with None, of one that has none."""
        said = (self.error(handle) or b"").decode(errors="replace") or default
        return f"{said}: {_SAVING}" if "out of memory" in said else said

    def _on_poll(self, _user_data, stop) -> None:
        """Called by the library now and then while it computes."""
        stop[0] = self.interrupts.is_wanted and threading.get_ident() == threading.main_thread().ident


@lru_cache(maxsize=None)
def load(path: Path | None = None) -> Library:
    """The library, loaded and checked once in a process.

    Raises:
        LibraryError: missing, not loadable, unpatched, or of another layout (the message names the field).
    """
    return Library(path or find_library())


def abi_status() -> dict:
    """``{"ok": bool, "detail": str}`` for reports; never raises."""
    try:
        return {"ok": True, "detail": str(load().path)}
    except LibraryError as err:
        return {"ok": False, "detail": str(err)}
