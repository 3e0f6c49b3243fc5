"""ci/publish.py: a night opens one pull request or one issue, refreshes what is open, and leaves upstream alone.

``gh`` is a small program that keeps a repository's issues and pull requests in a file.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import upstream
from ci import publish, repo
from ci.github import GitHub
from ci.project import BuildError

FAKE = Path(__file__).parent / "fake_gh.py"

REPORT = "# Report\n\nAll patches are clean.\n"

LEGS = ["linux-gcc", "cuda"]


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A GitHub in a file, reached by a ``gh`` that is first in PATH; returns a function that reads the file."""
    file, folder = tmp_path / "state.json", tmp_path / "bin"
    file.write_text(json.dumps({"issues": [], "pulls": [], "runs": [], "started": [], "comments": [], "refused": []}))
    folder.mkdir()
    if sys.platform == "win32":
        (folder / "gh.bat").write_text(f'@"{sys.executable}" "{FAKE}" %*\n')
    else:
        (folder / "gh").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
        (folder / "gh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_GH_STATE", str(file))

    def read(**changes):
        data = json.loads(file.read_text()) | changes
        file.write_text(json.dumps(data))
        return data

    return read


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project in a repository of its own, with one that it pushes to."""
    pytest.importorskip("git", reason="GitPython is installed by build.py")
    folder = upstream.make(tmp_path_factory.mktemp("made"))
    project = upstream.Project(folder / "project")
    repo.init(project.root)
    repo.commit_all(project.root, "the project")
    return folder / "project"


@pytest.fixture
def project(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "project")
    repo.init(tmp_path / "remote")
    repo.git(root, "remote", "add", "origin", str(tmp_path / "remote"))
    return upstream.Project(root)


@pytest.fixture
def github(state):
    return GitHub("owner/name")


def legs(tmp_path: Path, **results: str) -> list[publish.Leg]:
    """Reads legs from a folder in which those with a result left a report."""
    for name, result in results.items():
        upstream.write(tmp_path / "night", {f"{name.replace('_', '-')}/status": f"{result}\n",
                                            f"{name.replace('_', '-')}/report.md": REPORT})
    return [publish.read_leg(tmp_path / "night", name) for name in LEGS]


def bump(project, text: str) -> None:
    path = project.patches / "upstream.toml"
    path.write_text(path.read_text() + f"# {text}\n")


# // nights that fail


def test_a_failed_night_opens_an_issue_and_the_next_one_refreshes_it(github, project, state, tmp_path):
    assert publish.night(github, project, legs(tmp_path, linux_gcc="success", cuda="failure"), "https://run/1") == 1
    assert publish.night(github, project, legs(tmp_path, linux_gcc="failure", cuda="failure"), "https://run/2") == 1
    (issue,) = state()["issues"]
    assert issue["title"] == "The nightly rebase fails: linux-gcc (failure), cuda (failure)"
    assert issue["labels"] == [publish.LABEL]
    assert "https://run/2" in issue["body"] and "https://run/1" not in issue["body"]
    assert "All patches are clean." in issue["body"]
    assert state()["pulls"] == [] and repo.git(tmp_path / "remote", "branch") == ""


def test_a_leg_that_brought_nothing_back_has_failed(github, project, state, tmp_path):
    assert publish.night(github, project, legs(tmp_path, linux_gcc="success"), None) == 1
    (issue,) = state()["issues"]
    assert issue["title"].endswith(": cuda (no result)") and "wrote no report" in issue["body"]


def test_the_title_names_the_stage_that_failed(github, project, state, tmp_path):
    upstream.write(tmp_path, {"night/linux-gcc/report.json": '{"version": 1, "failed_stage": "apply"}'})
    publish.night(github, project, legs(tmp_path, linux_gcc="failure", cuda="success"), None)
    assert state()["issues"][0]["title"] == "The nightly rebase fails: linux-gcc (failure: apply)"


def test_success_without_a_report_is_no_success(tmp_path):
    upstream.write(tmp_path, {"linux-gcc/status": "success\n"})
    assert not publish.read_leg(tmp_path, "linux-gcc").passed


def test_a_pull_request_with_the_label_is_not_taken_for_the_issue(github, project, state, tmp_path):
    state(issues=[{"number": 3, "state": "open", "labels": [publish.LABEL], "pull_request": {}}])
    publish.night(github, project, legs(tmp_path), None)
    assert [issue["number"] for issue in state()["issues"]] == [3, 4]


# // nights that pass


def test_a_good_night_opens_a_pull_request_and_the_next_one_refreshes_it(github, project, state, tmp_path):
    good = legs(tmp_path, linux_gcc="success", cuda="success")
    base = repo.head(project.root)
    for text in ("first night", "second night"):
        repo.git(project.root, "checkout", "-q", "-f", "--detach", base)
        bump(project, text)
        assert publish.night(github, project, good, None) == 0
    (pull,) = state()["pulls"]
    assert pull["head"] == publish.BRANCH and pull["base"] == "main"
    assert pull["title"] == f"patches: follow llama.cpp to b1 ({project.pin().commit[:9]})"
    assert state()["issues"] == []
    remote = tmp_path / "remote"
    assert repo.git(remote, "for-each-ref", "--format=%(refname)").split() == [f"refs/heads/{publish.BRANCH}"]
    assert repo.git(remote, "rev-list", "--count", publish.BRANCH).strip() == "2"
    assert "# second night" in repo.git(remote, "show", f"{publish.BRANCH}:patches/upstream.toml")
    assert state()["started"] == [["ci.yml", publish.BRANCH]] * 2


def test_a_new_patch_goes_along_and_nothing_outside_of_patches(github, project, tmp_path):
    upstream.write(project.root, {"patches/new.patch": "x\n", "stray.txt": "y\n", "pyproject.toml": "changed\n"})
    publish.night(github, project, legs(tmp_path, linux_gcc="success", cuda="success"), None)
    names = repo.git(tmp_path / "remote", "show", "--name-only", "--format=", publish.BRANCH).split()
    assert names == ["patches/new.patch"]


def test_a_good_night_closes_the_issue(github, project, state, tmp_path):
    publish.night(github, project, legs(tmp_path, linux_gcc="failure", cuda="success"), None)
    assert publish.night(github, project, legs(tmp_path, linux_gcc="success", cuda="success"), None) == 0
    assert [issue["state"] for issue in state()["issues"]] == ["closed"]
    assert state()["comments"] == [[1, "Passes again at b1."]]


def test_a_night_without_news_pushes_nothing(github, project, state, tmp_path):
    assert publish.night(github, project, legs(tmp_path, linux_gcc="success", cuda="success"), None) == 0
    assert state()["pulls"] == [] and repo.git(tmp_path / "remote", "branch") == ""


def test_a_push_that_fails_opens_no_pull_request(github, project, state, tmp_path):
    bump(project, "news")
    repo.git(project.root, "remote", "set-url", "origin", str(tmp_path / "absent"))
    with pytest.raises(BuildError, match="cannot publish rebase/nightly"):
        publish.night(github, project, legs(tmp_path, linux_gcc="success", cuda="success"), None)
    assert state()["pulls"] == []


def test_a_refusal_is_passed_on_with_the_next_step(github, state):
    state(refused=["POST pulls"])
    with pytest.raises(BuildError, match="Allow GitHub Actions to create(?s:.*)HTTP 403"):
        github.put_pull("branch", "title", "text")


# // the text


@pytest.mark.parametrize(("given", "shown"), [
    ("fix by @someone (#123)", f"fix by @{publish._GAP}someone (#{publish._GAP}123)"),
    ("Fixes ggml-org/llama.cpp#7, GH-8", f"Fixes ggml-org/llama.cpp#{publish._GAP}7, GH-{publish._GAP}8"),
    ("https://github.com/ggml-org/llama.cpp/pull/5", "https://redirect.github.com/ggml-org/llama.cpp/pull/5"),
    ("see `git am @{u} #1`\n```\n#2 @me https://github.com/x\n```\n# Title", None),
])
def test_upstreams_words_call_nobody_and_link_nowhere(given, shown):
    assert publish.quiet(given) == (given if shown is None else shown)


def test_a_text_that_is_too_long_is_cut_at_a_line_with_its_code_closed():
    text = publish.body([], publish.Leg("cuda", "failure", "```\n" + "a line\n" * 20_000 + "```"), None)
    assert len(text) < 65_536 and text.count("```") == 2
    assert text.endswith("a line\n```\n\n(cut here: the whole report is among the files of the run)")


# // freshness


@pytest.mark.parametrize(("days", "code"), [(2.9, 0), (3.1, 1)])
def test_three_days_without_a_good_night_are_a_failure(github, state, days, code):
    now = datetime.now(UTC)
    state(runs=[(now - timedelta(days=days)).isoformat()])
    assert publish.fresh(github, now) == code
    assert len(state()["issues"]) == code


def test_a_workflow_that_never_passed_counts_from_its_first_day(github, state):
    state(created=(datetime.now(UTC) - timedelta(days=4)).isoformat())
    assert publish.fresh(github, datetime.now(UTC)) == 1
    state(created=datetime.now(UTC).isoformat())
    assert publish.fresh(github, datetime.now(UTC)) == 0


def test_staleness_does_not_overwrite_an_issue_that_says_why(github, project, state, tmp_path):
    publish.night(github, project, legs(tmp_path, linux_gcc="failure", cuda="success"), None)
    before = state(runs=["2020-01-01T00:00:00Z"])["issues"]
    assert publish.fresh(github, datetime.now(UTC)) == 1
    assert state()["issues"] == before


# // the command line


@pytest.mark.parametrize(("repository", "reports", "said"), [
    ("ggml-org/llama.cpp", ".", "never written to"),
    ("GGML-Org/Llama.CPP", ".", "never written to"),
    ("name", ".", "give OWNER/NAME"),
    ("owner/name", "absent", "no folder absent"),
])
def test_bad_arguments_are_one_line(repository, reports, said, capsys):
    with pytest.raises(SystemExit) as error:
        publish.main(["night", "--repository", repository, "--reports", reports, "--legs", "cuda"])
    assert error.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_without_gh_the_next_step_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert publish.main(["fresh", "--repository", "owner/name"]) == 1
    assert "gh auth login" in capsys.readouterr().err
