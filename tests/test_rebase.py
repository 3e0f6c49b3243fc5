"""ci/rebase.py on a llama.cpp of a few files: what each patch becomes, what the report says, what --write writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import git_server
import upstream
from ci import rebase, repo
from ci.project import ROOT, BuildError, Project
from ci.rebasing import changes, checks, layouts, markdown, table
from ci.rebasing.upstream import open_store
from ci.series import __main__ as series_command
from ci.steps import Report

PATCHES = ("first-hook.patch", "second-hook.patch")

MORE = {
    "include/llama.h": "struct llama_some_params {\n    int one;\n};\n",
    "src/models/alpha.cpp": 'cb(cur, "l_out", il);\ncb(f(x, y), is ? "a" : "b", il);\n',
    "src/models/beta.cpp": 'cb(cur, "beta_only", il);\n',
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clone whose second commit is pinned, and a project, committed, with a series of two patches."""
    folder = tmp_path_factory.mktemp("made")
    clone = upstream.make_clone(folder / "clone")
    upstream.write(clone, MORE)
    repo.commit_all(clone, "more")
    project = upstream.make_project(folder / "project", clone, PATCHES)
    upstream.write(project.root, {".gitignore": "/out/\n/build/\n__pycache__/\n"})
    repo.init(project.root)
    repo.commit_all(project.root, "project")
    # as a build leaves it: no archive need be downloaded for the pin
    shutil.copytree(clone, project.src / project.pin().commit[:8])
    return folder


def move(clone: Path, files: dict[str, str], message: str = "upstream moves") -> str:
    upstream.write(clone, files)
    repo.commit_all(clone, message)
    return repo.head(clone)


def run(project: Project, origin, *arguments: str, stage: str = "apply") -> tuple[int, dict]:
    """The exit code and the report, empty where there is none."""
    out = project.root / "out"
    given = ["--upstream", str(origin), "--out", str(out), "--stage", stage, *arguments]
    code = rebase.main(given, project)
    report = out / "report.json"
    return code, json.loads(report.read_text()) if report.is_file() else {}


def lines(**changed: str) -> dict[str, str]:
    """``src/llama.cpp`` with some lines changed: ``line_12="new"``."""
    text = upstream.FILES["src/llama.cpp"]
    for name, new in changed.items():
        text = text.replace(f"{name.replace('_', ' ')}\n", f"{new}\n")
    return {"src/llama.cpp": text}


# // what each patch becomes


def test_an_untouched_context_is_clean(project, clone):
    head = move(clone, {"src/other.cpp": "new\n"})
    code, report = run(project, clone)
    assert code == 0 and [p["result"] for p in report["patches"]] == ["clean", "clean"]
    assert report["new"] == {"commit": head, "tag": None, "kind": "git"}
    assert report["changes"]["commits"] == 1


def test_a_changed_context_is_merged(project, clone):
    move(clone, lines(line_11="line 11, upstream"))
    code, report = run(project, clone)
    assert code == 0 and [p["result"] for p in report["patches"]] == ["clean", "merged"]
    assert "upstream" in report["range_diff"]


