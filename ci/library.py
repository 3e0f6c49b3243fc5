"""The compiled library: its content key, the build, and how a finished one gets its place.

    build/<name>/cmake      CMake's folder; objects in it are reused by the next build
    build/<name>/build.log  everything that CMake and the compilers said
    build/<name>/lib        the finished libraries and manifest.json, whole or absent

where <name> is the backend, with ``unpatched-`` before it for the library without the series, and the variant between.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from . import environment, estimate, series, toolchain
from .project import BuildError, Project
from .steps import Report, Step, child_options, digest, publish_folder, read_json, remove, tail, temporary, write_json

VERSION = 1

TARGETS = ("llama", "ggml-rpc")

#: what of patches/native is in the unpatched library too
BOTH = ("build.cmake", "amx.h")

_PATTERNS = ("*.so", "*.so.*", "*.dylib", "*.dll", "*.lib")

_NINJA_LINE = re.compile(r"^\[(\d+)/(\d+)\] (.*)")


@dataclass(frozen=True)
class Target:
    """One library to build.

    Attributes:
        base: identity of the source without the series (``Origin.base``).
        settings: the CMake settings, free of paths of this machine.
        here: further settings, which name paths of this machine and decide nothing of the content.
        nvcc: what the CUDA compiler says of itself; None for a build without CUDA.
        runtime: files of others that the library loads, in an order in which they can be loaded, and where they are;
            None for those that the loader finds by itself.
        shaders: what decides the content of Vulkan's part; None for a build without it.
        variant: what it is built for beside the backend, such as ``portable``: the beginning of its folder's name.
    """

    project: Project
    backend: str
    patched: bool
    base: str
    settings: dict[str, str]
    prefix: Path
    here: dict[str, str] = field(default_factory=dict)
    nvcc: str | None = None
    runtime: dict[str, Path | None] = field(default_factory=dict)
    shaders: list[str | int | None] | None = None
    variant: str = ""

    @property
    def name(self) -> str:
        return name(self.backend, self.patched, self.variant)

    @property
    def folder(self) -> Path:
        return self.project.build / self.name

    @property
    def lib(self) -> Path:
        return self.folder / "lib"

    @property
    def output(self) -> Path:
        return self.lib

    @property
    def log(self) -> Path:
        return self.folder / "build.log"

    @cached_property
    def key(self) -> str:
        """Identity of everything that decides the content of the library; no path of this machine is in it."""
        native = {
            path.name: path.read_bytes().hex()
            for path in sorted(self.project.native.glob("*"))
            if path.is_file() and (self.patched or path.name in BOTH)
        }
        return digest(
            VERSION, self.base, series.digest(self.project.patches) if self.patched else None, native, self.settings,
            TARGETS, toolchain.fingerprint(self.settings, self.nvcc), environment.tool_version(self.prefix, "cmake"),
            *([self.shaders] if self.shaders else []),
        )

    @property
    def cached(self) -> Path | None:
        shared = self.project.shared_cache
        return shared / "lib" / self.key if shared else None

    def state(self) -> str:
        """``current``, ``stale``, or ``missing``."""
        return state(self.output, self.key)


def name(backend: str, patched: bool, variant: str = "") -> str:
    """What a library is called: its folder in ``build/``."""
    return "-".join(filter(None, ("" if patched else "unpatched", variant, backend)))


def state(folder: Path, key: str) -> str:
    """Of a published folder, beside the key that it should have: ``current``, ``stale``, or ``missing``."""
    manifest = read_json(folder / "manifest.json")
    if not manifest:
        return "missing"
    return "current" if manifest.get("key") == key else "stale"


def from_cache(target: Target, report: Report, title: str = "library") -> bool:
    """Takes what a target makes from the cache that clones share, if it is there."""
    if target.cached is None or read_json(target.cached / "manifest.json").get("key") != target.key:
        return False
    with report.step(title) as step:
        copy_folder(target.cached, target.output)
        step.result = f"{target.name}: taken from {target.cached}"
    return True


def compile(target: Target, tree: Path, jobs: int, report: Report) -> None:
    """Configures and compiles a tree, and publishes the libraries.

    Raises:
        BuildError: CMake or a compiler failed; the message holds the end of the log.
    """
    target.folder.mkdir(parents=True, exist_ok=True)
    with report.step("configure") as step:
        step.result = _configure(target, tree)
    architectures = target.settings.get("CMAKE_CUDA_ARCHITECTURES", "")
    ninja = environment.tool(target.prefix, "ninja")
    if ahead := estimate.ahead(ninja, target.folder / "cmake", TARGETS, architectures, jobs):
        report.line("to compile", ahead)
    with report.step("compile") as step:
        run_ninja(target, TARGETS, jobs, step)
        step.result = f"{target.name}, {jobs} jobs, log in {short(target.log)}"
    with report.step("library") as step:
        _publish(target, tree)
        step.result = short(target.lib)


def link_runtime(target: Target) -> None:
    """Puts links to the run-time libraries where the finished library looks for them: beside its own folder.

    The library itself holds no path of this machine, so that another clone, or another machine, can use it.
    """
    links = {name: str(path) for name, path in target.runtime.items() if path}
    folder = target.folder / "runtime"
    there = {path.name: os.readlink(path) for path in folder.glob("*")}
    if links == there:
        return
    scratch = temporary(folder)
    scratch.mkdir()
    for name, path in links.items():
        (scratch / name).symlink_to(path)
    publish_folder(scratch, folder)


def activate(target: Target) -> None:
    """Makes a patched library the one that ``interp`` loads."""
    path = target.project.build / "active.json"
    active = {"backend": target.backend, "lib": f"{target.name}/lib"}
    if read_json(path) != active:
        write_json(path, active)


def configure_command(target: Target, tree: Path, cmake: str, ninja: str) -> list[str]:
    """The call of CMake that configures a build."""
    settings = target.here | target.settings | toolchain.launcher() | {
        # one include for both libraries; it adds our sources only where the call sites are
        "CMAKE_PROJECT_llama.cpp_INCLUDE": (target.project.native / "build.cmake").as_posix(),
        "LLAMA_INTERP_PATCHED": "ON" if target.patched else "OFF",
        # the number of commits in a shallow tree means nothing, and would recompile when the series grows
        "LLAMA_BUILD_NUMBER": "0",
        "LLAMA_BUILD_COMMIT": target.base[:9],
    }
    return [cmake, "-G", "Ninja", "-S", str(tree), "-B", str(target.folder / "cmake"), f"-DCMAKE_MAKE_PROGRAM={ninja}",
            *(f"-D{name}={value}" for name, value in sorted(settings.items()))]


def _configure(target: Target, tree: Path) -> str:
    work, stamp = target.folder / "cmake", target.folder / "configured.json"
    tools = (environment.tool(target.prefix, name) for name in ("cmake", "ninja"))
    command = configure_command(target, tree, *tools)
    wanted = {"command": command, "key": toolchain.fingerprint(target.settings, target.nvcc), "shaders": target.shaders,
              "cmake": environment.tool_version(target.prefix, "cmake")}
    if read_json(stamp) == wanted and (work / "build.ninja").is_file():
        return "unchanged"
    # a setting that is no longer given would live on in CMake's cache
    remove(stamp)
    remove(work)
    with target.log.open("w", encoding="utf-8", buffering=1) as log:
        for _ in lines(command, log):
            pass
    write_json(stamp, wanted)
    return f"{target.backend}, {toolchain.version(toolchain.cxx())}"


def run_ninja(target: Target, names: Iterable[str], jobs: int, step: Step) -> None:
    """Compiles some of CMake's targets in a target's folder."""
    command = [environment.tool(target.prefix, "ninja"), "-C", target.folder / "cmake", "-j", jobs, *names]
    before = most = shown = 0
    with target.log.open("a", encoding="utf-8", buffering=1) as log:
        for line in lines(command, log):
            if not (match := _NINJA_LINE.match(line)):
                continue
            done, total, what = int(match[1]), int(match[2]), match[3]
            # another ninja, which builds a tool for this build, counts its own few steps; CMake, where it is due, runs
            # before the count begins
            if total < most and done <= before:
                continue
            shown = shown if total <= most and done > before else 0
            before, most = done, total
            if step.live:
                step.progress(f"{done}/{total}  {step.seconds:.0f} s  {what.rpartition('/')[2]}")
            elif done * 10 // total > shown:
                shown = done * 10 // total
                step.progress(f"{done}/{total}, {step.seconds:.0f} s")


def lines(command: list, log):
    """Runs a command, yields its lines, and writes them to the log.

    Raises:
        BuildError: it failed; the message ends with the last lines.
    """
    env = os.environ | {"NINJA_STATUS": "[%f/%t] ", "LC_ALL": "C"}
    process = subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", errors="replace", env=env, **child_options(),
    )
    with process:
        try:
            for line in process.stdout:
                log.write(line)
                yield line
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        text = Path(log.name).read_text(encoding="utf-8", errors="replace")
        raise BuildError(f"{Path(str(command[0])).name} failed. The end of {log.name}:\n{tail(text, 30)}")


def _publish(target: Target, tree: Path) -> None:
    scratch = temporary(target.lib)
    scratch.mkdir()
    built = target.folder / "cmake" / "bin"
    for path in sorted({path for pattern in _PATTERNS for path in built.glob(pattern)}):
        # the links are what the libraries know each other by
        shutil.copy2(path, scratch / path.name, follow_symlinks=False)
    # whoever copies the folder copies the notice that the licence of llama.cpp asks for
    shutil.copy2(tree / "LICENSE", scratch / "LICENSE.llama.cpp")
    write_json(scratch / "manifest.json", {
        "version": VERSION,
        "key": target.key,
        "backend": target.backend,
        "patched": target.patched,
        "commit": target.base,
        "series": series.read(target.project.patches) if target.patched else [],
        "flags": dict(sorted(target.settings.items())),
        "compiler": toolchain.version(toolchain.cxx()),
        "runtime": list(target.runtime),
        "compile_seconds": _compile_seconds(target.folder / "cmake" / ".ninja_log"),
    })
    publish_folder(scratch, target.lib)


def _compile_seconds(log: Path) -> float | None:
    """What all objects took together, each as it was last compiled: a build that goes on from another one counts whole.
    None where ninja left no log."""
    if not log.is_file():
        return None
    took = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if len(fields := line.split("\t")) == 5 and fields[3].endswith((".o", ".obj")):
            took[fields[3]] = int(fields[1]) - int(fields[0])
    return round(sum(took.values()) / 1000, 1)


def share(target: Target, report: Report) -> None:
    """Puts what a target made into the cache that clones share; a cache that cannot be written harms no build."""
    if target.cached is None or target.cached.exists():
        return
    try:
        copy_folder(target.output, target.cached)
    except OSError as error:
        report.line("note", f"{target.name} is not shared: {error}")


def copy_folder(source: Path, destination: Path) -> None:
    """Copies a finished folder; the copy is whole or absent."""
    scratch = temporary(destination)
    shutil.copytree(source, scratch, symlinks=True)
    publish_folder(scratch, destination)


def short(path: Path) -> str:
    """A path as the user would type it, where that is possible."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
