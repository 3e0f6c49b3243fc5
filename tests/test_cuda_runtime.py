"""What a build for CUDA takes, in objects and time, and what the finished library finds when it is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import upstream
from ci import environment, estimate, library, plan
from ci.project import Project
from cuda_machine import Machine, linux
from interp import native, runtime
from interp.errors import LibraryError

def target(project: Project, machine: Machine) -> library.Target:
    return plan.target(project, "cuda", True, project.pin().commit, machine.env, {}, ["90"])


# // how long it will take


NINJA = """
rule cmake
  command = exit 1
  description = Re-running CMake...
  generator = 1
build always: phony absent
build build.ninja: cmake always
rule cuda
  command = touch $out
  description = Building CUDA object $out
rule cxx
  command = touch $out
  description = Building CXX object $out
build a.o: cuda
build b.o: cuda
build c.o: cxx
build other.o: cuda
build llama: phony a.o b.o c.o
"""


def test_objects_are_counted_although_cmake_would_run_first(tmp_path):
    ninja = environment.tool(Path(sys.prefix), "ninja")
    upstream.write(tmp_path, {"build.ninja": NINJA})
    assert estimate.count(ninja, tmp_path, ("llama",)) == {"CUDA": 2, "CXX": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["build.ninja"]
    line = estimate.ahead(ninja, tmp_path, ("llama",), "86;90", 4)
    assert line.startswith("3 objects, 2 of them CUDA for 86, 90: about ")
    upstream.write(tmp_path, {"plain.ninja": NINJA})
    subprocess.run([ninja, "-f", "plain.ninja", "b.o", "c.o"], cwd=tmp_path, check=True, capture_output=True)
    assert estimate.count(ninja, tmp_path, ("llama",)) == {"CUDA": 1}
    subprocess.run([ninja, "-f", "plain.ninja", "a.o"], cwd=tmp_path, check=True, capture_output=True)
    assert estimate.ahead(ninja, tmp_path, ("llama",), "86;90", 4) is None


def test_only_cuda_takes_longer_for_more_architectures():
    one, two = (estimate.seconds({"CUDA": 10, "CXX": 10}, architectures, 1) for architectures in (1, 2))
    assert two - one == 10 * estimate.SECONDS["CUDA"]
    assert estimate.seconds({"CUDA": 10, "CXX": 10}, 1, 5) == one / 5
    assert [estimate.duration(s) for s in (3, 62, 600, 9000)] == ["10 s", "60 s", "10 minutes", "2.5 hours"]


# // what the finished library loads


def compile_c(path: Path, code: str, *options: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    env = os.environ | {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    command = ["cc", "-shared", "-fPIC", "-o", path, "-x", "c", "-", "-x", "none", *options]
    done = subprocess.run(command, input=code, text=True, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr


def make_needy(lib: Path, packages: Path, major: int, rpath: str = "") -> None:
    """A library that is ours by its symbol and needs a run-time library, which only the packages have."""
    name = f"libcudart.so.{major}"
    compile_c(packages / name, "int cuda_answer(void) { return 42; }", f"-Wl,-soname,{name}")
    compile_c(lib, "int cuda_answer(void); int llama_interp_abi(void) { return cuda_answer(); }", str(packages / name),
              *([f"-Wl,-rpath,{rpath}"] if rpath else []))
    upstream.write(lib.parent, {"manifest.json": json.dumps({"runtime": [name]})})


def loads(lib: Path) -> bool:
    """Whether a fresh process can load a library by the loader alone."""
    code = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).llama_interp_abi())"
    env = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    return subprocess.run([sys.executable, "-c", code, lib], capture_output=True, text=True, env=env).stdout == "42\n"


@linux
def test_the_library_finds_the_packages_in_a_clone_and_in_a_wheel(machine, project, tmp_path):
    machine.wheels()
    one = target(project, machine)
    rpath = one.settings["CMAKE_INSTALL_RPATH"].replace(";", ":")
    assert all(part.startswith("$ORIGIN") for part in rpath.split(":"))
    make_needy(one.lib / "libggml-cuda.so", machine.site / "nvidia/cu13/lib", 13, rpath)
    assert not loads(one.lib / "libggml-cuda.so")
    library.link_runtime(one)
    assert sorted(path.name for path in (one.folder / "runtime").iterdir()) == sorted(one.runtime)
    assert loads(one.lib / "libggml-cuda.so")
    # the environment is made anew elsewhere
    machine.env.rename(tmp_path / "elsewhere")
    machine.env, machine.site = tmp_path / "elsewhere", tmp_path / "elsewhere/lib/python3.11/site-packages"
    assert not loads(one.lib / "libggml-cuda.so")
    library.link_runtime(target(project, machine))
    assert loads(one.lib / "libggml-cuda.so")
    # installed as a part of a wheel, in the same environment
    installed = machine.site / "interp/lib"
    shutil.copytree(one.lib, installed)
    assert loads(installed / "libggml-cuda.so")


@linux
def test_what_the_loader_finds_by_itself_needs_no_link(machine, project):
    root = machine.toolkit("13.0")
    one = target(project, machine)
    assert one.runtime == {
        "libcudart.so.13": root / "lib64/libcudart.so.13", "libcublasLt.so.13": None, "libcublas.so.13": None,
    }
    library.link_runtime(one)
    assert [path.name for path in (one.folder / "runtime").iterdir()] == ["libcudart.so.13"]


@linux
def test_a_moved_library_gets_what_it_needs_from_this_environment(machine, tmp_path, monkeypatch):
    lib, site = tmp_path / "moved/libllama.so", tmp_path / "site"
    make_needy(lib, site / "nvidia/cu77/lib", 77)
    with pytest.raises(LibraryError) as error:
        native._load(lib)
    assert str(error.value) == (
        f"{lib} needs libcudart.so.77, which is neither in this environment nor on this machine. "
        "Install it with: pip install 'nvidia-cuda-runtime==77.*'"
    )
    monkeypatch.syspath_prepend(str(site))
    assert native._load(lib).llama_interp_abi() == 42


@linux
def test_a_moved_library_gets_what_it_needs_from_a_toolkit(machine, tmp_path, monkeypatch):
    lib = tmp_path / "moved/libllama.so"
    make_needy(lib, tmp_path / "toolkit/lib64", 78)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert native._load(lib).llama_interp_abi() == 42


def test_a_missing_driver_is_named(tmp_path):
    error = OSError("libcuda.so.1: cannot open shared object file: No such file or directory")
    with pytest.raises(LibraryError, match="^[^\n]*needs NVIDIA's driver [^\n]* python3 build.py --cpu$"):
        runtime.load(tmp_path / "libllama.so", error)


def test_an_error_about_something_else_stays_what_it_is(tmp_path):
    upstream.write(tmp_path, {"libllama.so": "", "manifest.json": json.dumps({"runtime": ["libcudart.so.13"]})})
    with pytest.raises(LibraryError, match="cannot be loaded: .*file too short"):
        native._load(tmp_path / "libllama.so")
    error = OSError("libelse.so.1: cannot open shared object file: No such file or directory")
    with pytest.raises(OSError) as raised:
        runtime.load(tmp_path / "libllama.so", error)
    assert raised.value is error
