"""The first upstream commit at which a stage fails, by bisection between the pin and upstream's head."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from ci import repo
from ci.project import BuildError, Project
from ci.rebasing.arguments import NONE
from ci.rebasing.changes import count_commits
from ci.rebasing.session import Session
from ci.rebasing.upstream import Head, Store
from ci.steps import Report


def find(project: Project, store: Store, args: argparse.Namespace, scratch: Path, stage: str, report: Report) -> dict:
    """Searches for where a stage that fails at the head began to fail. No stage after it runs.

    It is taken for granted that the pin passes, and that what is broken stays broken.

    Args:
        stage: the stage that failed at the head.

    Returns:
        the part ``break`` of the report: ``stage``, ``commit`` and ``subject`` of the first commit that fails (null
        where it cannot be searched, for the reason in ``unknown``), and ``tried``, each ``commit`` with its
        ``failed_stage`` (null: it passed).
    """
    found: dict = {"stage": stage, "commit": None, "subject": None, "unknown": None, "tried": []}
    count, why = count_commits(store)
    if not count:
        return found | {"unknown": why or "upstream's head is the pin"}
    # of its own, because the tree of the run may be kept half-merged
    tree = shutil.copytree(store.tree, scratch / "bisect")
    # along the first parents each commit holds all before it
    commits = repo.git(tree, "rev-list", "--reverse", "--first-parent", f"{store.pin}..{store.head.commit}").split()
    wanted = argparse.Namespace(**vars(args) | {"stage": args.stage[: args.stage.index(stage) + 1], "bench": NONE})
    low, high = 0, len(commits) - 1
    while low < high:
        middle = (low + high) // 2
        report.line("bisect", f"{commits[middle][:9]}, {high - low} commits are left")
        failed = _probe(project, dataclasses.replace(store, tree=tree), commits[middle], wanted, scratch, report)
        found["tried"].append({"commit": commits[middle], "failed_stage": failed})
        low, high = (low, middle) if failed else (middle + 1, high)
    subject = repo.git(tree, "log", "-1", "--format=%as %s", commits[low]).strip()
    report.line("break", f"{stage} fails since {commits[low][:9]} {subject}")
    return found | {"commit": commits[low], "subject": subject}


def _probe(
    project: Project, store: Store, commit: str, args: argparse.Namespace, scratch: Path, report: Report
) -> str | None:
    """The stage that fails at a commit, None where all pass."""
    # the one before may have stopped in the middle
    repo.asks(store.tree, "am", "--abort")
    repo.git(store.tree, "clean", "-ffdxq")
    at = dataclasses.replace(store, head=Head("git", commit, None))
    failed = Session(project, at, args, scratch, report).run()["failed_stage"]
    if failed == "report":
        raise BuildError(f"the bisection met a commit that it could not read: {commit[:9]}")
    return failed