def test_a_conflict_is_shown_and_can_be_resolved_with_the_three_commands(project, clone):
    head = move(clone, lines(line_3="line 3, upstream"), "rewrite line 3")
    code, report = run(project, clone)
    first, second = report["patches"]
    assert code == 1 and report["failed_stage"] == "apply"
    assert (first["result"], first["conflicts"], second["result"]) == ("conflict", ["src/llama.cpp"], "skipped")
    assert "line 3, upstream" in first["hunks"] and "line 3, hooked" in first["hunks"]
    (file,) = report["changes"]["patched_files"]
    assert [one.split(" ", 2)[2] for one in file["commits"]] == ["rewrite line 3"]
    shown, go_on, export = report["recover"]
    assert (project.root / "out/report.md").read_text().count(go_on) == 1

    def shell(command: str) -> str:
        env = repo.environment() | {"PYTHONPATH": str(ROOT)}
        # as a person has it: who commits is what the tree says
        env = {name: value for name, value in env.items() if not name.startswith("GIT_COMMITTER")}
        return subprocess.run(["bash", "-ec", command], cwd=project.root, env=env, text=True, check=True,
                              capture_output=True).stdout

    assert "<<<<<<<" in shell(shown)
    tree = project.root / "out/tree"
    upstream.write(tree, lines(line_3="line 3, upstream, hooked"))
    shell(go_on)
    # python -m ci.series is this project's own there; here the same call, on the project of the test
    assert export.startswith("python -m ci.series export --tree out/tree --move-pin")
    series_command.main(["export", "--tree", str(tree), "--move-pin"], project)
    assert project.pin().commit == head
    assert run(project, clone)[1]["patches"] == [
        {"name": name, "result": "clean", "files": ["src/llama.cpp"], "conflicts": [], "hunks": ""} for name in PATCHES
    ]


def test_a_patched_file_that_vanished_is_a_conflict(project, clone):
    upstream.write(clone, {"src/llama.cpp": ""})
    repo.git(clone, "mv", "src/other.cpp", "src/elsewhere.cpp")
    head = move(clone, {})
    code, report = run(project, clone)
    assert code == 1 and report["new"]["commit"] == head and report["patches"][0]["result"] == "conflict"


def test_the_commit_that_broke_the_series_is_found(project, clone):
    for i in range(3):
        move(clone, {"src/other.cpp": f"{i}\n"})
    guilty = move(clone, lines(line_13="line 13, upstream"), "rewrite line 13")
    for i in range(3, 6):
        move(clone, {"src/other.cpp": f"{i}\n"})
    code, report = run(project, clone, "--find-break")
    assert code == 1 and report["break"]["commit"] == guilty and report["break"]["subject"].endswith("rewrite line 13")
    assert report["break"]["stage"] == "apply" and 2 <= len(report["break"]["tried"]) <= 3
    # the head's half-merged tree is kept all the same
    assert "<<<<<<<" in (project.root / "out/tree/src/llama.cpp").read_text()
    assert guilty in (project.root / "out/report.md").read_text()


def test_a_break_in_later_stages_is_searched_with_those_only(project, clone, monkeypatch):
    for i in range(4):
        move(clone, {"src/other.cpp": f"{i}\n"})
    commits = repo.git(clone, "rev-list", "--reverse", f"{project.pin().commit}..HEAD").split()

    def build(_moved, store, *_):
        if (store.tree / "src/other.cpp").read_text() >= "2":
            raise BuildError("does not compile")
        return store.tree, "pretended"

    monkeypatch.setattr(checks, "build", build)
    monkeypatch.setattr(checks, "abi", lambda *_: pytest.fail("abi was run"))
    code, report = run(project, clone, "--find-break", stage="apply,build,abi")
    assert code == 1 and report["break"]["stage"] == "build" and report["break"]["commit"] == commits[2]


def test_without_history_no_commit_is_blamed(project, clone, tmp_path):
    move(clone, lines(line_3="line 3, upstream"))
    folder = shutil.copytree(clone, tmp_path / "plain", ignore=shutil.ignore_patterns(".git"))
    found = run(project, folder, "--find-break")[1]["break"]
    assert found["commit"] is None and "without history" in found["unknown"]


# // what upstream may be


def test_a_tag_is_found_by_its_name_and_named_in_the_report(project, clone):
    repo.git(clone, "tag", "b77")
    code, report = run(project, clone.as_uri(), "--ref", "b77")
    assert code == 0 and report["new"]["tag"] == "b77"


def test_an_archive_that_holds_the_repository_is_taken(project, clone, tmp_path):
    archive = upstream.make_sdist(tmp_path / "sdist.tar.gz", clone)
    code, report = run(project, archive, "--ref", repo.head(clone)[:9])
    assert code == 0 and report["new"]["kind"] == "git" and report["changes"]["commits"] == 0


