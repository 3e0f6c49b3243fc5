"""build.py --cuda-arch: how architectures are written, and which ones are compiled for."""

from __future__ import annotations

import pytest

import build
from ci import cuda, nvidia, toolchain
from ci.project import BuildError


@pytest.mark.parametrize(("text", "read"), [
    ("90", ["90"]),
    ("90,86", ["86", "90"]),
    ("8.6, 9.0;86", ["86", "90"]),
    ("120a-real,100f,75-virtual", ["75-virtual", "100f", "120a-real"]),
    ("native", ["native"]),
    ("all-major", ["all-major"]),
])
def test_architectures_are_read(text, read):
    assert nvidia.parse_architectures(text) == read


@pytest.mark.parametrize("text", ["nonsense", "", "90,", "sm_90", "native,90", "9", "90-fast", "90b", "-86"])
def test_architectures_that_are_none_are_refused_in_one_line(text, capsys):
    with pytest.raises(SystemExit) as error:
        build.parse(["--cuda", f"--cuda-arch={text}"])
    assert error.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "is no CUDA architecture" in said and "--cuda-arch" in said


def test_architectures_need_cuda(machine, monkeypatch, capsys):
    monkeypatch.setattr(toolchain, "missing", lambda *_, **__: [])
    assert build.main(["--cpu", "--cuda-arch", "90"]) == 1
    said = capsys.readouterr().err
    assert said == "error: --cuda-arch is for --cuda, and this builds for cpu. Give both, or neither\n"


@pytest.mark.parametrize("line", [
    "--cuda --cuda-arch 90 test -x --lf", "test --cuda -x --cuda-arch 90 --lf", "test -x --cuda-arch=90 --lf --cuda",
])
def test_the_architectures_may_stand_before_and_after_test(line):
    args = build.parse(line.split())
    assert (args.backend, args.cuda_arch, args.pytest) == ("cuda", ["90"], ["-x", "--lf"])


def test_a_name_after_the_option_is_its_value(capsys):
    with pytest.raises(SystemExit):
        build.parse(["--cuda", "--cuda-arch", "test"])
    assert "'test' is no CUDA architecture" in capsys.readouterr().err


def test_it_compiles_for_the_gpus_that_are_there(machine, project):
    machine.toolkit(known="75 86 90")
    machine.driver("CUDA Version: 13.0", "9.0", "8.6", "9.0")
    kit = cuda.find(project, machine.env)
    assert cuda.architectures(kit, None) == cuda.architectures(kit, ["native"]) == ["86", "90"]
    assert cuda.architectures(kit, ["75"]) == ["75"]


def test_without_a_gpu_it_compiles_for_what_the_compiler_knows_of_the_default(machine, project):
    machine.toolkit(known="75 80 90")
    # this is what nvidia-smi does where the driver is not loaded
    machine.driver("no")
    kit = cuda.find(project, machine.env)
    assert cuda.architectures(kit, None) == ["75-virtual", "80-virtual", "90-virtual"]
    with pytest.raises(BuildError, match="native: nvidia-smi shows no GPU"):
        cuda.architectures(kit, ["native"])


def test_a_gpu_that_the_compiler_no_longer_knows_is_an_error_before_anything_is_compiled(machine, project):
    machine.toolkit("13.0", known="75 90")
    machine.driver("CUDA Version: 13.0", "6.1")
    with pytest.raises(BuildError, match="^nvcc 13.0 does not compile for architecture 61; it knows 75, 90[^\n]*$"):
        cuda.architectures(cuda.find(project, machine.env), None)
    assert cuda.architectures(cuda.find(project, machine.env), ["all-major"]) == ["all-major"]
