"""build.py: what is skipped, what is made anew, what survives an interruption, what it says when it cannot go on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

import build
import upstream
from ci import environment, library, repo, source, steps, toolchain
from ci.doctor import examine, show
from ci.project import BuildError, Project
from ci.steps import Lock, Report

PATCHES = ("first-hook.patch", "second-hook.patch")


@pytest.fixture
def origin(project, clone):
    return upstream.origin(project, clone)


def target(project: Project, patched: bool = True, **settings: str) -> library.Target:
    flags = toolchain.flags("cpu", settings)
    return library.Target(project, "cpu", patched, project.pin().commit, flags, Path(sys.prefix))


def pretend_built(one: library.Target, content: str = "library") -> None:
    """Publishes a library that no compiler made."""
    upstream.write(one.folder, {"cmake/bin/libllama.so": content})
    upstream.write(one.project.root / "tree", {"LICENSE": "a licence\n"})
    library._publish(one, one.project.root / "tree")


def call(project: Project, report: Report, *arguments: str, patched: bool = True) -> str:
    with Lock(project.build / ".lock", report):
        return build.build(project, build.parse(list(arguments)), "cpu", patched, report)


# // what is skipped: the content key


def test_the_key_does_not_depend_on_the_folder(made, project, monkeypatch):
    assert target(project).key == target(Project(made / "project")).key


@pytest.mark.parametrize("path", ["patches/series", "patches/first-hook.patch", "patches/native/code.cpp"])
def test_the_key_follows_the_content(project, path):
    before = target(project).key
    with (project.root / path).open("a") as file:
        file.write("# changed\n" if path != "patches/series" else "first-hook.patch\n")
    assert target(project).key != before


def test_the_key_follows_settings_and_compilers(project, monkeypatch):
    before = target(project).key
    assert target(project, GGML_NATIVE="OFF").key != before
    monkeypatch.setenv("CXXFLAGS", "-g")
    assert target(project).key != before


def test_the_unpatched_library_depends_on_nothing_that_is_only_in_the_patched_one(project):
    before = target(project, patched=False).key
    upstream.write(project.patches, {"series": "", "native/code.cpp": "// changed\n"})
    assert target(project, patched=False).key == before
    upstream.write(project.patches, {"native/build.cmake": "# changed\n"})
    assert target(project, patched=False).key != before


def test_a_current_library_is_not_compiled_again(project, monkeypatch):
    pretend_built(target(project))
    monkeypatch.setattr(library, "compile", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(source, "unpatched_tree", lambda *_: pytest.fail("looked for sources"))
    assert call(project, Report()).startswith("cpu: ")
    assert steps.read_json(project.build / "active.json") == {"backend": "cpu", "lib": "cpu/lib"}


def test_an_unpatched_library_is_never_the_active_one(project):
    pretend_built(target(project, patched=False))
    assert call(project, Report(), patched=False).startswith("unpatched-cpu: ")
    assert not (project.build / "active.json").exists()


def test_a_stale_library_is_compiled_again(project, origin, monkeypatch):
    pretend_built(target(project))
    upstream.write(project.patches, {"native/code.cpp": "// changed\n"})
    compiled = []
    monkeypatch.setattr(library, "compile", lambda one, tree, *_: compiled.append(tree.name))
    call(project, Report(), "--source", str(origin.path))
    assert compiled == [f"{origin.name}-patched"]


def test_a_second_clone_takes_the_library_from_the_shared_cache(made, project, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_INTERP_CACHE", str(tmp_path / "cache"))
    pretend_built(target(project))
    call(project, Report())
    second = Project(shutil.copytree(made / "project", tmp_path / "second"))
    monkeypatch.setattr(library, "compile", lambda *_: pytest.fail("compiled"))
    call(second, Report())
    assert (second.build / "cpu/lib/libllama.so").read_text() == "library"
    assert target(second).state() == "current"


def test_clean_compiles_although_the_cache_has_it(project, origin, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_INTERP_CACHE", str(tmp_path / "cache"))
    pretend_built(target(project))
    call(project, Report())
    compiled = []
    build.clean_up(project, everything=True)
    monkeypatch.setattr(library, "compile", lambda one, *_: compiled.append(one.name) or pretend_built(one))
    call(project, Report(), "--clean", "--source", str(origin.path))
    assert compiled == ["cpu"]


# // what survives an interruption


def test_an_interrupted_extraction_leaves_no_tree(project, origin, monkeypatch):
    def killed(*_):
        upstream.write(project.src, {f".{origin.name}.1-0.tmp/src/llama.cpp": "half"})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(source._FETCH, "clone", killed)
        with pytest.raises(KeyboardInterrupt):
            source.unpatched_tree(project, project.pin(), origin, Report())
    assert not (project.src / origin.name).exists()
    build.clean_up(project, everything=False)
    tree = source.unpatched_tree(project, project.pin(), origin, Report())
    assert [path.name for path in project.src.iterdir()] == [origin.name]
    assert (tree / "src/llama.cpp").read_text() == upstream.FILES["src/llama.cpp"]


def test_a_half_updated_patched_tree_is_made_whole(project, origin):
    unpatched = source.unpatched_tree(project, project.pin(), origin, Report())
    tree = source.patched_tree(project, origin, unpatched, Report())
    (tree / ".git/llama-interp.json").unlink()
    upstream.write(tree, {"src/llama.cpp": "half", "src/stray.cpp": "half", ".git/index.lock": ""})
    source.patched_tree(project, origin, unpatched, Report())
    assert "line 3, hooked\nline 4\n" in (tree / "src/llama.cpp").read_text()
    assert not (tree / "src/stray.cpp").exists()


def test_a_longer_series_leaves_untouched_files_alone(project, origin):
    (project.patches / "series").write_text("first-hook.patch\n")
    unpatched = source.unpatched_tree(project, project.pin(), origin, Report())
    tree = source.patched_tree(project, origin, unpatched, Report())
    os.utime(tree / "src/other.cpp", (1, 1))
    (project.patches / "series").write_text("".join(f"{name}\n" for name in PATCHES))
    assert source.patched_tree(project, origin, unpatched, Report()) == tree
    assert "line 13, hooked\n" in (tree / "src/llama.cpp").read_text()
    assert (tree / "src/other.cpp").stat().st_mtime == 1


def test_work_in_a_built_tree_is_not_thrown_away(project, origin):
    unpatched = source.unpatched_tree(project, project.pin(), origin, Report())
    tree = source.patched_tree(project, origin, unpatched, Report())
    upstream.write(tree, {"src/llama.cpp": "mine\n"})
    with pytest.raises(BuildError, match="changed by hand"):
        source.patched_tree(project, origin, unpatched, Report())


def test_a_library_is_replaced_as_a_whole_or_not_at_all(project, monkeypatch):
    one = target(project)
    pretend_built(one, "old")
    with monkeypatch.context() as patch:
        patch.setattr(library, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretend_built(one, "new")
    assert (one.lib / "libllama.so").read_text() == "old"
    build.clean_up(project, everything=False)
    pretend_built(one, "new")
    assert sorted(path.name for path in one.folder.iterdir()) == ["cmake", "lib"]
    assert (one.lib / "libllama.so").read_text() == "new"


def test_an_interrupted_environment_is_not_taken_for_a_whole_one(project, monkeypatch):
    monkeypatch.setattr(environment, "active", lambda: False)
    upstream.write(project.root, {".venv/bin/python": ""})
    assert environment.ready(project)
    upstream.write(project.root, {".venv.creating": ""})
    assert not environment.ready(project)


def test_an_interrupted_install_is_repaired(project, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(environment, "run", lambda command, **_: commands.append(command))
    environment._pip(project, tmp_path, ["numpy"], "cannot")
    upstream.write(tmp_path, {"llama-interp.busy": ""})
    environment._pip(project, tmp_path, ["numpy"], "cannot")
    environment._pip(project, tmp_path, ["numpy"], "cannot")
    assert ["--force-reinstall" in command for command in commands] == [False, True, False]


def test_a_second_call_waits_for_the_first_and_says_so(tmp_path):
    said = io.StringIO()
    first = Lock(tmp_path / ".lock", Report()).__enter__()
    threading.Timer(0.3, first.__exit__).start()
    started = time.monotonic()
    with Lock(tmp_path / ".lock", Report(said)):
        assert time.monotonic() - started > 0.2
    assert said.getvalue().startswith("waiting")


def test_progress_counts_the_build_and_neither_cmake_before_it_nor_a_tool_s_build_inside(project, monkeypatch):
    steps = [f"[{n}/40] Building CXX object a{n}.o" for n in range(1, 41)]
    tool = ["[1/2] Building a generator of shaders", "[2/2] Linking it"]
    monkeypatch.setattr(environment, "tool", lambda *_: Path("ninja"))
    target(project).folder.mkdir(parents=True)
    for n in (0, 2, 7):
        # several steps may end before the first is told
        said = ["[1/2] Re-running CMake...", *(steps[:n] or steps[1:2]), *tool, *steps[max(n, 2) :]]
        monkeypatch.setattr(library, "lines", lambda *_, said=said: said)
        out = io.StringIO()
        with Report(out).step("compile") as step:
            library.run_ninja(target(project), ("llama",), 1, step)
        told = [line.split()[1].rstrip(",") for line in out.getvalue().splitlines()[:-1]]
        assert told == ["1/2", *(f"{n}/40" for n in range(4, 41, 4))]


# // sources


def test_an_archive_that_holds_the_repository_is_verified(project, clone, tmp_path):
    archive = upstream.make_sdist(tmp_path / "any-name.tar.gz", clone)
    found = source.resolve(project.pin(), str(archive))
    tree = source.unpatched_tree(project, project.pin(), found, Report())
    assert found.verified and repo.head(tree) == project.pin().commit


def test_a_repository_without_the_pinned_commit_is_refused(project, clone, tmp_path):
    (project.patches / "upstream.toml").write_text(upstream.PIN.format(commit="1" * 40, sha="0" * 64))
    with pytest.raises(BuildError, match="Fetch it with: git -C"):
        source.resolve(project.pin(), str(clone))
    archive = upstream.make_sdist(tmp_path / "x.tar.gz", clone)
    with pytest.raises(BuildError, match="cannot fetch commit 111111111"):
        source.unpatched_tree(project, project.pin(), source.resolve(project.pin(), str(archive)), Report())


def test_the_repository_is_fetched_at_the_commit_alone(project, clone, monkeypatch):
    pytest.importorskip("git", reason="GitPython is installed by build.py")
    # a host of repositories lets any commit be asked for
    repo.git(clone, "config", "uploadpack.allowAnySHA1InWant", "true")
    pin = dataclasses.replace(project.pin(), repository=clone.as_uri())
    tree = source.unpatched_tree(project, pin, source.resolve(pin, "git"), Report())
    assert repo.head(tree) == pin.commit
    assert repo.git(tree, "rev-list", "--count", "HEAD").strip() == "1"


def test_a_pin_that_is_newer_than_the_archive_comes_from_the_repository(project, clone, tmp_path, monkeypatch):
    pytest.importorskip("git", reason="GitPython is installed by build.py")
    archive = upstream.make_sdist(tmp_path / "older.tar.gz", clone)
    monkeypatch.setattr(source, "download", lambda *_: archive)
    repo.git(clone, "config", "uploadpack.allowAnySHA1InWant", "true")
    upstream.write(clone, {"src/other.cpp": "newer\n"})
    repo.commit_all(clone, "newer")
    pin = dataclasses.replace(project.pin(), repository=clone.as_uri(), commit=repo.head(clone))
    tree = source.unpatched_tree(project, pin, source.resolve(pin, "sdist"), Report())
    assert repo.head(tree) == pin.commit and not list(project.src.glob("*unpacked*"))


def test_a_damaged_object_is_refused(project, clone, tmp_path):
    blob = repo.git(clone, "rev-parse", "HEAD:src/llama.cpp").strip()
    other = repo.git(clone, "rev-parse", "HEAD:LICENSE").strip()
    objects = clone / ".git/objects"
    steps.remove(objects / blob[:2] / blob[2:])
    shutil.copy(objects / other[:2] / other[2:], objects / blob[:2] / blob[2:])
    archive = upstream.make_sdist(tmp_path / "x.tar.gz", clone)
    with pytest.raises(BuildError):
        source.unpatched_tree(project, project.pin(), source.resolve(project.pin(), str(archive)), Report())
    assert not (project.src / project.pin().commit[:8]).exists()


def test_a_plain_archive_is_used_with_a_note(project, tmp_path):
    said = io.StringIO()
    archive = upstream.make_plain_archive(tmp_path / "llama.tar.gz")
    found = source.resolve(project.pin(), str(archive))
    tree = source.unpatched_tree(project, project.pin(), found, Report(said))
    assert tree.name.startswith("plain-") and "nothing verifies" in said.getvalue()
    patched = source.patched_tree(project, found, tree, Report(said))
    assert "line 13, hooked" in (patched / "src/llama.cpp").read_text()


def test_an_archive_cannot_write_outside_its_folder(project, tmp_path):
    archive = upstream.make_plain_archive(tmp_path / "bad.tar.gz", upstream.FILES | {"../../outside": "x"})
    with pytest.raises(BuildError, match="unsafe name"):
        source.unpatched_tree(project, project.pin(), source.resolve(project.pin(), str(archive)), Report())
    assert not (tmp_path / "outside").exists()


def test_a_source_that_is_nothing_is_refused(project, tmp_path):
    with pytest.raises(BuildError, match="no such file"):
        source.resolve(project.pin(), str(tmp_path / "absent"))
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(BuildError, match="can be read"):
        source.resolve(project.pin(), str(tmp_path / "text.tar.gz"))


def test_a_download_with_another_hash_is_not_used(project, monkeypatch):
    def serve(command, **_):
        upstream.write(Path(command[command.index("-d") + 1]), {"some-model.whl": "other content"})

    monkeypatch.setattr(source, "run", serve)
    with pytest.raises(BuildError, match="000000 is pinned"):
        source.download(project, project.pin().model)
    assert not list(project.downloads.glob("*/*.whl"))


# // what the machine has


@pytest.mark.parametrize(
    ("platform", "gpu", "nvcc", "backend"),
    [
        ("darwin", None, None, "metal"),
        ("linux", "GPU 0: some", "/bin/nvcc", "cuda"),
        ("linux", "GPU 0: some", None, "cpu"),
        ("linux", None, "/bin/nvcc", "cpu"),
        ("win32", None, None, "cpu"),
    ],
)
def test_the_backend_is_what_the_machine_has(monkeypatch, platform, gpu, nvcc, backend):
    monkeypatch.setattr(toolchain.sys, "platform", platform)
    monkeypatch.setattr(toolchain, "nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(toolchain, "nvcc", lambda: nvcc)
    choice = toolchain.choose(None)
    assert choice.backend == backend and choice.why
    assert toolchain.choose("vulkan") == toolchain.Choice("vulkan", "asked for")


def test_everything_that_is_missing_is_named_at_once(tmp_path, monkeypatch):
    upstream.write(tmp_path, {"apt-get": "#!/bin/sh\n"})
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(toolchain.sys, "platform", "linux")
    monkeypatch.setattr(toolchain, "_has_venv", lambda: False)
    text = toolchain.explain_missing(toolchain.missing("cpu", needs_venv=True))
    assert "\n" not in text
    assert text.endswith("apt-get install g++ git python3-venv")


def test_a_gpu_without_nvcc_is_no_surprise_but_one_word_away(monkeypatch):
    monkeypatch.setattr(toolchain.sys, "platform", "linux")
    monkeypatch.setattr(toolchain, "nvidia_gpu", lambda: "GPU 0: some")
    monkeypatch.setattr(toolchain, "nvcc", lambda: None)
    choice = toolchain.choose(None)
    assert choice.backend == "cpu" and "GPU 0: some" in choice.why and "--cuda alone" in choice.why


# // the command line


def test_what_follows_test_is_pytests_but_for_the_backend():
    args = build.parse(["--jobs", "3", "test", "-k", "foo", "--cuda", "-x", "tests/test_lens.py", "--lf"])
    assert (args.verb, args.jobs, args.backend) == ("test", 3, "cuda")
    assert args.pytest == ["-k", "foo", "-x", "tests/test_lens.py", "--lf"]


def test_settings_are_collected():
    args = build.parse(["-D", "A=1", "-DB:STRING=x=y", "--source", "test"])
    assert args.defines == {"A": "1", "B": "x=y"} and args.source == "test" and args.verb is None


@pytest.mark.parametrize("bad", [["--cpu", "--cuda"], ["-D", "A"], ["--jobs", "0"], ["nonsense"]])
def test_a_bad_command_line_is_refused(bad, capsys):
    with pytest.raises(SystemExit) as error:
        build.parse(bad)
    assert error.value.code == 2


def test_a_failure_is_a_message_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(toolchain, "missing", lambda *_, **__: ["git"])
    assert build.main(["--cpu"]) == 1
    assert capsys.readouterr().err.startswith("error: missing: git.")


# // doctor


def test_doctor_reports_everything_and_changes_nothing(project, monkeypatch):
    monkeypatch.setattr(environment, "active", lambda: False)
    before = sorted(project.root.rglob("*"))
    found = examine(project, "cpu", {})
    assert sorted(project.root.rglob("*")) == before
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {
        "ok", "platform", "python", "tools", "backends", "backend", "pin", "patches", "libraries", "active", "abi", "model",
        "next",
    }
    assert set(found["tools"]) == {"c++", "cc", "git", "ccache", "nvcc", "cmake", "ninja"}
    assert set(found["backends"]) == set(toolchain.BACKENDS)
    assert found["libraries"]["cpu"]["state"] == "missing"
    assert found["ok"] is False and found["next"][0].startswith("python3 build.py --cpu")
    assert "next" in show(found)


def test_doctor_tells_a_stale_library_from_a_current_one(project):
    pretend_built(target(project))
    assert examine(project, "cpu", {})["libraries"]["cpu"]["state"] == "current"
    upstream.write(project.patches, {"native/code.cpp": "// changed\n"})
    assert examine(project, "cpu", {})["libraries"]["cpu"]["state"] == "stale"
