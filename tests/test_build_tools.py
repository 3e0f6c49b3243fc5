"""build.py --tools: when programs are compiled, whose they are, and what is said. No compiler runs here."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

import build
import upstream
from ci import library, programs, source, toolchain
from ci.benchmark import programs as benchmark
from ci.doctor import examine, show
from ci.project import BuildError, Project
from ci.steps import Lock, Report, read_json

PATCHES = ("first-hook.patch",)


@pytest.fixture
def project(project, tmp_path, monkeypatch):
    """One whose libraries, patched and not, are there."""
    monkeypatch.chdir(tmp_path)
    for patched in (True, False):
        one = target(project, patched)
        upstream.write(one.folder, {"cmake/bin/libllama.so": "library"})
        upstream.write(project.root / "tree", {"LICENSE": "a licence\n"})
        library._publish(one, project.root / "tree")
    return project


@pytest.fixture
def compiled(project, monkeypatch):
    """What was compiled, by the folder's name; the compiler is faked, and this llama.cpp has all programs but one."""
    made = []

    def compile(one: programs.Programs, tree: Path, jobs: int, report: Report) -> None:
        made.append(one.target.name)
        names = [name for name in programs.PROGRAMS if name != "llama-imatrix"]
        upstream.write(one.folder, {f"cmake/bin/{name}": f"{name} of {tree.name}" for name in names})
        programs._publish(one, names, project.root / "tree")

    monkeypatch.setattr(programs, "_compile", compile)
    monkeypatch.setattr(source, "unpatched_tree", lambda *_: project.root / "tree")
    monkeypatch.setattr(source, "patched_tree", lambda *_: project.root / "tree-patched")
    return made


def target(project: Project, patched: bool = True, **settings: str) -> library.Target:
    flags = toolchain.flags("cpu", settings)
    return library.Target(project, "cpu", patched, project.pin().commit, flags, Path(sys.prefix))


def call(project: Project, *arguments: str, patched: bool = True) -> str:
    said = io.StringIO()
    with Lock(project.build / ".lock", Report(said)):
        build.build(project, build.parse(list(arguments)), "cpu", patched, Report(said))
    return said.getvalue()


def test_a_plain_build_makes_no_programs(project, compiled):
    assert "programs" not in call(project)
    assert compiled == [] and not (project.build / "cpu/bin").exists()


def test_programs_lie_beside_the_library_whose_key_knows_nothing_of_them(project, compiled):
    key = target(project).key
    said = call(project, "--tools")
    folder = project.build / "cpu/bin"
    assert (folder / "llama-cli").read_text() == "llama-cli of tree-patched"
    assert (folder / "LICENSE.llama.cpp").is_file() and target(project).key == key
    assert "llama-imatrix: this llama.cpp has no program of that name" in said
    assert "build/cpu/bin: llama-cli, llama-server" in said and "build/cpu/bin/llama-cli -m MODEL.gguf -p" in said


def test_the_rpath_leads_from_the_programs_to_the_library():
    assert programs.SETTINGS["CMAKE_INSTALL_RPATH"] in ("$ORIGIN/../lib", "@loader_path/../lib")


def test_current_programs_are_not_compiled_again(project, compiled):
    call(project, "--tools")
    call(project, "--tools")
    assert compiled == ["cpu"]


def test_the_unpatched_library_takes_the_same_programs(project, compiled):
    call(project, "--tools")
    said = call(project, "--unpatched", "--tools", patched=False)
    assert compiled == ["cpu"] and "the same as in" in said
    assert (project.build / "unpatched-cpu/bin/llama-cli").read_text() == "llama-cli of tree-patched"


def test_a_patch_of_what_programs_are_compiled_from_makes_them_differ(project):
    before = programs.Programs(target(project)).key
    assert before == programs.Programs(target(project, patched=False)).key
    path = project.patches / PATCHES[0]
    path.write_text(path.read_text().replace("src/llama.cpp", "common/arg.cpp"))
    assert programs.Programs(target(project)).key != before
    assert programs.Programs(target(project, patched=False)).key == before


