"""Checks the patch series: ``python ci/check_patches.py [--offline]``.

Every patch is listed once and none is unused; each is ASCII, is named by what it does, and says why it is there, where
upstream stands, and when it can be dropped; together they change at most 60 lines of existing files; the series
applies on the pinned tree, and exporting it again gives the same bytes.

Exit codes: 0 the series is good; 1 it is not, each fault on a line; 2 it could not be checked.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ci import series
from ci.project import BuildError, Project
from ci.source import resolve, unpatched_tree
from ci.steps import Lock, Report, temporary

BUDGET = 60

#: what a maintainer must know of a patch, in the lines of its message
FIELDS = ("Why", "Upstream", "Drop-when")


def check_files(patches: Path) -> list[str]:
    """The faults that the files show by themselves, one line for each."""
    names = series.read(patches)
    faults = [f"{name}: listed {count} times in patches/series" for name, count in Counter(names).items() if count > 1]
    present = {path.name for path in patches.glob("*.patch")}
    faults += [f"{name}: in patches/ but not in patches/series" for name in sorted(present - set(names))]
    faults += [f"{name}: in patches/series but not in patches/" for name in names if name not in present]
    budget = 0
    for name in (name for name in dict.fromkeys(names) if name in present):
        content = (patches / name).read_bytes()
        text = content.decode("ascii", errors="replace")
        faults += [f"{name}: {fault}" for fault in _check_text(name, text)]
        if not content.isascii():
            line = next(i for i, one in enumerate(content.splitlines(), start=1) if not one.isascii())
            faults.append(f"{name}: line {line} is not ASCII")
        budget += changed_lines(text)
    if budget > BUDGET:
        faults.append(
            f"the series changes {budget} lines of existing files, and {BUDGET} are allowed: move code to native/"
        )
    return faults


def _check_text(name: str, text: str) -> list[str]:
    header, diff, _ = text.partition("\ndiff --git ")
    faults = [] if diff else ["holds no diff"]
    lacking = [field for field in FIELDS if not re.search(rf"^{field}: *\S", header, re.M)]
    faults += [f"no line '{field}: ...' in its message" for field in lacking]
    if not series.subject(header):
        faults.append("no line 'Subject: [PATCH] ...'")
    if not re.fullmatch(r"[a-z][a-z0-9-]*[.]patch", name):
        faults.append("is not named by what it does, in lower case: numbers collide when a patch is added")
    return faults


def changed_lines(patch: str) -> int:
    """Added and removed lines in files that exist upstream; files of our own cost upstream's code nothing."""
    total, inside, is_new = 0, False, False
    for line in patch.splitlines():
        if line.startswith("diff --git "):
            inside, is_new = False, False
        elif line.startswith("new file mode "):
            is_new = True
        elif line.startswith("@@ "):
            inside = True
        elif inside and not is_new and line[:1] in ("+", "-"):
            total += 1
    return total


def check_tree(project: Project, report: Report) -> list[str]:
    """The faults that show when the series is applied on the pinned tree.

    Raises:
        BuildError: the tree cannot be had.
    """
    pin = project.pin()
    with Lock(project.build / ".lock", report):
        tree = unpatched_tree(project, pin, resolve(pin, "sdist"), report)
        try:
            differ = series.roundtrip(tree, project.patches, temporary(project.src / "check"))
        except series.ApplyError as error:
            return [str(error)]
    remedy = "python -m ci.series work && python -m ci.series export"
    return [f"{name}: exported again, its bytes differ. Run: {remedy}" for name in differ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--offline", action="store_true", help="do not apply the series, so no source tree is needed")
    args = parser.parse_args(arguments)

    project, report = Project(), Report()
    try:
        faults = check_files(project.patches)
        if args.offline:
            report.line("note", "--offline: whether the series applies, and exports to the same bytes, was not checked")
        elif not faults:
            faults = check_tree(project, report)
        names = series.read(project.patches)
    except BuildError as error:
        print(f"error: cannot check: {error}", file=sys.stderr)
        return 2
    for fault in faults:
        print(fault, file=sys.stderr)
    lines = sum(changed_lines((project.patches / name).read_text("ascii")) for name in names) if not faults else 0
    if not faults:
        report.line("patches", f"{len(names)} good, {lines} of {BUDGET} lines changed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
