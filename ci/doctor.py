"""What ``build.py doctor`` reports: whether the demo could run now, and what to do if not. It changes nothing."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from . import cuda, environment, library, nvidia, plan, programs, repo, series, toolchain, vulkan
from .project import BuildError, Project
from .source import stamp_of
from .steps import read_json

_ABI_PROBE = """
import json
from interp import native
try:
    if hasattr(native, "abi_status"):
        status = native.abi_status()
    else:
        native.Library(native.find_library())
        status = {"ok": True, "detail": "every struct has the expected layout"}
except Exception as error:
    status = {"ok": False, "detail": str(error)}
print(json.dumps(status))
"""


def examine(
    project: Project, backend: str | None, extra: dict[str, str], architectures: list[str] | None = None
) -> dict:
    """Collects the state of everything a demo needs.

    Returns:
        A dictionary of JSON types; ``ok`` says whether a demo could run now, ``next`` what to do if not.
    """
    choice = toolchain.choose(backend)
    env = environment.prefix(project)
    found = {
        "ok": False,
        "platform": f"{platform.system()} {platform.machine()}",
        "python": {"version": platform.python_version(), "environment": str(env), "ready": environment.ready(project)},
        "tools": _tools(env),
        "backends": _backends(project, env, architectures),
        "backend": {"name": choice.backend, "why": choice.why},
        "pin": _pin(project),
        "patches": _patches(project),
        "libraries": _libraries(project, env, choice.backend, extra, architectures),
        "active": read_json(project.build / "active.json").get("backend"),
        "abi": _abi(project, env),
        "model": _model(project, env),
    }
    found["next"] = _next(found, project)
    found["ok"] = not found["next"]
    return found


def _tools(env: Path) -> dict[str, dict | None]:
    def describe(path: str | None, version: str | None) -> dict | None:
        return {"path": path, "version": version} if path else None

    def of_environment(name: str) -> dict | None:
        try:
            return describe(environment.tool(env, name), environment.tool_version(env, name))
        except BuildError:
            return None

    compilers = {"c++": toolchain.cxx(), "cc": toolchain.cc(), "git": toolchain.which("git"),
                 "ccache": toolchain.which("ccache"), "nvcc": toolchain.nvcc()}
    return {name: describe(path, toolchain.version(path)) for name, path in compilers.items()} | {
        name: of_environment(name) for name in ("cmake", "ninja")
    }


def _backends(project: Project, env: Path, architectures: list[str] | None) -> dict[str, dict]:
    return {
        "cpu": {"found": True, "detail": toolchain.cpu().partition("; flags")[0]},
        "cuda": _cuda(project, env, architectures),
        "metal": {"found": sys.platform == "darwin", "detail": "macOS" if sys.platform == "darwin" else "needs macOS"},
        "vulkan": _vulkan(),
    }


def _cuda(project: Project, env: Path, asked: list[str] | None) -> dict:
    """Whether there is a GPU to use, which toolkit ``--cuda`` would take, and for which GPUs it would compile."""
    gpu, driver = toolchain.nvidia_gpu(), nvidia.driver_release()
    parts = [gpu or "no NVIDIA GPU", "driver for CUDA {}.{}".format(*driver) if driver else "no driver"]
    try:
        kit = cuda.find(project, env)
        cuda.check_driver(kit)
        parts += [kit.why, f"for {', '.join(cuda.architectures(kit, asked))}"]
        parts += [f"installs {', '.join(kit.lacks)}"] if kit.lacks else []
    except BuildError as error:
        return {"found": False, "detail": f"{'; '.join(parts)}; {error}"}
    return {"found": gpu is not None, "detail": "; ".join(parts)}


def _vulkan() -> dict:
    """What a build needs of the system; headers that it lacks are fetched."""
    glslc, loader = toolchain.glslc(), toolchain.vulkan_loader()
    detail = [glslc or "no glslc", loader or "no libvulkan", vulkan.found().detail]
    return {"found": bool(glslc and loader), "detail": ", ".join(detail)}


def _pin(project: Project) -> dict:
    pin = project.pin()
    return {"commit": pin.commit, "tag": pin.tag, "sdist": f"{pin.sdist.name} {pin.sdist.version}"}


def _patches(project: Project) -> dict:
    """Whether the series can be read, and whether a tree of it is there and untouched."""
    try:
        names, wanted = series.read(project.patches), {"series": series.digest(project.patches)}
    except BuildError as error:
        return {"ok": False, "applied": False, "names": [], "detail": str(error)}
    trees = [tree for tree in project.src.glob("[!.]*-patched") if read_json(stamp_of(tree)) == wanted]
    changed = [str(tree) for tree in trees if repo.changes(tree)]
    detail = f"changed by hand: {changed[0]}" if changed else "applied" if trees else "not applied yet"
    return {"ok": not changed, "applied": bool(trees), "names": names, "detail": detail}


def _libraries(
    project: Project, env: Path, chosen: str, extra: dict[str, str], architectures: list[str] | None
) -> dict[str, dict]:
    """The state of each library that was built, with its programs, and of the chosen one in any case."""
    found = {}
    for backend in toolchain.BACKENDS:
        for patched in (True, False):
            name = library.name(backend, patched)
            path = project.build / name / "lib"
            if path.exists() or (patched and backend == chosen):
                found[name] = {"path": str(path), "state": "unknown", "patched": patched}
                try:
                    one = plan.target(project, backend, patched, project.pin().commit, env, extra, architectures)
                    found[name]["state"] = one.state()
                    if (path.parent / "bin").exists():
                        found[name]["programs"] = programs.Programs(one).state()
                except BuildError as error:
                    found[name]["problem"] = str(error)
    return found


def _abi(project: Project, env: Path) -> dict:
    python = environment.python(env)
    if not python.exists():
        return {"ok": False, "detail": "no environment yet"}
    done = subprocess.run([python, "-c", _ABI_PROBE], cwd=project.root, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"ok": False, "detail": (done.stderr.strip().splitlines() or ["no answer"])[-1]}


def _model(project: Project, env: Path) -> dict:
    model = project.pin().model
    file = environment.model_file(env, project)
    return {"package": f"{model.name} {model.version}", "path": str(file) if file else None}


def _next(found: dict, project: Project) -> list[str]:
    """The next steps towards a demo, in the order in which they help."""
    steps = []
    backend = found["backend"]["name"]
    if lacking := toolchain.missing(backend, needs_venv=not found["python"]["ready"]):
        steps.append(toolchain.explain_missing(lacking))
    if not found["patches"]["ok"]:
        steps.append(f"patches: {found['patches']['detail']}")
    built = found["libraries"][backend]["state"]
    if problem := found["libraries"][backend].get("problem"):
        steps.append(problem)
    elif not found["python"]["ready"] or built != "current":
        steps.append(f"python3 build.py --{backend}      (the library is {built})")
    elif not found["abi"]["ok"]:
        steps.append(f"python3 build.py --{backend}      ({found['abi']['detail']})")
    if not found["model"]["path"]:
        steps.append("python3 build.py demo      (fetches the default model)")
    return steps


def show(found: dict) -> str:
    """The report as text."""
    python = found["python"]
    rows = [("platform", found["platform"]), ("python", f"{python['version']}, {python['environment']}")]
    rows += [(name, f"{tool['version']}, {tool['path']}" if tool else "-") for name, tool in found["tools"].items()]
    rows += [(name, f"{'yes' if one['found'] else 'no':<4} {one['detail']}") for name, one in found["backends"].items()]
    rows += [
        ("backend", f"{found['backend']['name']} ({found['backend']['why']})"),
        ("pin", f"{found['pin']['commit'][:9]} {found['pin']['tag']}, {found['pin']['sdist']}"),
        ("patches", f"{len(found['patches']['names'])} in the series, {found['patches']['detail']}"),
    ]
    for name, one in found["libraries"].items():
        rows.append(("library", f"{name}: {one['state']}, {one['path']}"))
        if "programs" in one:
            rows.append(("programs", f"of {name}: {one['programs']}, {Path(one['path']).parent / 'bin'}"))
    rows += [
        ("active", found["active"] or "-"),
        ("abi", ("matches: " if found["abi"]["ok"] else "") + found["abi"]["detail"]),
        ("model", found["model"]["path"] or f"{found['model']['package']} is not installed"),
    ]
    steps = found["next"] or ["nothing: the demo can run"]
    rows += [("" if i else "next", step) for i, step in enumerate(steps)]
    return "\n".join(f"{title:<10} {text}" for title, text in rows)
