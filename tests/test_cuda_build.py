"""build.py --cuda: which toolkit is taken, what is installed, what is called, what is said when it cannot work.

The compilers and the driver are scripts on a PATH of our own, and NVIDIA's packages are made up; no GPU and no network.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

import build
from ci import cuda, environment, library, plan, source, toolchain
from ci.doctor import examine, show
from ci.project import BuildError, Project
from ci.steps import Report
from cuda_machine import WHEELS, Machine, linux

PATCHES = ("hook.patch",)


@pytest.fixture
def installs(machine, monkeypatch) -> list[list[str]]:
    """What pip is asked for; it installs all packages of CUDA, of the version that is asked for."""
    asked = []

    def pip(_project, _env, arguments, _fail):
        asked.append(arguments)
        for name in (one.partition("==")[0] for one in arguments if "==" in one):
            if name in WHEELS:
                machine.wheel(name, "13.0.88", WHEELS[name])

    monkeypatch.setattr(environment, "_pip", pip)
    return asked


def target(project: Project, machine: Machine, *asked: str, **extra: str) -> library.Target:
    base = project.pin().commit
    return plan.target(project, "cuda", True, base, machine.env, extra, list(asked) or None)


def quiet() -> Report:
    return Report(open(os.devnull, "w"))


# // which toolkit


def test_a_whole_toolkit_of_the_system_is_used_as_it_is(machine, project, installs):
    root = machine.toolkit("12.4")
    kit = cuda.ensure(project, machine.env, quiet())
    assert installs == [] and not cuda.folder(project).exists()
    assert (kit.release, kit.system, kit.packages) == ((12, 4), True, ())
    assert cuda.settings_here(project, kit) == {
        "CMAKE_CUDA_COMPILER": str(machine.bin / "nvcc"), "CUDAToolkit_ROOT": str(root),
    }


@linux
def test_a_toolkit_without_cublas_gets_that_alone(machine, project, installs):
    root = machine.toolkit("13.0", cublas=False)
    # another package that shares the folder with cuBLAS: its headers are of another release than the toolkit's
    machine.wheel("nvidia-cuda-runtime", "13.9.1", WHEELS["nvidia-cuda-runtime"])
    kit = cuda.ensure(project, machine.env, quiet())
    assert installs == [["--no-deps", "nvidia-cublas==13.0.*"]]
    assert "without cuBLAS" in kit.why and kit.system
    here = cuda.settings_here(project, kit)
    assert here["CMAKE_CUDA_COMPILER"] == str(machine.bin / "nvcc") and here["CUDAToolkit_ROOT"] == str(root)
    include = Path(here["CUDAToolkit_CUBLAS_INCLUDE_DIR"])
    assert here["CMAKE_CUDA_STANDARD_INCLUDE_DIRECTORIES"] == str(include)
    assert [path.name for path in include.iterdir()] == ["cublas_v2.h"]
    for name in ("cublas", "cublasLt"):
        assert Path(here[f"CUDA_{name}_LIBRARY"]).read_text() == "nvidia-cublas 13.0.88"


@pytest.mark.parametrize("lacking", ["include/cublas_v2.h", "lib64/libcublas.so"])
def test_half_of_cublas_is_none(machine, project, lacking):
    root = machine.toolkit("13.0")
    (root / lacking).unlink()
    assert cuda.find(project, machine.env).lacks == ("nvidia-cublas==13.0.*",)


@linux
def test_before_cuda_13_packages_have_other_names_and_folders(machine, project, monkeypatch):
    machine.toolkit("12.4", cublas=False)
    files = ["include/cublas_v2.h", "lib/libcublas.so.12", "lib/libcublasLt.so.12"]
    name = "nvidia-cublas-cu12"
    monkeypatch.setattr(environment, "_pip", lambda *_: machine.wheel(name, "12.4.5", files, "cublas"))
    kit = cuda.ensure(project, machine.env, quiet())
    assert kit.packages == ("nvidia-cublas-cu12==12.4.*",) and not kit.lacks
    assert Path(cuda.settings_here(project, kit)["CUDA_cublasLt_LIBRARY"]).is_file()
    assert "$ORIGIN/../../nvidia/cublas/lib" in cuda.settings(kit)["CMAKE_INSTALL_RPATH"].split(";")


def test_cublas_cannot_be_added_to_a_toolkit_before_cuda_12(machine, project):
    machine.toolkit("11.8", cublas=False)
    with pytest.raises(BuildError, match="before CUDA 12"):
        cuda.find(project, machine.env)


@linux
def test_without_a_toolkit_all_packages_are_installed_at_one_release(machine, project, installs):
    kit = cuda.ensure(project, machine.env, quiet())
    assert len(installs) == 1 and installs[0][0] == "--no-deps"
    assert sorted(one.partition("==")[0] for one in installs[0][1:]) == sorted(WHEELS)
    assert {one.partition("==")[2] for one in installs[0][1:]} == {"13.0.*"}
    assert (kit.release, kit.system, kit.lacks) == ((13, 0), False, ())
    cuda.ensure(project, machine.env, quiet())
    assert len(installs) == 1


@linux
def test_the_folder_of_links_is_a_toolkit_and_the_packages_stay_as_they_are(machine, project, installs):
    machine.wheels()
    before = sorted(machine.env.rglob("*"))
    kit = cuda.ensure(project, machine.env, quiet())
    assert installs == [] and sorted(machine.env.rglob("*")) == before
    root = Path(cuda.settings_here(project, kit)["CUDAToolkit_ROOT"])
    assert root == project.build / "cuda-toolkit" and kit.nvcc == str(root / "bin/nvcc")
    said = subprocess.run([kit.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    assert "release 13.0" in said
    for name in ("lib64/libcudart.so", "lib64/libcublas.so", "lib64/libcublas.so.13", "include/cccl/cub/cub.cuh",
                 "include/crt/host_config.h", "nvvm/bin/cicc", "bin/nvcc.profile"):
        assert (root / name).is_file(), name
    # nvcc looks for its parts beside its own folder, so that must be one of ours
    assert not (root / "bin").is_symlink()


@linux
def test_links_are_made_anew_only_where_the_packages_changed(machine, project, installs):
    machine.wheels()
    cuda.ensure(project, machine.env, quiet())
    first = cuda.folder(project).stat().st_ino
    cuda.ensure(project, machine.env, quiet())
    assert cuda.folder(project).stat().st_ino == first
    machine.wheel("nvidia-nvvm", "13.0.99", [*WHEELS["nvidia-nvvm"], "nvvm/libdevice/new.bc"])
    cuda.ensure(project, machine.env, quiet())
    assert (cuda.folder(project) / "nvvm/libdevice/new.bc").is_file()


@linux
def test_what_other_packages_brought_is_not_replaced(machine, project, installs):
    # as torch does: its cuBLAS is newer, and so may its run-time library be
    machine.wheels(nvidia_cublas="13.1.0")
    assert cuda.find(project, machine.env).lacks == ()
    machine.wheels(nvidia_cuda_runtime="13.2.5", nvidia_cublas="13.4.1")
    kit = cuda.find(project, machine.env)
    assert sorted(kit.lacks) == [
        "nvidia-cuda-cccl==13.2.*", "nvidia-cuda-crt==13.2.*", "nvidia-cuda-nvcc==13.2.*", "nvidia-nvvm==13.2.*",
    ]
    assert kit.release == (13, 2)


@linux
def test_a_run_time_library_of_another_major_version_does_not_choose_the_compiler(machine, project):
    machine.wheel("nvidia-cuda-runtime", "14.1.0", WHEELS["nvidia-cuda-runtime"])
    kit = cuda.find(project, machine.env)
    assert kit.release == (13, 0) and "nvidia-cuda-runtime==13.0.*" in kit.lacks


def test_a_compiler_that_is_named_but_not_there_is_no_reason_to_take_another(machine, project, monkeypatch):
    machine.toolkit()
    monkeypatch.setenv("CUDACXX", str(machine.bin / "nvcc-99"))
    with pytest.raises(BuildError, match="^CUDACXX is .*nvcc-99, which is no program[^\n]*$"):
        cuda.find(project, machine.env)


def test_the_named_compiler_wins(machine, project, monkeypatch):
    machine.toolkit("13.0")
    monkeypatch.setenv("CUDACXX", str(machine.nvcc(machine.folder / "other/bin/nvcc", "12.9")))
    assert cuda.find(project, machine.env).release == (12, 9)


def test_a_compiler_that_does_not_work_is_named(machine, project):
    machine.script(machine.bin / "nvcc", {"--nothing": "exit 0"})
    with pytest.raises(BuildError, match="bin/nvcc does not say its version"):
        cuda.find(project, machine.env)


@pytest.mark.parametrize(("platform", "libc"), [("darwin", ""), ("win32", ""), ("linux", "musl")])
def test_where_there_are_no_packages_the_toolkit_is_asked_for(machine, project, monkeypatch, platform, libc):
    monkeypatch.setattr(cuda.sys, "platform", platform)
    monkeypatch.setattr(cuda.platform, "libc_ver", lambda: (libc, ""))
    with pytest.raises(BuildError, match="Install the CUDA toolkit, or build without CUDA"):
        cuda.find(project, machine.env)


# // the content key


def test_the_key_follows_the_architectures_and_the_compiler(machine, project):
    machine.toolkit("13.0")
    keys = {target(project, machine, *asked).key for asked in (["90"], ["86"], ["86", "90"])}
    (machine.bin / "nvcc").unlink()
    toolchain.version.cache_clear()
    machine.toolkit("13.1")
    assert len(keys | {target(project, machine, "90").key}) == 4


@linux
def test_the_key_does_not_follow_where_the_toolkit_lies(machine, project, tmp_path):
    machine.toolkit("13.0")
    system = target(project, machine, "90")
    (machine.bin / "nvcc").unlink()
    machine.wheels()
    packaged = target(project, machine, "90")
    assert packaged.here != system.here and packaged.key == system.key
    assert str(tmp_path) not in json.dumps(packaged.settings)


def test_settings_of_the_user_win(machine, project):
    machine.toolkit("13.0", known="75 90")
    # its GPU cannot be compiled for, which is nothing to somebody who says for what to compile
    machine.driver("CUDA Version: 13.0", "6.1")
    given = {"CMAKE_CUDA_ARCHITECTURES": "90", "GGML_CUDA_NO_VMM": "OFF", "CMAKE_INSTALL_RPATH": "/mine"}
    settings = target(project, machine, **given).settings
    assert {name: settings[name] for name in given} == given


def test_ccache_is_used_and_changes_no_key(machine, project):
    machine.toolkit()
    without = target(project, machine, "90")
    plain = shlex.split(plan.command(project, without, origin(project)))
    key = without.key
    machine.script(machine.bin / "ccache", {"--version": "echo ccache version 4"})
    one = target(project, machine, "90")
    words = shlex.split(plan.command(project, one, origin(project)))
    assert one.key == key
    assert [word for word in words if word not in plain] == [
        f"-DCMAKE_{language}_COMPILER_LAUNCHER={machine.bin / 'ccache'}" for language in ("CUDA", "CXX", "C")
    ]


# // --dry-run


def origin(project: Project) -> source.Origin:
    return source.resolve(project.pin(), "sdist")


@linux
@pytest.mark.parametrize("arguments", [["--cuda", "--cuda-arch", "90,86"], ["--cpu"], ["--cpu", "--unpatched"]])
def test_a_dry_run_prints_the_very_command_of_the_build_and_changes_nothing(
    machine, project, monkeypatch, capsys, arguments
):
    monkeypatch.setattr(build, "Project", lambda: project)
    monkeypatch.setattr(toolchain, "missing", lambda *_, **__: [])
    monkeypatch.setattr(environment, "prefix", lambda _: machine.env)
    monkeypatch.setattr(build, "enter_environment", lambda *_: pytest.fail("made an environment"))
    monkeypatch.setattr(environment, "_pip", lambda *_: pytest.fail("installed something"))
    before = sorted(project.root.rglob("*"))
    assert build.main([*arguments, "--dry-run", "-D", "GGML_X=a b;$c"]) == 0
    assert sorted(project.root.rglob("*")) == before
    printed, rest = capsys.readouterr().out.split("\n")
    assert rest == "" and "'-DGGML_X=a b;$c'" in printed

    called = []
    monkeypatch.setattr(library, "lines", lambda command, _log: called.append(command) or [])
    args = build.parse([*arguments, "-D", "GGML_X=a b;$c"])
    patched, commit = not args.unpatched, project.pin().commit
    machine.wheels()
    for name in ("cmake", "ninja"):
        machine.script(machine.env / "bin" / name, {"--version": f"echo {name} version 4"})
    one = plan.target(project, args.backend, patched, commit, machine.env, args.defines, args.cuda_arch)
    one.folder.mkdir(parents=True)
    library._configure(one, source.place(project, origin(project), one.patched))
    assert shlex.split(printed) == called[0]


# // what cannot work


@pytest.mark.parametrize(("toolkit", "driver", "works"), [
    ("13.0", "CUDA Version: 12.4", False),
    ("13.2", "CUDA Version: 13.0", True),
    ("12.4", "CUDA Version: 13.0", True),
    ("13.0", "CUDA UMD Version: 12.9", False),
    ("13.0", "CUDA Version: N/A", True),
])
def test_a_toolkit_must_not_be_newer_than_the_driver(machine, project, installs, toolkit, driver, works):
    machine.toolkit(toolkit)
    machine.driver(driver, "9.0")
    if works:
        assert cuda.ensure(project, machine.env, quiet()).version == toolkit
        return
    with pytest.raises(BuildError, match=r"^the toolkit is CUDA 13.0, but the driver .* CUDA 12\.\d\. Update [^\n]*$"):
        cuda.ensure(project, machine.env, quiet())


@linux
def test_an_old_driver_is_noticed_before_anything_is_downloaded(machine, project, installs):
    machine.driver("CUDA Version: 12.4", "9.0")
    with pytest.raises(BuildError, match="set CUDACXX to an nvcc of CUDA 12"):
        cuda.ensure(project, machine.env, quiet())
    assert installs == []


def test_a_host_compiler_that_is_too_new_is_named_with_the_limit(machine, project):
    machine.script(machine.bin / "g++", {"--version": "echo 'g++ (Made Up) 99.1.0'"})
    said = "host_config.h:137:2: error: #error -- unsupported GNU version! gcc versions later than 15 are not supported!"
    machine.toolkit(compiles=f"echo '{said}' >&2; exit 1")
    with pytest.raises(BuildError) as error:
        cuda.check_compilers(cuda.find(project, machine.env))
    assert str(error.value) == (
        "nvcc 13.0 does not support g++ (Made Up) 99.1.0 (gcc versions later than 15 are not supported). "
        "Set CUDAHOSTCXX to an older compiler, as /usr/bin/g++-12"
    )


def test_a_compiler_that_cannot_compile_says_why_in_one_line(machine, project, monkeypatch):
    machine.toolkit(compiles="echo 'a note'; echo 'sh: cicc: not found'; exit 127")
    kit = cuda.find(project, machine.env)
    with pytest.raises(BuildError, match="^nvcc 13.0 cannot compile an empty file: sh: cicc: not found[^\n]*$"):
        cuda.check_compilers(kit)


def test_the_host_compiler_of_the_environment_is_the_one_that_is_tried(machine, project, monkeypatch):
    machine.toolkit(compiles='case "$*" in *"-ccbin /opt/g++-12"*) exit 0;; *) exit 1;; esac')
    kit = cuda.find(project, machine.env)
    with pytest.raises(BuildError):
        cuda.check_compilers(kit)
    monkeypatch.setenv("CUDAHOSTCXX", "/opt/g++-12")
    cuda.check_compilers(kit)


# // doctor


@linux
def test_doctor_shows_the_choice_and_changes_nothing(machine, project, monkeypatch):
    monkeypatch.setattr(environment, "prefix", lambda _: machine.env)
    monkeypatch.setattr(toolchain, "nvidia_gpu", lambda: "GPU 0: NVIDIA Made Up")
    machine.driver("CUDA Version: 13.1", "9.0")
    before = sorted(project.root.rglob("*"))
    found = examine(project, "cuda", {})
    assert sorted(project.root.rglob("*")) == before
    row = next(line for line in show(found).splitlines() if line.startswith("cuda "))
    for part in ("yes", "GPU 0: NVIDIA Made Up", "driver for CUDA 13.1", "packages, 13.0", "for 90", "nvidia-nvvm"):
        assert part in row
    assert found["libraries"]["cuda"]["state"] == "missing"
    assert any(step.startswith("python3 build.py --cuda") for step in found["next"])


def test_doctor_names_what_stands_in_the_way(machine, project, monkeypatch):
    monkeypatch.setattr(environment, "prefix", lambda _: machine.env)
    monkeypatch.setenv("CUDACXX", "/absent/nvcc")
    found = examine(project, "cuda", {})
    assert found["backends"]["cuda"]["found"] is False and not found["ok"]
    assert any("CUDACXX is /absent/nvcc" in step for step in found["next"])
    assert not any(step.startswith("python3 build.py --cuda") for step in found["next"])
