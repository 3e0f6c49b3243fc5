"""One run: the stages in their order, each with its result and its time, and what the report needs of them."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from ci import library, repo
from ci.project import BuildError, Project
from ci.rebasing import apply, changes, checks, moved
from ci.rebasing.arguments import NONE, STAGES
from ci.rebasing.upstream import Store
from ci.steps import Report, publish_folder

#: counted up when a field of the report changes its meaning or goes
SCHEMA = 1


class Session:
    """Runs the stages on a store and keeps what they found in ``found``, the report as ``docs/rebase.md`` has it."""

    def __init__(self, project: Project, store: Store, args: argparse.Namespace, scratch: Path, report: Report):
        self.project, self.store, self.args, self.scratch, self.report = project, store, args, scratch, report
        self.moved: Project | None = None
        self.lib: Path | None = None
        pin, head = project.pin(), store.head
        self.found: dict = {
            "schema": SCHEMA,
            "result": "passed",
            "failed_stage": None,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "upstream": args.upstream,
            "ref": args.ref,
            "old": {"commit": pin.commit, "tag": pin.tag},
            "new": {"commit": head.commit, "tag": head.tag, "kind": head.kind},
            "stages": [],
            "patches": [],
            "range_diff": "",
            "recover": [],
            "break": None,
            "changes": None,
            "build_seconds": None,
            "build_ratio": None,
            "abi": None,
            "tests": None,
            "bench": None,
            "written": [],
            "branch": moved.BRANCH,
        }

    def run(self) -> dict:
        """Runs what was asked for; a stage after a failed one is skipped, never passed."""
        work = {"apply": self._apply, "build": self._build, "abi": self._abi, "test": self._test}
        for name in STAGES:
            if name not in self.args.stage:
                self._note(name, "skipped", 0.0, "not asked for")
            elif self.found["failed_stage"]:
                self._note(name, "skipped", 0.0, f"{self.found['failed_stage']} failed")
            else:
                self._stage(name, work[name])
        if self.lib and not self.found["failed_stage"] and ("test" in self.args.stage or self.args.bench):
            self._bench()
        self._stage("report", self._describe)
        return self.found

    def _stage(self, name: str, work: Callable[[], tuple[str, bool]]) -> None:
        started = time.monotonic()
        try:
            detail, passed = work()
        except BuildError as error:
            detail, passed = str(error), False
        self._note(name, "passed" if passed else "failed", time.monotonic() - started, detail)

    def _note(self, name: str, result: str, seconds: float, detail: str) -> None:
        self.found["stages"].append({"name": name, "result": result, "seconds": round(seconds, 1), "detail": detail})
        if result == "failed":
            self.found["result"] = "failed"
            self.found["failed_stage"] = self.found["failed_stage"] or name
        self.report.line(name, f"{result} ({seconds:.1f} s) {detail.splitlines()[0] if detail else ''}".rstrip())

    # // the stages: each returns one line, or the end of a log, and whether it passed

    def _apply(self) -> tuple[str, bool]:
        applied = apply.apply(self.store, self.project.patches, self.report)
        self.found |= {"patches": applied.as_json(), "range_diff": applied.range_diff}
        if applied.new is None:
            bad = next(patch for patch in applied.patches if patch.result == "conflict")
            self.found["recover"] = self._keep_tree()
            return f"{bad.name} does not apply: {', '.join(bad.conflicts or bad.files)}", False
        self.moved = moved.copy(self.project, self.store, self.scratch)
        counts = [sum(patch.result == result for patch in applied.patches) for result in ("clean", "merged")]
        return f"{counts[0]} clean, {counts[1]} merged", True

    def _keep_tree(self) -> list[str]:
        """Readies the half-merged tree for a person, and says how to go on in it from the project's folder."""
        name, email = repo.IDENTITY
        for key, value in (("user.name", name), ("user.email", email), ("core.autocrlf", "false")):
            repo.git(self.store.tree, "config", key, value)
        # it is moved there by publish_tree, because the report still reads the objects where they are
        place = shlex.quote(os.path.relpath(self.args.out / "tree", self.project.root))
        return [
            f"git -C {place} diff",
            f"git -C {place} add -A && git -C {place} am --continue",
            f"python -m ci.series export --tree {place} --move-pin && python ci/check_patches.py",
        ]

    def publish_tree(self) -> None:
        """After a conflict: gives the half-merged tree its name. The store is of no use afterwards."""
        if self.found["recover"]:
            publish_folder(self.store.tree, self.args.out / "tree")

    def _build(self) -> tuple[str, bool]:
        started = time.monotonic()
        self.lib, detail = checks.build(self.moved, self.store, self.args.backend, self.args.jobs, self.report)
        if detail.startswith("compiled"):
            self.found["build_seconds"] = round(time.monotonic() - started, 1)
        self.found["build_ratio"] = checks.compile_ratio(self._pinned().lib, self.lib)
        return detail, True

    def _pinned(self) -> library.Target:
        """The library of the pin, as ``build.py`` names it; it may be missing."""
        return checks.target(self.project, self.project.pin().commit, self.args.backend)

    def _abi(self) -> tuple[str, bool]:
        self.found["abi"], wrong = checks.abi(self.moved, self.store, self.lib)
        abi = self.found["abi"]
        good = f"{abi['fields']} fields and {abi['symbols']} symbols agree; upstream's own structs: "
        upstream = abi["upstream_structs_unknown"] or f"{len(abi['upstream_structs'])} differences"
        return wrong or good + upstream, not wrong

    def _test(self) -> tuple[str, bool]:
        self.found["tests"], wrong = checks.test(self.moved, self.lib, self.args.tests, self.report)
        counts = self.found["tests"]
        line = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
        return f"{line}\n{wrong}" if wrong else line, not wrong

    def _bench(self) -> None:
        """Times the new library beside the pin's. A night is not worse for having no figure, so only a library that
        was asked for must be measured."""
        asked, started = self.args.bench, time.monotonic()
        pinned = self._pinned()
        if asked == NONE or (asked is None and pinned.state() != "current"):
            why = "not asked for" if asked else f"the pin's library is {pinned.state()} in {library.short(pinned.lib)}"
            self._note("bench", "skipped", 0.0, why)
            return
        # imported here, because what it needs comes with the package's own requirements
        from ci.rebasing import speed

        try:
            self.found["bench"] = speed.compare(self.project, asked or pinned.lib, self.lib, self.report)
            detail = ", ".join(f"{row['case']} {row['ratio']:.3f} of the pin's time" for row in self.found["bench"])
            result = "passed"
        except BuildError as error:
            detail, result = str(error), "failed" if asked else "skipped"
        self._note("bench", result, time.monotonic() - started, detail)

    def _describe(self) -> tuple[str, bool]:
        files = [file for patch in self.found["patches"] for file in patch["files"]]
        self.found["changes"] = changes.describe(self.store, files)
        return f"{self.args.out / 'report.md'}", True
