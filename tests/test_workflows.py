"""The workflows: valid, with as few rights as they need, and every step is a command that exists here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

import build
from ci.project import ROOT, Project

yaml = pytest.importorskip("ruamel.yaml", reason="check-jsonschema is installed by: python3 build.py test")

FOLDER = ROOT / ".github" / "workflows"

FILES = sorted(FOLDER.glob("*.yml"))

#: the jobs that may write, and none of them runs what was compiled of upstream's code
WRITERS = {("ci.yml", "nightly-is-fresh"), ("nightly.yml", "publish")}


@lru_cache
def workflow(name: str) -> dict:
    return yaml.YAML(typ="safe").load(FOLDER / name)


def jobs() -> list[tuple[str, str, dict]]:
    return [(file.name, name, job) for file in FILES for name, job in workflow(file.name)["jobs"].items()]


def lines() -> list[str]:
    """Every command of every ``run:``, one for each line of its script."""
    scripts = [step["run"] for _, _, job in jobs() for step in job["steps"] if "run" in step]
    return [line.strip() for script in scripts for line in script.splitlines() if line.strip()]


def ours() -> list[str]:
    """The commands that call a file of this project, once for each backend that they are called with."""
    called = [line for line in lines() if re.match(r"(python3?|bash) [\w./]*[./]", line)]
    legs = workflow("nightly.yml")["jobs"]["rebase"]["strategy"]["matrix"]["include"]
    return sorted({line.replace("${{ matrix.backend }}", leg["backend"]) for line in called for leg in legs})


# // the files


def test_both_workflows_are_there():
    assert [file.name for file in FILES] == ["ci.yml", "nightly.yml"]


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_the_workflows_are_valid(schema):
    tool = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent)) or shutil.which("check-jsonschema")
    if tool is None:
        pytest.skip("check-jsonschema is installed by: python3 build.py test")
    done = subprocess.run([tool, "--builtin-schema", schema, *FILES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actions_are_pinned_to_a_major_version_at_least():
    used = [step["uses"] for _, _, job in jobs() for step in job["steps"] if "uses" in step]
    assert used and [one for one in used if not re.fullmatch(r"actions/[a-z-]+@(v\d+[\d.]*|[0-9a-f]{40})", one)] == []


# // rights


def test_only_the_jobs_that_publish_may_write():
    writing = {(file, name) for file, name, job in jobs() if "write" in job.get("permissions", {}).values()}
    assert writing == WRITERS
    assert {file.name: workflow(file.name)["permissions"] for file in FILES} == {
        "ci.yml": {"contents": "read"}, "nightly.yml": {"contents": "read"},
    }


def test_no_other_job_sees_a_token():
    for file, name, job in jobs():
        if (file, name) not in WRITERS:
            checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout")]
            assert all(step["with"]["persist-credentials"] is False for step in checkouts), name
            assert not re.search(r"github\.token|secrets\.", str(job)), name


def test_a_job_that_may_push_runs_nothing_that_it_compiled():
    for file, name, job in jobs():
        if (file, name) in WRITERS:
            script = " ".join(step.get("run", "") for step in job["steps"])
            assert "build.py" not in script and not re.search(r"--stage \S*(build|test)", script)


def test_no_text_of_strangers_is_pasted_into_a_script():
    # a branch or a title may hold shell commands: such values come in by environment variables
    assert [line for line in lines() if re.search(r"\$\{\{(?! matrix\.)", line)] == []


# // the night


def test_two_nights_do_not_race():
    assert workflow("nightly.yml")["concurrency"] == {"group": "nightly", "cancel-in-progress": False}


def test_what_is_published_waits_for_every_leg():
    night = workflow("nightly.yml")["jobs"]
    legs = {leg["leg"] for leg in night["rebase"]["strategy"]["matrix"]["include"]} | {"cuda"}
    (published,) = [line for line in lines() if "publish.py night" in line]
    assert set(published.split("--legs ")[1].split()) == legs
    assert set(night["publish"]["needs"]) == set(night) - {"publish"}
    # each leg's result and report arrive under its name, also when a step before failed
    steps = night["rebase"]["steps"] + night["cuda"]["steps"]
    uploads = [step for step in steps if "upload" in step.get("uses", "")]
    assert [step["with"]["name"] for step in uploads] == ["${{ matrix.leg }}", "cuda"]
    assert all(step["if"] == "always()" for step in uploads)
    files = [[Path(line).name for line in step["with"]["path"].split()] for step in uploads]
    assert files == [["status", "report.json", "report.md"]] * 2


def test_all_legs_take_the_same_commit_of_the_pinned_repository():
    # ci/rebase.py fetches the pinned commit from there only where the two addresses are the same
    assert workflow("nightly.yml")["env"]["UPSTREAM"] == Project().pin().repository
    rebases = [line for line in lines() if "rebase.py" in line]
    assert len(rebases) == 3 and all('--upstream "$UPSTREAM" --ref "$COMMIT"' in line for line in rebases)


def test_a_push_is_checked_by_the_same_command_as_by_hand():
    assert "push" in workflow("ci.yml")["on"]
    steps = [step["run"] for step in workflow("ci.yml")["jobs"]["checks"]["steps"] if "run" in step]
    assert steps == ["bash .ci/run"]


# // by hand


def test_every_kind_of_call_is_seen():
    assert {line.split()[1] for line in ours()} == {".ci/run", "build.py", "ci/publish.py", "ci/rebase.py"}


@pytest.mark.parametrize("line", ours())
def test_a_step_names_a_file_and_flags_that_exist(line):
    program, file, *words = shlex.split(line)
    assert (ROOT / file).is_file()
    if program == "bash":
        assert words == []
        return
    if file == "build.py":
        # what follows "test" is pytest's
        build.parse(words)
        words = []
    verb = words[:1] if words and not words[0].startswith("-") else []
    shown = usage(file, *verb)
    unknown = [word for word in words if word.startswith("--") and not re.search(rf"(?<![\w-]){word}(?![\w-])", shown)]
    assert unknown == []


@lru_cache
def usage(file: str, *verb: str) -> str:
    done = subprocess.run(
        [sys.executable, file, *verb, "--help"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_names_every_command():
    commands = re.findall(r"`((?:python3?|bash) [^`]+)`", (ROOT / "docs/nightly.md").read_text(encoding="utf-8"))
    on_page = {tuple(sorted(flags(command))) for command in commands}
    # where reports go differs by hand, and so does the page of a run
    lacking = [line for line in ours() if "metal" not in line and tuple(sorted(flags(line))) not in on_page]
    assert lacking == []


def flags(command: str) -> set[str]:
    """The file that a command calls, its verb and its flags, without what differs from one call to another."""
    words = shlex.split(command)[1:]
    return {word for word in words if word.startswith("-") or word == words[0]} - {"--out", "--run"}
