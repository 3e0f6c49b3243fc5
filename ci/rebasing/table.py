"""Several runs of ci/rebase.py side by side, as docs/rebase.md shows them.

    python -m ci.rebasing.table REPORT.json ...            prints the table
    python -m ci.rebasing.table REPORT.json ... --write    puts it into docs/rebase.md
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from ci.project import ROOT, Project
from ci.steps import write_text

from .markdown import first_line, names, table

PAGE = ROOT / "docs" / "rebase.md"

_PLACE = re.compile(r"(?<=<!-- runs -->\n).*?(?=<!-- end of runs -->)", re.S)


def render(reports: list[dict]) -> str:
    """A column for each run, a row for each fact."""
    columns = [_facts(found) for found in reports]
    titles = list(dict.fromkeys(title for column in columns for title in column))
    return table(("", *map(_title, reports)), [(title, *(c.get(title, "") for c in columns)) for title in titles])


def _title(found: dict) -> str:
    # where it lay on the machine says nothing, and the version of the pinned archive stands with the pin
    name, pinned = Path(found["upstream"]).name, Project().pin().sdist
    if name.startswith(f"{pinned.name.replace('-', '_')}-{pinned.version}"):
        name = "the pinned source archive"
    return f"{name}{', ' + found['ref'] if found['ref'] else ''}"


def _facts(found: dict) -> dict[str, str]:
    new, changes = found["new"], found["changes"]
    facts = {
        "to": f"`{new['commit'][:9]}`" if new["kind"] == "git" else "a tree without history",
        "run": found["date"][:10],
        "result": found["result"],
    }
    facts |= {patch["name"].removesuffix(".patch"): patch["result"] for patch in found["patches"]}
    if changes:
        facts["lines of patched files"] = "+{} -{}".format(
            *(sum(file[kind] for file in changes["patched_files"]) for kind in ("added", "removed"))
        )
        facts["architectures added"] = names(changes["architectures"]["added"])
        facts["architectures removed"] = names(changes["architectures"]["removed"])
        facts["tensor names"] = f"{len(changes['tensor_names']['new'])} new, " \
                                f"{len(changes['tensor_names']['vanished'])} vanished"
    for stage in found["stages"]:
        # the report is what this is read from, and a bench's figures follow
        if stage["name"] not in ("report", "bench"):
            facts[stage["name"]] = _stage(stage)
    if found["build_ratio"] is not None:
        facts["compile time, ratio"] = f"{found['build_ratio']:.3f}"
    for row in found["bench"] or ():
        facts[f"{row['case']}, ratio"] = f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f})"
    return facts


def _stage(stage: dict) -> str:
    if stage["result"] == "skipped":
        return f"skipped: {first_line(stage['detail'])}"
    return f"{stage['result']}, {stage['seconds']:.0f} s: {first_line(stage['detail'])}"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ci.rebasing.table", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    parser.add_argument("--write", action="store_true", help="put the table into docs/rebase.md")
    args = parser.parse_args(given)
    text = render([json.loads(path.read_text(encoding="utf-8")) for path in args.reports])
    print(text)
    if args.write:
        page, found = _PLACE.subn(lambda _: f"{text}\n", PAGE.read_text(encoding="utf-8"))
        if not found:
            parser.error(f"{PAGE} has no place for the table")
        write_text(PAGE, page)


if __name__ == "__main__":
    main()