def test_a_plain_tree_deep_in_an_archive_is_taken(project, tmp_path):
    files = {f"thirdparty/llama.cpp/{name}": text for name, text in (upstream.FILES | MORE).items()}
    files["thirdparty/llama.cpp/src/other.cpp"] = "new\n"
    archive = upstream.make_plain_archive(tmp_path / "plain.tar.gz", files | {"src/llama.cpp": "no tree\n"})
    code, report = run(project, archive)
    assert code == 0 and report["new"]["kind"] == "plain"
    assert report["changes"]["commits"] is None and "without history" in report["changes"]["commits_unknown"]


def test_the_same_plain_tree_is_the_same_commit(project, clone, tmp_path):
    folder = shutil.copytree(clone, tmp_path / "plain", ignore=shutil.ignore_patterns(".git"))
    commits = [run(project, folder)[1]["new"]["commit"] for _ in range(2)]
    assert commits[0] == commits[1]


def test_a_shallow_history_does_not_invent_a_count(project, clone, tmp_path):
    move(clone, {"src/other.cpp": "new\n"})
    shallow = tmp_path / "shallow"
    subprocess.run(["git", "clone", "-q", "--depth=1", clone.as_uri(), str(shallow)], check=True)
    code, report = run(project, shallow)
    assert code == 0 and report["changes"]["commits"] is None and "shallow" in report["changes"]["commits_unknown"]


def test_from_a_host_the_history_comes_but_not_every_file_of_it(project, clone, tmp_path):
    move(clone, {"src/other.cpp": "between\n"})
    unseen = repo.git(clone, "rev-parse", "HEAD:src/other.cpp").strip()
    head = move(clone, lines(line_11="line 11, upstream") | {"src/other.cpp": "new\n"})
    with git_server.serve(tmp_path) as (url, requests):
        code, report = run(project, f"{url}/clone")
        assert code == 0 and report["new"] == {"commit": head, "tag": None, "kind": "git"}
        assert [p["result"] for p in report["patches"]] == ["clean", "merged"]
        assert report["changes"]["commits"] == 2 and len(report["changes"]["patched_files"][0]["commits"]) == 1
        # contents are asked for by the checkout, all together
        assert len(requests) < 25
        tree = open_store(project, project.pin(), f"{url}/clone", None, tmp_path / "scratch", Report()).tree
    objects = repo.git(tree, "cat-file", "--batch-all-objects", "--batch-check")
    assert head in objects and unseen not in objects


def test_a_conflict_from_a_host_can_be_resolved_without_it(project, clone, tmp_path):
    move(clone, lines(line_3="line 3, upstream"))
    with git_server.serve(tmp_path) as (url, _):
        code, report = run(project, f"{url}/clone")
    assert code == 1 and "line 3, upstream" in report["patches"][0]["hunks"]
    tree = project.root / "out/tree"
    upstream.write(tree, lines(line_3="line 3, upstream, hooked"))
    repo.git(tree, "add", "-A")
    repo.git(tree, "am", "--continue")
    series_command.main(["export", "--tree", str(tree)], project)


# // bad input: one line, exit code 2, no report


def refused(capsys, code: int, report: dict) -> str:
    error = capsys.readouterr().err
    assert code == 2 and report == {} and error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("url", ["file:///nowhere/llama.cpp", "https://127.0.0.1:1/llama.cpp"])
def test_a_url_that_does_not_answer(project, capsys, url):
    assert "does not answer" in refused(capsys, *run(project, url))


def test_a_path_that_is_not_there(project, capsys):
    assert "no such file or folder" in refused(capsys, *run(project, "/nowhere/at/all"))


