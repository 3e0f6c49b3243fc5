"""build.py wheel: what goes in, what is refused, and which library an installed package takes. No compiler runs here."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

import build
import upstream
from ci import check_wheel, library, toolchain, wheel
from ci.project import BuildError, Project
from ci.steps import Report
from interp import native
from interp.errors import LibraryError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def target(tmp_path, monkeypatch) -> library.Target:
    """A portable library that no compiler made, in a project with this one's package."""
    root = tmp_path / "project"
    upstream.write(root, {
        "patches/upstream.toml": upstream.PIN.format(commit="1" * 40, sha="0" * 64), "patches/series": "",
        "patches/native/build.cmake": "# shared\n", "interp/__init__.py": "", "interp/lib/stale.so": "old",
        "tests/test_x.py": "", "ci/x.py": "",
    })
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, root / name)
    monkeypatch.setattr(wheel.platform, "machine", lambda: "x86_64")
    settings = toolchain.flags("cpu", wheel.settings({}))
    target = library.Target(Project(root), "cpu", True, "1" * 40, settings, Path(sys.prefix), variant="portable")
    upstream.write(target.lib, {
        "libllama.so": "library", "LICENSE.llama.cpp": "a licence\n",
        "manifest.json": json.dumps({"commit": "1" * 40, "compile_seconds": 1.5}),
    })
    (target.lib / "libllama.so.0").symlink_to("libllama.so")
    return target


def test_a_portable_library_is_another_one_and_not_for_this_processor_alone(target):
    assert target.folder.name == "portable-cpu"
    assert target.settings["GGML_NATIVE"] == "OFF" and "cpu" not in toolchain.fingerprint(target.settings, None)
    assert wheel.needed_by(target.settings) == ["sse4_2", "avx", "avx2", "bmi2", "fma", "f16c"]
    assert wheel.needed_by(target.settings | {"GGML_AVX2": "OFF"}) == ["sse4_2", "avx", "bmi2", "fma", "f16c"]


def test_a_library_for_this_processor_alone_is_refused():
    assert wheel.needed_by(wheel.settings({"GGML_AVX512": "ON"}))[-1] == "avx512f"
    with pytest.raises(BuildError, match="processors like this one only"):
        wheel.settings({"GGML_NATIVE": "1"})


def test_the_wheel_holds_the_package_and_the_library_and_nothing_else(target, tmp_path):
    stage = tmp_path / "stage"
    wheel._stage(target, stage)
    names = {str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file()}
    assert names == {
        "pyproject.toml", "setup.py", "README.md", "LICENSE", "interp/__init__.py", "interp/lib/libllama.so",
        "interp/lib/LICENSE.llama.cpp", "interp/lib/manifest.json",
    }
    about = json.loads((stage / "interp/lib/manifest.json").read_text())
    assert about["commit"] == "1" * 40 and "avx2" in about["needs"] and "compile_seconds" not in about


def test_another_backend_is_named_in_the_version():
    assert '\nversion = "0.' in wheel._pyproject(ROOT, "cpu") and "+cpu" not in wheel._pyproject(ROOT, "cpu")
    assert wheel._pyproject(ROOT, "cuda").count('+cuda"\n') == 1


def test_a_wheel_is_packed_for_any_python_and_twice_the_same(target, tmp_path, monkeypatch):
    pytest.importorskip("build", reason="build is installed by build.py wheel")
    pytest.importorskip("wheel", reason="wheel is installed by build.py wheel")
    monkeypatch.setattr(wheel, "_linux_tag", lambda *_: "manylinux_2_34_x86_64")
    monkeypatch.setattr(wheel.sys, "platform", "linux")
    monkeypatch.chdir(target.project.root)
    first = wheel.make(target, Report()).read_bytes()
    (target.project.root / "interp/__init__.py").chmod(0o600)
    os.utime(target.project.root / "interp/__init__.py", (10**9, 10**9))
    made = wheel.make(target, Report())
    assert made.read_bytes() == first
    assert made.name.endswith("-py3-none-manylinux_2_34_x86_64.whl") and made.parent == target.project.root / "out/wheels"
    with zipfile.ZipFile(made) as packed:
        about = next(name for name in packed.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false\nTag: py3-none-manylinux_2_34_x86_64" in packed.read(about).decode()
    assert sorted(path.name for path in target.folder.iterdir()) == ["lib"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\0/home/me/llama-interp/build/src/llama.cpp/ggml/src/ggml.c\0", "holds the path /home/me/llama-interp/"),
        (b"\0llama.cpp/ggml/src/ggml.c\0", None),
        (b"\0/usr/include/c++/12/bits/stl_vector.h\0", None),
        (b"\0https://example.com/a/b.html /proc/cpuinfo /dev/shm/x\0", None),
    ],
)
def test_a_path_of_the_machine_that_compiled_it_is_found(content, fault):
    assert (fault is None and not wheel.check_library(content)) or fault in wheel.check_library(content)[0]


