"""llama.cpp's own programs, compiled against the libraries of a build that is there already.

    build/<name>/programs   CMake's folder and the log
    build/<name>/bin        the finished programs and manifest.json, whole or absent

They find ``build/<name>/lib`` beside them, wherever both lie. Nothing of the library is compiled for them, and neither
knows the other's content key: a library that came from the cache serves as well as one that was just made, and the same
programs run on the patched and the unpatched one, and on any backend's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .. import environment, library, series, toolchain
from ..library import Target, short
from ..project import BuildError
from ..steps import Report, digest, publish_folder, read_json, remove, temporary, write_json

VERSION = 1

#: those that ``--tools`` makes, under the names of upstream's CMake targets
PROGRAMS = ("llama-cli", "llama-server", "llama-bench", "llama-perplexity", "llama-quantize", "llama-imatrix")

_CMAKE = Path(__file__).parent

#: what they are compiled from, in llama.cpp's tree
_SOURCES = ("common/", "tools/", "vendor/", "include/", "ggml/include/", "src/llama-ext.h")

#: where a program finds the library: in the folder beside its own
_RPATH = "@loader_path/../lib" if sys.platform == "darwin" else "$ORIGIN/../lib"

SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    # what they compute is computed in the library
    "CMAKE_CXX_FLAGS_RELEASE": "-O2 -DNDEBUG",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": _RPATH,
    "LLAMA_BUILD_NUMBER": "0",
}


@dataclass(frozen=True)
class Programs:
    """The programs of one library."""

    target: Target

    @property
    def name(self) -> str:
        return f"programs of {self.target.name}"

    @property
    def folder(self) -> Path:
        return self.target.folder / "programs"

    @property
    def output(self) -> Path:
        return self.target.folder / "bin"

    @property
    def log(self) -> Path:
        return self.folder / "build.log"

    @property
    def prefix(self) -> Path:
        return self.target.prefix

    @cached_property
    def key(self) -> str:
        """Identity of everything that decides their content. The series is part of it only as far as it changes what
        they are compiled from, and the library's settings as far as they change its files' names."""
        settings = self.target.settings
        return digest(
            VERSION, self.target.base, self._patches(), PROGRAMS, SETTINGS, (_CMAKE / "CMakeLists.txt").read_text("utf-8"),
            settings.get("CMAKE_PLATFORM_NO_VERSIONED_SONAME"), settings if _loads_modules(self.target) else None,
            toolchain.fingerprint({"GGML_NATIVE": "OFF"}, None), environment.tool_version(self.prefix, "cmake"),
        )

    def _patches(self) -> list[str]:
        folder = self.target.project.patches
        texts = [(folder / name).read_text("utf-8") for name in series.read(folder)] if self.target.patched else []
        return [text for text in texts if any(path.startswith(_SOURCES) for path in series.touched(text))]

    @property
    def cached(self) -> Path | None:
        shared = self.target.project.shared_cache
        return shared / "bin" / self.key if shared else None

    def state(self) -> str:
        """``current``, ``stale``, or ``missing``."""
        return library.state(self.output, self.key)


def make(target: Target, tree: Callable[[], Path], clean: bool, jobs: int, report: Report) -> None:
    """Makes the programs of a finished library current, and says where they are.

    Args:
        tree: gives llama.cpp's source as the library was built from it; called only if something is compiled.
        clean: compile although the cache has them.

    Raises:
        BuildError: a compiler failed, or this llama.cpp has none of the programs.
    """
    programs = Programs(target)
    if programs.state() != "current" and (clean or not _found(programs, report)):
        _compile(programs, tree(), jobs, report)
    library.share(programs, report)
    made = read_json(programs.output / "manifest.json")["programs"]
    for name in PROGRAMS:
        if name not in made:
            report.line("note", f"{name}: this llama.cpp has no program of that name")
    report.line("programs", f"{short(programs.output)}: {', '.join(made)}")
    report.line("", f"try: {_example(programs.output, made[0])}")


def warn_if_stale(target: Target, report: Report) -> None:
    """Tells of programs that an earlier call made from another llama.cpp than that of the library beside them."""
    programs = Programs(target)
    if programs.state() == "stale":
        report.line("note", f"{short(programs.output)} was made from other sources; make it anew with --tools")


def _found(programs: Programs, report: Report) -> bool:
    """Takes the programs from the cache, or from the folder of another library: they are the same."""
    for other in sorted(programs.target.project.build.glob("*/bin")):
        if library.state(other, programs.key) == "current":
            library.copy_folder(other, programs.output)
            report.line("programs", f"the same as in {short(other)}")
            return True
    return library.from_cache(programs, report, "programs")


def _example(folder: Path, name: str) -> str:
    arguments = {"llama-cli": "-p Hello -n 32 -st", "llama-bench": "-p 256 -n 64"}.get(name, "--help")
    return f"{short(folder / name)} {'' if arguments == '--help' else '-m MODEL.gguf '}{arguments}"


def _compile(programs: Programs, tree: Path, jobs: int, report: Report) -> None:
    programs.folder.mkdir(parents=True, exist_ok=True)
    with report.step("configure") as step:
        names = _configure(programs, tree)
        step.result = f"{len(names)} programs"
    with report.step("compile") as step:
        library.run_ninja(programs, names, jobs, step)
        step.result = f"{programs.name}, {jobs} jobs, log in {short(programs.log)}"
    with report.step("programs") as step:
        _publish(programs, names, tree)
        step.result = short(programs.output)


def _configure(programs: Programs, tree: Path) -> list[str]:
    """Configures, and returns the programs that this llama.cpp has."""
    work, stamp, target = programs.folder / "cmake", programs.folder / "configured.json", programs.target
    settings = SETTINGS | toolchain.launcher() | {
        "LLAMA_TREE": tree.as_posix(),
        "LLAMA_LIB": target.lib.as_posix(),
        "LLAMA_BUILD_COMMIT": target.base[:9],
        "PROGRAMS": ";".join(PROGRAMS),
    }
    wanted = {"settings": settings, "key": programs.key}
    if read_json(stamp) != wanted or not (work / "build.ninja").is_file():
        remove(stamp)
        remove(work)
        command = [environment.tool(target.prefix, "cmake"), "-G", "Ninja", "-S", _CMAKE, "-B", work,
                   f"-DCMAKE_MAKE_PROGRAM={environment.tool(target.prefix, 'ninja')}",
                   *(f"-D{name}={value}" for name, value in sorted(settings.items()))]
        with programs.log.open("w", encoding="utf-8", buffering=1) as log:
            for _ in library.lines(command, log):
                pass
        write_json(stamp, wanted)
    names = [name for name in (work / "programs.txt").read_text("utf-8").split(";") if name]
    if not names:
        raise BuildError(
            f"this llama.cpp has none of {', '.join(PROGRAMS)}: upstream renamed them. Look into {tree / 'tools'}, and "
            "change PROGRAMS in ci/programs/__init__.py"
        )
    return names


def _publish(programs: Programs, names: list[str], tree: Path) -> None:
    scratch, suffix = temporary(programs.output), ".exe" if sys.platform == "win32" else ""
    scratch.mkdir()
    for name in names:
        shutil.copy2(programs.folder / "cmake" / "bin" / f"{name}{suffix}", scratch)
    for module in _modules(programs.target):
        # a program looks for backends that are loaded at run time in its own folder
        (scratch / module.name).symlink_to(Path("..") / "lib" / module.name)
    shutil.copy2(tree / "LICENSE", scratch / "LICENSE.llama.cpp")
    write_json(scratch / "manifest.json", {
        "version": VERSION,
        "key": programs.key,
        "commit": programs.target.base,
        "programs": names,
    })
    publish_folder(scratch, programs.output)


def _modules(target: Target) -> list[Path]:
    """The backends that ggml loads by itself, where the library was built so."""
    if not _loads_modules(target):
        return []
    return sorted(path for path in target.lib.glob("*ggml-*.*") if "ggml-base" not in path.name)


def _loads_modules(target: Target) -> bool:
    return toolchain.is_on(target.settings.get("GGML_BACKEND_DL", "OFF"))