def test_the_cache_serves_another_clone(project, compiled, made, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_INTERP_CACHE", str(tmp_path / "cache"))
    call(project, "--tools")
    shutil.rmtree(project.build / "cpu/bin")
    assert "taken from" in call(project, "--tools")
    assert compiled == ["cpu"] and programs.Programs(target(project)).state() == "current"


def test_programs_are_replaced_as_a_whole_or_not_at_all(project, compiled, monkeypatch):
    call(project, "--tools")
    with monkeypatch.context() as patch:
        patch.setattr(programs, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            programs._publish(programs.Programs(target(project)), ["llama-cli"], project.root / "tree")
    assert (project.build / "cpu/bin/llama-server").is_file()
    build.clean_up(project, everything=False)
    assert not list((project.build / "cpu").glob(".*.tmp"))


def test_programs_of_other_sources_are_told_of(project, compiled):
    call(project, "--tools")
    manifest = project.build / "cpu/bin/manifest.json"
    manifest.write_text(manifest.read_text().replace(read_json(manifest)["key"], "another"))
    assert "made from other sources; make it anew with --tools" in call(project)


def test_backends_that_are_loaded_at_run_time_are_found_beside_the_programs(project):
    one = target(project, GGML_BACKEND_DL="ON")
    upstream.write(one.lib, {"libggml-cpu-haswell.so": "backend", "libggml-base.so": "no backend"})
    upstream.write(one.folder, {"programs/cmake/bin/llama-cli": "program"})
    programs._publish(programs.Programs(one), ["llama-cli"], project.root / "tree")
    link = one.folder / "bin/libggml-cpu-haswell.so"
    assert os.readlink(link) == "../lib/libggml-cpu-haswell.so" and link.read_text() == "backend"
    assert not (one.folder / "bin/libggml-base.so").exists()


def test_a_llama_cpp_without_any_of_the_programs_is_refused(project, monkeypatch):
    one = programs.Programs(target(project))

    def configure(command, log):
        upstream.write(one.folder, {"cmake/programs.txt": "", "cmake/build.ninja": ""})
        return ()

    monkeypatch.setattr(library, "lines", configure)
    one.folder.mkdir(parents=True)
    with pytest.raises(BuildError, match="has none of llama-cli, .* change PROGRAMS in"):
        programs._configure(one, project.root / "tree")


# // what the benchmark makes of their output


def test_figures_that_differ_in_one_chunk_are_not_equal():
    ours = {"figure": "9.8 +/- 0.3", "chunks": ["10.1", "9.8"]}
    speeds = {"patched": [{"prefill": 99.0, "generation": 50.0}] * 2, "unpatched": [{"prefill": 100.0, "generation": 40.0}] * 2}
    rows = benchmark.summarise({"patched": ours, "unpatched": dict(ours)}, speeds)
    assert rows[0]["equal"] and rows[0]["case"] == "2 chunks of 512 tokens"
    assert rows[1]["ratio"] == pytest.approx(0.99) and rows[2]["ratio"] == pytest.approx(1.25)
    other = benchmark.summarise({"patched": ours, "unpatched": ours | {"chunks": ["10.2", "9.8"]}}, speeds)
    assert not other[0]["equal"] and benchmark.tables(other)[0].lines[0][-1] == "no"


def test_the_text_of_the_perplexity_comes_from_the_pages():
    assert len(benchmark.text()) == benchmark.N_TEXT


def test_doctor_knows_the_programs_and_whether_they_are_current(project, compiled):
    assert "programs " not in show(examine(project, "cpu", {}))
    call(project, "--tools")
    assert f"programs   of cpu: current, {project.build / 'cpu/bin'}" in show(examine(project, "cpu", {}))
    (project.build / "cpu/bin/manifest.json").write_text('{"key": "another"}')
    assert examine(project, "cpu", {})["libraries"]["cpu"]["programs"] == "stale"
