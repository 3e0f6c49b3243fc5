"""Changing the patch series, in a working copy that no build touches:

    python -m ci.series work      # build/src/work: the pinned tree with one commit for each patch
    cd build/src/work             # edit; then git commit --amend, git commit, git rebase -i: the commits are the series
    cd ../../.. && python -m ci.series export     # writes patches/*.patch and patches/series from the commits
    python ci/check_patches.py && python3 build.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import repo, series
from ..project import BuildError, Project
from ..rebasing.moved import move_pin
from ..source import resolve, unpatched_tree
from ..steps import Report


def main(arguments: list[str] | None = None, project: Project | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ci.series", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    work = verbs.add_parser("work", help="make build/src/work: the pinned tree with one commit for each patch")
    work.add_argument("--source", default="sdist", help="sdist, git, or the path of a clone or archive")
    out = verbs.add_parser("export", help="write patches/ from the commits of a working copy")
    out.add_argument("--tree", type=Path, help="the working copy (default: build/src/work)")
    out.add_argument("--move-pin", action="store_true", help="the commit below the series becomes the pin")
    args = parser.parse_args(arguments)

    project, report = project or Project(), Report()
    try:
        if args.verb == "work":
            pin = project.pin()
            tree = unpatched_tree(project, pin, resolve(pin, args.source), report)
            report.line("work", str(series.working_copy(project, tree, report)))
        else:
            tree = args.tree or project.src / "work"
            if not repo.is_repository(tree):
                raise BuildError(f"{tree} is no working copy. Make one with: python -m ci.series work, or give --tree.")
            names = series.export(tree, project.patches)
            if args.move_pin:
                move_pin(project, repo.git(tree, "rev-parse", repo.BASE_REF).strip(), None)
            report.line("exported", f"{len(names)} patches to {project.patches}")
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