def test_a_repository_that_is_not_llama_cpp(project, capsys, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    repo.init(other)
    move(other, {"README.md": "something else\n"})
    assert "is not llama.cpp" in refused(capsys, *run(project, other))


def test_a_folder_that_holds_nothing(project, capsys, tmp_path):
    upstream.write(tmp_path, {"empty/x.txt": "nothing"})
    assert "neither a git repository nor" in refused(capsys, *run(project, tmp_path / "empty"))


def test_a_ref_that_does_not_exist(project, clone, capsys):
    assert "no branch, tag or commit 'nonsense'" in refused(capsys, *run(project, clone, "--ref", "nonsense"))


def test_a_dirty_project_is_refused_before_anything_is_done(project, clone, capsys):
    upstream.write(project.root, {"stray.txt": "mine"})
    assert "stray.txt" in refused(capsys, *run(project, clone, "--write"))
    assert not (project.root / "out").exists()


@pytest.mark.parametrize("bad", [["--stage", "nonsense"], ["--stage", "build"], ["--jobs", "0"], ["--bench", "nowhere"], []])
def test_a_bad_command_line(bad, clone):
    with pytest.raises(SystemExit) as error:
        rebase.main([*bad] if not bad else ["--upstream", str(clone), *bad])
    assert error.value.code == 2


def test_an_old_report_is_not_taken_for_this_run(project, clone, capsys):
    assert run(project, clone)[0] == 0
    refused(capsys, *run(project, clone, "--ref", "nonsense"))


# // what is written


def test_a_success_moves_the_pin_and_the_series(project, clone):
    head = move(clone, lines(line_11="line 11, upstream"))
    before = (project.patches / "upstream.toml").read_text()
    old = project.pin().commit
    code, report = run(project, clone, "--write")
    assert code == 0
    # the first one's index line names the file as it is upstream now
    assert report["written"] == [*(f"patches/{name}" for name in PATCHES), "patches/upstream.toml"]
    assert (project.patches / "upstream.toml").read_text() == (
        before.replace(old, head).replace('tag = "b1"', f'tag = "untagged-{head[:9]}"')
    )
    assert len(repo.changes(project.root)) == 3
    repo.git(project.root, "-c", "user.name=x", "-c", "user.email=x@localhost", "commit", "-qam", "moved")
    # byte-stable: the same again changes nothing
    code, report = run(project, clone, "--write")
    assert code == 0 and [p["result"] for p in report["patches"]] == ["clean", "clean"]
    assert report["written"] == [] and repo.changes(project.root) == []


def test_a_failure_writes_nothing(project, clone):
    move(clone, lines(line_3="line 3, upstream"))
    code, report = run(project, clone, "--write")
    assert code == 1 and report["written"] == [] and repo.changes(project.root) == []


def test_without_write_the_project_is_untouched(project, clone):
    move(clone, lines(line_11="line 11, upstream"))
    assert run(project, clone)[0] == 0 and repo.changes(project.root) == []


#: runs rebase, and kills itself at the n-th event of those that start a process or change a file
KILLED_CHILD = """
import os, signal, sys
from pathlib import Path
from ci import rebase
from ci.project import Project
left = int(sys.argv[1])
def count(event, args):
    global left
    if event in ("subprocess.Popen", "os.rename", "os.mkdir") or event == "open" and args[1] in ("w", "wb"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
code = rebase.main(sys.argv[3:], Project(Path(sys.argv[2])))
print("events", -left)
sys.exit(code)
"""


def test_killed_at_any_moment_the_project_is_as_it_was_and_the_next_run_cleans_up(project, clone):
    move(clone, lines(line_11="line 11, upstream"))
    out, written = project.root / "out", {f"patches/{name}" for name in (*PATCHES, "upstream.toml")}

    def child(events: int, *arguments: str) -> subprocess.CompletedProcess:
        given = ["--upstream", str(clone), "--out", str(out), "--stage", "apply", *arguments]
        return subprocess.run([sys.executable, "-c", KILLED_CHILD, str(events), str(project.root), *given],
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)

    done = child(0)
    events = int(done.stdout.split()[-1])
    assert done.returncode == 0 and events > 50
    # a run that writes has more events at its end than the one that was counted: each of those is tried
    for event in [*range(1, events, events // 6), *range(events, events + 20)]:
        killed = child(event, "--write")
        changed = {line[3:] for line in repo.changes(project.root)}
        if killed.returncode == 0:
            assert changed == written
            break
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert changed <= written
        assert not changed or event > events, "changed before every stage had passed"
        repo.git(project.root, "checkout", "-q", "--", "patches")
        assert repo.changes(project.root) == []
    else:
        pytest.fail("no run came to its end")
    assert run(project, clone)[0] == 0
    assert not list(out.glob(".work.*"))


def test_the_new_library_is_timed_beside_the_pins_where_that_is_there(project, clone, monkeypatch, tmp_path):
    from ci.rebasing import speed

    timed = []

    def compare(_project, old, new, _report):
        timed.append((old, new))
        return [{"case": "prefill", "seconds": 0.5, "ratio_low": 0.9, "ratio": 1.01, "ratio_high": 1.1}]

    counts = {"passed": 1, "failed": 0, "skipped": 0, "failures": [], "selection": [], "exit_code": 0}
    monkeypatch.setattr(checks, "build", lambda *_: (tmp_path, "pretended"))
    monkeypatch.setattr(checks, "abi", lambda *_: ({"fields": 1, "symbols": 1, "differences": [], "missing_symbols": [],
                                                    "upstream_structs": [], "upstream_structs_unknown": None}, None))
    monkeypatch.setattr(checks, "test", lambda *_: (counts, None))
    monkeypatch.setattr(speed, "compare", compare)

    def bench(*arguments: str) -> tuple[int, dict, str]:
        code, report = run(project, clone, *arguments, stage="apply,build,abi,test")
        return code, report, next(stage["result"] for stage in report["stages"] if stage["name"] == "bench")

    code, report, result = bench()
    assert (code, report["bench"], report["build_ratio"], result, timed) == (0, None, None, "skipped", [])
    pinned = checks.target(project, project.pin().commit, "cpu")
    for lib, seconds in ((pinned.lib, 100.0), (tmp_path, 120.0)):
        lib.mkdir(parents=True, exist_ok=True)
        (lib / "manifest.json").write_text(json.dumps({"key": pinned.key, "compile_seconds": seconds}))
    code, report, result = bench()
    assert (code, report["build_ratio"], result, timed) == (0, 1.2, "passed", [(pinned.lib, tmp_path)])
    text = (project.root / "out/report.md").read_text()
    assert "1.200 of the pin's time to compile" in text and "| prefill | 0.500 | 1.010 |" in text
    assert bench("--bench", "none")[2] == "skipped"
    monkeypatch.setattr(speed, "compare", lambda *_: (_ for _ in ()).throw(BuildError("no model")))
    # a figure that cannot be had fails a run only if it was asked for
    assert bench()[::2] == (0, "skipped") and bench("--bench", str(pinned.lib))[::2] == (1, "failed")


# // the stages and the report


def test_stages_after_a_failed_one_are_skipped_not_passed(project, clone, monkeypatch):
    monkeypatch.setattr(checks, "build", lambda *_: (_ for _ in ()).throw(BuildError("it does not compile")))
    code, report = run(project, clone, stage="apply,build,abi,test")
    results = {stage["name"]: stage["result"] for stage in report["stages"]}
    assert code == 1 and report["failed_stage"] == "build"
    assert results == {"apply": "passed", "build": "failed", "abi": "skipped", "test": "skipped", "report": "passed"}
    assert "it does not compile" in (project.root / "out/report.md").read_text()


def test_a_layout_that_differs_fails_and_is_named(project, clone, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "build", lambda *_: (tmp_path, "pretended"))
    differs = "llama_interp_batch.pos: the package has 16, the library 8"
    found = {"fields": 2, "symbols": 1, "differences": [differs], "missing_symbols": ["llama_interp_scan"]}
    monkeypatch.setattr(checks, "run", lambda *_, **__: json.dumps(found))
    code, report = run(project, clone, stage="apply,build,abi")
    assert code == 1 and report["failed_stage"] == "abi"
    text = (project.root / "out/report.md").read_text()
    assert "llama_interp_batch.pos" in text and "llama_interp_scan" in text


def test_failing_tests_are_counted_and_named(project, tmp_path):
    upstream.write(project.root, {
        "tests/test_some.py": "import pytest\ndef test_good(): pass\ndef test_bad(): assert 0\n"
                              "def test_skip(): pytest.skip('no')\n",
    })
    found, wrong = checks.test(project, tmp_path, ["-m", ""], Report())
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == ["tests.test_some::test_bad"] and "test_bad" in wrong


def test_an_empty_selection_is_no_success(project, tmp_path):
    upstream.write(project.root, {"tests/test_some.py": "def test_good(): pass\n"})
    assert checks.test(project, tmp_path, ["-k", "nothing_has_this_name"], Report())[1]


def test_architectures_and_names_that_came_and_went(project, clone):
    repo.git(clone, "rm", "-q", "src/models/beta.cpp")
    move(clone, {"src/models/gamma.cpp": 'cb(build(a, "x"), "gamma_out", il);\ncb(ggml_add(a, b), "other", -1);\n'})
    found = run(project, clone)[1]["changes"]
    assert found["architectures"] == {"added": ["gamma"], "removed": ["beta"]}
    assert [one["name"] for one in found["tensor_names"]["vanished"]] == ["beta_only"]
    assert {"name": "other", "files": ["models/gamma.cpp"]} in found["tensor_names"]["new"]


def test_both_names_of_a_choice_are_seen(clone):
    assert changes.tensor_names(clone, "HEAD").keys() == {"l_out", "a", "b", "beta_only"}


def test_structs_and_their_fields_are_read():
    header = """
    typedef struct llama_one {
        int32_t a; // not b;
        float * c[4];
        bool (*callback)(void * data, int n);
        struct { int inner; } nested;
    } llama_one;
    struct llama_two {
        enum llama_kind kind;
    };
    struct llama_opaque;
    """
    assert layouts.structs(header) == {"llama_one": ["a", "c", "callback"], "llama_two": ["kind"]}


def test_a_struct_that_grew_is_reported_field_by_field(project, clone):
    move(clone, {"include/llama.h": "struct llama_some_params {\n    int zero;\n    int one;\n};\n"})
    from ci.rebasing.upstream import Head, Store

    found, why = layouts.compare(Store(clone, "HEAD~1", Head("git", "HEAD", None)))
    assert why is None and found == [
        {"name": "llama_some_params.one", "old": 0, "new": 4},
        {"name": "llama_some_params.size", "old": 4, "new": 8},
        {"name": "llama_some_params.zero", "old": None, "new": 0},
    ]


def test_runs_side_by_side_are_written_between_the_marks_of_the_page(project, clone, tmp_path, monkeypatch, capsys):
    good = run(project, clone)[1]
    move(clone, lines(line_3="line 3, upstream"))
    bad = run(project, clone, "--ref", "HEAD")[1]
    files = [tmp_path / "good.json", tmp_path / "bad.json"]
    for file, report in zip(files, (good, bad), strict=True):
        file.write_text(json.dumps(report))
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- runs -->\nold\n<!-- end of runs -->\n\nafter\n")
    monkeypatch.setattr(table, "PAGE", page)
    capsys.readouterr()
    table.main([*map(str, files), "--write"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "|  | clone | clone, HEAD |" and "| first-hook | clean | conflict |" in rows
    assert page.read_text() == "before\n\n<!-- runs -->\n" + "\n".join(rows) + "\n<!-- end of runs -->\n\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit):
        table.main([str(files[0]), "--write"])


def test_every_field_of_the_report_is_documented(project, clone):
    report, page = run(project, clone)[1], (ROOT / "docs/rebase.md").read_text(encoding="utf-8")
    assert [name for name in report if f"| `{name}`" not in page] == []
    assert markdown.render(report).startswith("# Rebase passed\n")