def test_a_library_that_looks_for_others_by_an_absolute_path_is_refused(monkeypatch):
    monkeypatch.setattr(wheel, "run_paths", lambda _: ["$ORIGIN", "/opt/cuda/lib64"])
    assert wheel.check_library(b"") == ["it looks for libraries in /opt/cuda/lib64"]


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is Linux's")
def test_run_paths_are_read_from_a_real_library():
    pytest.importorskip("elftools", reason="auditwheel brings it")
    paths = wheel.run_paths(native.find_library().read_bytes())
    assert paths and paths[0].startswith("$ORIGIN")


def test_what_does_not_belong_into_a_wheel_is_refused(tmp_path):
    path = tmp_path / "x.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for name in ("interp/__init__.py", "tests/test_x.py", "llama_interp-0.1.0.dist-info/WHEEL"):
            packed.writestr(name, "")
    with pytest.raises(BuildError, match="tests/test_x.py does not belong into it; interp/lib holds no libllama"):
        wheel.check(path)


def test_the_wheel_takes_no_programs_and_no_unpatched_library(capsys):
    for flag in ("--tools", "--unpatched"):
        with pytest.raises(SystemExit):
            build.parse(["wheel", flag])
    assert build.parse(["wheel", "--cuda"]).verb == "wheel"


# // which library an installed package takes


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An installed package with a library inside."""
    monkeypatch.delenv("LLAMA_INTERP_LIB", raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "interp/native.py"))
    upstream.write(tmp_path, {f"interp/lib/{native._library_name()}": ""})
    return tmp_path


def test_the_packages_own_library_comes_last(package, monkeypatch):
    name = native._library_name()
    assert native.find_library() == package / "interp/lib" / name
    upstream.write(package, {f"build/cpu/lib/{name}": "", "build/active.json": '{"lib": "cpu/lib"}', f"mine/{name}": ""})
    assert native.find_library() == package / "build/cpu/lib" / name
    monkeypatch.setenv("LLAMA_INTERP_LIB", str(package / "mine"))
    assert native.find_library() == package / "mine" / name


def test_a_processor_that_lacks_an_instruction_gets_a_message_and_no_crash(package):
    upstream.write(package, {"interp/lib/manifest.json": '{"needs": ["avx2", "fma"]}', "cpuinfo": "flags\t\t: sse avx fma\n"})
    path = native.find_library()
    assert native.lacking(path, package / "cpuinfo") == ["avx2"]
    upstream.write(package, {"cpuinfo": "flags\t\t: sse avx avx2 fma\n"})
    assert native.lacking(path, package / "cpuinfo") == []
    upstream.write(package, {"interp/lib/manifest.json": '{"needs": ["warp"]}'})
    if sys.platform == "linux":
        with pytest.raises(LibraryError, match="compiled for processors with warp, which this one lacks"):
            native.Library(path)


# // the check of a wheel


def test_the_check_wants_a_wheel(tmp_path):
    with pytest.raises(BuildError, match="python3 build.py wheel"):
        check_wheel.newest(tmp_path)


def test_a_run_with_another_library_or_dead_hooks_is_no_success(tmp_path):
    good = {"library": str(tmp_path / "lib/libllama.so"), "package": str(tmp_path / "interp/__init__.py"),
            "unchanged": True, "edited": True, "top": " Paris"}
    check_wheel.judge(good, tmp_path)
    for change, fault in ({"library": "/elsewhere/libllama.so"}, "outside of"), ({"edited": False}, "changed nothing"), (
        {"unchanged": False}, "reading changed"), ({"top": " Rome"}, "Rome"):
        with pytest.raises(BuildError, match=fault):
            check_wheel.judge(good | change, tmp_path)


def test_the_check_runs_without_a_compiler_and_without_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_INTERP_LIB", "x")
    monkeypatch.setenv("PYTHONPATH", "x")
    env = check_wheel.bare(tmp_path)
    assert not {"LLAMA_INTERP_LIB", "PYTHONPATH"} & set(env) and shutil.which("c++", path=env["PATH"]) is None
    upstream.write(tmp_path, {"bin/c++": "#!/bin/sh\n"})
    (tmp_path / "bin/c++").chmod(0o755)
    if sys.platform != "win32":
        with pytest.raises(BuildError, match="holds a compiler"):
            check_wheel.bare(tmp_path)
