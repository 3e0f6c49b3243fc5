"""Makes a night's rebase known: one pull request while it passes, one issue while it fails, never a second of either.

    python ci/publish.py night --repository OWNER/NAME --reports DIR --legs LEG …
        DIR holds a folder for each leg: ``status`` (a word: success, failure, cancelled) and the reports of
        ``ci/rebase.py --out``. All passed: what ``ci/rebase.py --write`` left in patches/ is committed on a branch of
        its own, and its pull request opened or refreshed; the issue is closed. Else the issue is opened or refreshed.
    python ci/publish.py fresh --repository OWNER/NAME
        fails if no night has passed for three days, whatever the cause, and opens the issue if none is open

Everything goes through ``gh`` (https://cli.github.com), which takes GH_TOKEN or a login, and through a push to the
remote ``origin``. Nothing is ever written to the upstream project, and no text makes a link that shows there.

Exit codes: 0 all is well and published; 1 the night failed, is stale, or could not be published; 2 bad arguments.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ci import repo
from ci.github import GitHub
from ci.project import BuildError, Pin, Project
from ci.rebasing.moved import BRANCH
from ci.steps import read_json

#: what the one issue is found by
LABEL = "nightly-rebase"

STALE = timedelta(days=3)

#: GitHub takes 65,536 characters
_LONGEST = 60_000

#: a space of no width, which keeps GitHub from seeing a name or a number
_GAP = "\u200b"

_CODE = re.compile(r"(^```.*?^```[^\n]*$|`[^`\n]+`)", re.M | re.S)


@dataclass(frozen=True)
class Leg:
    """One machine's part of a night.

    Attributes:
        result: ``success``, another word of the workflow's, or ``no result`` where nothing came back; with the stage of
            ci/rebase.py that failed, if one did.
        report: the Markdown report, empty where there is none.
    """

    name: str
    result: str
    report: str

    @property
    def passed(self) -> bool:
        # a leg that says so without a report has shown nothing
        return self.result == "success" and bool(self.report)


def read_leg(reports: Path, name: str) -> Leg:
    def text(file: str) -> str:
        path = reports / name / file
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""

    stage = read_json(reports / name / "report.json").get("failed_stage")
    return Leg(name, (text("status") or "no result") + (f": {stage}" if stage else ""), text("report.md"))


def night(github: GitHub, project: Project, legs: list[Leg], run: str | None) -> int:
    """Publishes one night; returns the exit code.

    Raises:
        BuildError: GitHub or git refused.
    """
    if failed := [leg for leg in legs if not leg.passed]:
        names = ", ".join(f"{leg.name} ({leg.result})" for leg in failed)
        number = github.put_issue(LABEL, f"The nightly rebase fails: {names}", body(legs, failed[0], run))
        print(f"failed: {names}: issue #{number}")
        return 1
    pin = project.pin()
    if not push(project, pin):
        print("passed: nothing to change, the pin and the patches are the newest")
    else:
        number = github.put_pull(BRANCH, subject(pin), body(legs, legs[0], run))
        # a push by a workflow's own token starts no other workflow
        github.start_workflow("ci.yml", BRANCH)
        print(f"passed: pull request #{number}")
    if number := github.close_issue(LABEL, f"Passes again at {pin.tag}."):
        print(f"closed issue #{number}")
    return 0


def subject(pin: Pin) -> str:
    return f"patches: follow llama.cpp to {pin.tag} ({pin.commit[:9]})"


def push(project: Project, pin: Pin) -> bool:
    """Commits what changed in patches/ on top of HEAD and makes that the branch; False where nothing changed.

    Raises:
        BuildError: git refused.
    """
    # not ci.repo: its git knows nothing of the user, and this one must know how to log in
    import git

    here, (name, email) = git.Repo(project.root).git, repo.IDENTITY
    why = (
        "Why: the series applies on this commit, and what is built of it passes the tests on every leg of the night.\n"
        "The pin and the exported patches are as ci/rebase.py --write left them."
    )
    who = {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER")
           for field, value in (("NAME", name), ("EMAIL", email))}
    try:
        if not here.status("--porcelain", "--", "patches"):
            return False
        here.checkout("-q", "-B", BRANCH)
        here.add("-A", "--", "patches")
        with here.custom_environment(**who):
            here.commit("-q", "--no-verify", "--no-gpg-sign", "-m", f"{subject(pin)}\n\n{why}", "--", "patches")
        here.push("-q", "--force", "origin", f"HEAD:refs/heads/{BRANCH}")
    except git.GitCommandError as error:
        raise BuildError(f"cannot publish {BRANCH}: {str(error.stderr).strip()}") from error
    return True


def body(legs: list[Leg], shown: Leg, run: str | None) -> str:
    """The text of the pull request or the issue: each leg's result, then one leg's report."""
    lines = ["| leg | result |", "|---|---|", *(f"| {leg.name} | {leg.result} |" for leg in legs), ""]
    if run:
        lines += [f"All reports and logs: {run}", ""]
    lines += ["This text and its branch are written anew by every nightly run: see `docs/nightly.md`.", ""]
    report = shown.report or "It wrote no report, so it failed before or outside of `ci/rebase.py`: see its log."
    return _cut("\n".join([*lines, f"## {shown.name}", "", quiet(report)]))


def quiet(text: str) -> str:
    """Markdown in which no name is called and nothing is linked or closed: the words are those of upstream's authors.

    A plain link to an issue or commit of another project leaves a line there; GitHub's redirecting host does not.
    """
    parts = _CODE.split(text)
    # every other part is code, in which GitHub links nothing, and which people copy
    for i in range(0, len(parts), 2):
        part = re.sub(r"https?://(www\.)?github\.com/", "https://redirect.github.com/", parts[i])
        parts[i] = re.sub(r"[@#](?=\w)|(?<=\bGH)-(?=\d)", lambda found: found[0] + _GAP, part)
    return "".join(parts)


def _cut(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    kept = text[:_LONGEST].rpartition("\n")[0]
    fence = "\n```" if len(re.findall("^```", kept, re.M)) % 2 else ""
    return f"{kept}{fence}\n\n(cut here: the whole report is among the files of the run)"


def fresh(github: GitHub, now: datetime) -> int:
    """Fails if the last night that passed is too long ago; a workflow that is new counts from its first day.

    Raises:
        BuildError: GitHub refused.
    """
    since = github.last_success("nightly.yml")
    days = (now - since).total_seconds() / 86400
    said = f"the nightly rebase last passed, or was set up, {days:.1f} days ago ({since:%Y-%m-%d %H:%M} UTC)"
    if now - since <= STALE:
        print(said)
        return 0
    print(f"error: {said}; {STALE.days} are allowed. Look at the runs of nightly.yml, or start one.", file=sys.stderr)
    if not github.find_issue(LABEL):
        why = "Either it no longer runs, or it ends before it can say why: see its runs."
        github.put_issue(LABEL, "The nightly rebase has not passed for days", f"{said[0].upper()}{said[1:]}.\n\n{why}")
    return 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("night", help="publish a night's result")
    for verb in (one, verbs.add_parser("fresh", help="fail if no night has passed for three days")):
        verb.add_argument("--repository", metavar="OWNER/NAME", default=os.environ.get("GITHUB_REPOSITORY"),
                          help="where to publish (default: $GITHUB_REPOSITORY)")
    one.add_argument("--reports", type=Path, required=True, metavar="DIR", help="holds a folder for each leg")
    one.add_argument("--legs", nargs="+", required=True, metavar="LEG", help="the legs that must have passed")
    one.add_argument("--run", metavar="URL", help="the page of the run, for the text")
    args = parser.parse_args(arguments)

    project = Project()
    try:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repository or ""):
            parser.error("--repository: give OWNER/NAME")
        if project.pin().repository.lower().removesuffix(".git").endswith(f"/{args.repository.lower()}"):
            parser.error(f"--repository: {args.repository} is the upstream project, which is never written to")
        if args.verb == "night" and not args.reports.is_dir():
            parser.error(f"--reports: no folder {args.reports}")
        github = GitHub(args.repository)
        if args.verb == "fresh":
            return fresh(github, datetime.now(UTC))
        return night(github, project, [read_leg(args.reports, name) for name in args.legs], args.run)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
