"""build.py --vulkan: what it finds on the machine, what it fetches, and what of it decides the library's content."""

from __future__ import annotations

import io
import os
import stat
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import build
import upstream
from ci import environment, library, plan, source, steps, toolchain, vulkan
from ci.doctor import _vulkan
from ci.project import BuildError, Package, Project
from ci.steps import Report

WHEEL = {
    "robots/include/vulkan/vulkan.hpp": "// C++",
    "robots/include/vulkan/vulkan_core.h": "#define VK_HEADER_VERSION 290\n",
    "robots/include/vk_video/codec.h": "// video",
    "robots/include/physics/big.h": "// not of Vulkan",
    "robots/libphysics.so": "machine code",
    "robots-3.0.dist-info/METADATA": "Name: robots",
}
SPIRV_WHEEL = {
    "prefix/include/spirv/unified1/spirv.hpp": "// SPIR-V",
    f"prefix/share/{vulkan._CONFIG}": "# CMake",
    "spirv-1.0.dist-info/METADATA": "Name: spirv",
}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """A checkout in which the two packages are already downloaded, under the hashes that are then pinned."""
    monkeypatch.delenv("LLAMA_INTERP_CACHE", raising=False)
    project = Project(tmp_path / "project")
    for name, files in (("VULKAN", WHEEL), ("SPIRV", SPIRV_WHEEL)):
        archive = tmp_path / f"{name}.whl"
        with zipfile.ZipFile(archive, "w") as packed:
            for path, content in files.items():
                packed.writestr(path, content)
        package = Package(name.lower(), "1.0", steps.sha256(archive), wheel="py3-none-any")
        place = project.downloads / package.sha256 / archive.name
        place.parent.mkdir(parents=True)
        archive.rename(place)
        monkeypatch.setitem(vulkan._PARTS, package, vulkan._PARTS[getattr(vulkan, name)])
        monkeypatch.setattr(vulkan, name, package)
    return project


@pytest.fixture
def include(tmp_path, monkeypatch) -> Path:
    """A folder that the compiler reads before the system's: it is what VULKAN_SDK names."""
    sdk = tmp_path / "sdk"
    monkeypatch.setenv("VULKAN_SDK", str(sdk))
    return sdk / "include"


def headers(version: int, *more: str) -> dict[str, str]:
    core = f"#define VK_HEADER_VERSION {version}\n" + "".join(f"#define {name} 1\n" for name in more)
    return {"vulkan/vulkan.hpp": "", "vulkan/vulkan_core.h": core}


def pretend(monkeypatch, found: vulkan.Headers) -> None:
    monkeypatch.setattr(vulkan, "found", lambda: found)


NOTHING, OLD, NEW = vulkan.Headers(None, False, False), vulkan.Headers(239, False, True), vulkan.Headers(309, True, True)


# // what the machine has


def test_the_compiler_says_which_headers_it_finds(include):
    upstream.write(include, headers(239) | {"spirv/unified1/spirv.hpp": ""})
    upstream.write(include.parent / "share", {vulkan._CONFIG: ""})
    assert vulkan.found() == vulkan.Headers(239, False, True)
    upstream.write(include, headers(272, "VK_EXT_layer_settings"))
    assert vulkan.found() == vulkan.Headers(272, True, True)


def test_headers_for_c_alone_are_none(include, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    # a system without Vulkan, whatever this one has
    compiler.write_text(f'#!/bin/sh\nexec {toolchain.cxx()} -nostdinc "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    assert vulkan.found() == NOTHING
    upstream.write(include, {"vulkan/vulkan_core.h": "#define VK_HEADER_VERSION 309\n#define VK_EXT_layer_settings 1\n"})
    assert vulkan.found() == NOTHING


def test_a_compiler_that_does_not_run_finds_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert vulkan.found() == NOTHING


def test_the_loader_of_the_run_time_package_is_given_to_cmake_by_its_path(monkeypatch, tmp_path):
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    upstream.write(tmp_path, {"lib/libvulkan.so.1": ""})
    assert vulkan._loader() == {"Vulkan_LIBRARY": str(tmp_path / "lib" / "libvulkan.so.1")}
    upstream.write(tmp_path, {"lib/libvulkan.so": ""})
    assert vulkan._loader() == {}, "CMake finds it by itself"


@pytest.mark.parametrize("installer", toolchain._PACKAGES)
def test_one_line_says_how_to_install_what_must_come_from_the_system(monkeypatch, installer):
    monkeypatch.setattr(toolchain, "glslc", lambda: None)
    monkeypatch.setattr(toolchain, "vulkan_loader", lambda: None)
    monkeypatch.setattr(toolchain, "which", lambda name: name if name in ("g++", "gcc", "c++", "cc", "git", installer) else None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    lacking = toolchain.missing("vulkan", needs_venv=False)
    assert lacking == ["glslc", "libvulkan"]
    text = toolchain.explain_missing(lacking)
    assert text.startswith("missing: glslc, libvulkan. Install with: ") and "\n" not in text
    packages = toolchain._PACKAGES[installer]
    assert text.endswith(f"{packages['glslc']} {packages['libvulkan']}")


def test_a_machine_without_them_is_told_before_anything_starts(monkeypatch, capsys):
    monkeypatch.setattr(toolchain, "vulkan_loader", lambda: None)
    monkeypatch.setattr(toolchain, "glslc", lambda: "glslc")
    monkeypatch.setattr(environment, "ready", lambda project: True)
    assert build.main(["--vulkan"]) == 1
    assert capsys.readouterr().err.startswith("error: missing: libvulkan. ")


def test_doctor_names_the_tools_and_the_headers(monkeypatch):
    monkeypatch.setattr(toolchain, "glslc", lambda: "/bin/glslc")
    monkeypatch.setattr(toolchain, "vulkan_loader", lambda: None)
    pretend(monkeypatch, OLD)
    assert _vulkan() == {
        "found": False, "detail": "/bin/glslc, no libvulkan, Vulkan headers 239 (too old), SPIR-V headers"
    }


# // what is fetched


def test_headers_that_do_are_left_alone(project, monkeypatch):
    pretend(monkeypatch, NEW)
    vulkan.ensure(project, {}, Report(io.StringIO()))
    assert not (project.build / "headers").exists()
    assert vulkan._INCLUDE not in vulkan.target_options(project, "vulkan", {})["here"]


def test_old_headers_are_replaced_and_only_headers_are_unpacked(project, monkeypatch):
    pretend(monkeypatch, OLD)
    out = io.StringIO()
    vulkan.ensure(project, {}, Report(out))
    assert "239 (too old)" in out.getvalue()
    place = vulkan.folder(project, vulkan.VULKAN)
    unpacked = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    assert unpacked == ["include/vk_video/codec.h", "include/vulkan/vulkan.hpp", "include/vulkan/vulkan_core.h"]
    assert vulkan.target_options(project, "vulkan", {})["here"][vulkan._INCLUDE] == (place / "include").as_posix()
    assert not vulkan.folder(project, vulkan.SPIRV).exists()


def test_missing_spirv_headers_come_with_their_cmake_files(project, monkeypatch):
    pretend(monkeypatch, replace(NEW, spirv=False))
    vulkan.ensure(project, {}, Report(io.StringIO()))
    here = vulkan.target_options(project, "vulkan", {})["here"]
    assert (Path(here[vulkan._SPIRV]) / "SPIRV-HeadersConfig.cmake").read_text() == "# CMake"
    assert (Path(here["CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES"]) / "spirv/unified1/spirv.hpp").exists()
    assert vulkan._INCLUDE not in here


def test_a_second_build_fetches_nothing(project, monkeypatch):
    pretend(monkeypatch, NOTHING)
    vulkan.ensure(project, {}, Report(io.StringIO()))
    monkeypatch.setattr(source, "download", lambda *_: pytest.fail("downloaded again"))
    vulkan.ensure(project, {}, Report(io.StringIO()))


def test_an_interrupted_unpacking_leaves_no_folder_that_looks_whole(project, monkeypatch):
    pretend(monkeypatch, OLD)
    kept, written = source._write, []

    def write_one(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        kept(path, content)

    monkeypatch.setattr(source, "_write", write_one)
    with pytest.raises(KeyboardInterrupt):
        vulkan.ensure(project, {}, Report(io.StringIO()))
    assert written and not vulkan.folder(project, vulkan.VULKAN).exists()
    monkeypatch.setattr(source, "_write", kept)
    vulkan.ensure(project, {}, Report(io.StringIO()))
    assert (vulkan.folder(project, vulkan.VULKAN) / "include/vulkan/vulkan.hpp").exists()


def test_the_users_own_headers_are_taken_as_they_are(project, monkeypatch):
    pretend(monkeypatch, NOTHING)
    own = {"Vulkan_INCLUDE_DIR": "/opt/include", "SPIRV-Headers_DIR": "/opt/cmake"}
    assert vulkan.lacking(vulkan.found(), own) == []
    assert vulkan.target_options(project, "vulkan", own)["here"].keys() <= {"Vulkan_LIBRARY"}


def test_a_wheel_of_another_platform_is_asked_for_by_its_tags(project, monkeypatch, tmp_path):
    commands = []

    def run(command, **_):
        commands.append(command)
        (folder := Path(command[command.index("-d") + 1])).mkdir(parents=True)
        (folder / "robots.whl").write_text("something else")

    monkeypatch.setattr(source, "run", run)
    with pytest.raises(BuildError, match="has the hash .*, but 00 is pinned"):
        source.download(project, Package("robots", "3.0", "00", wheel="cp311-cp311-manylinux_2_28_x86_64"))
    (command,) = commands
    options = dict(zip(command, command[1:], strict=False))
    assert options["--only-binary"] == "robots"
    assert [options[f"--{name}"] for name in ("python-version", "implementation", "abi", "platform")] == [
        "311", "cp", "cp311", "manylinux_2_28_x86_64",
    ]
    assert not (project.downloads / "00").exists()


@pytest.mark.parametrize(("wheel", "kind"), [("py3-none-any", "--only-binary"), ("", "--no-binary")])
def test_a_wheel_for_every_platform_or_a_source_is_asked_for_without_tags(project, monkeypatch, wheel, kind):
    commands = []

    def run(command, **_):
        commands.append(command)
        raise BuildError("no network")

    monkeypatch.setattr(source, "run", run)
    with pytest.raises(BuildError, match="no network"):
        source.download(project, Package("robots", "3.0", "00", wheel=wheel))
    assert kind in commands[0] and "--python-version" not in commands[0]


# // what decides the content


def target(project: Project, **settings: str) -> library.Target:
    return plan.target(project, "vulkan", False, "base", Path(sys.prefix), settings)


def test_the_key_holds_no_folder_of_this_machine(project, monkeypatch, tmp_path):
    pretend(monkeypatch, NOTHING)
    elsewhere = Project(tmp_path / "another" / "place")
    assert target(project).here != target(elsewhere).here
    assert target(project).key == target(elsewhere).key


def test_the_key_follows_the_shader_compiler_and_the_headers(project, monkeypatch):
    keys = []
    for found in (NEW, replace(NEW, version=310), OLD, replace(OLD, version=204), NOTHING):
        pretend(monkeypatch, found)
        keys.append(target(project).key)
    assert keys[2] == keys[3], "old headers are not used, so their version is of no account"
    assert len(set(keys)) == 4
    monkeypatch.setattr(toolchain, "version", lambda tool: "another")
    assert target(project).key not in keys


def test_other_backends_know_nothing_of_it(project, monkeypatch):
    monkeypatch.setattr(vulkan, "found", lambda: pytest.fail("looked for headers"))
    assert vulkan.target_options(project, "cpu", {}) == {}


def test_the_users_setting_wins_over_the_folder_that_was_found(project, monkeypatch, tmp_path):
    pretend(monkeypatch, NOTHING)
    one = target(project)
    command = library.configure_command(one, tmp_path, "cmake", "ninja")
    assert f"-DVulkan_INCLUDE_DIR={one.here['Vulkan_INCLUDE_DIR']}" in command
    own = replace(one, settings=one.settings | {"Vulkan_INCLUDE_DIR": "/opt/include"})
    assert "-DVulkan_INCLUDE_DIR=/opt/include" in library.configure_command(own, tmp_path, "cmake", "ninja")
    assert not any(os.fspath(project.root) in value for value in one.settings.values())
