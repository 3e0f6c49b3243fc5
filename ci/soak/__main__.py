"""Runs models ten thousand times and loads them a thousand times, and shows whether anything is left behind.

    python -m ci.soak             10,000 hooked runs, 1,000 loads, 100,000 generated tokens: tens of minutes
    python -m ci.soak --short     a few of each, again and again: half a minute
    python -m ci.soak --write     the long form, with its result in docs/reliability.md

Exit code 1 where memory grows faster than its bound, where a thread, a file handle or a process stays, or where the
logits of a plain run are no longer those of the first. Needs Linux, whose /proc it reads.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import report  # noqa: E402
from ci.soak import verdict  # noqa: E402
from ci.soak.parts import PARTS, SHORT, apart  # noqa: E402
from ci.soak.readings import Reading  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"

#: of each part, in the long form
N_READINGS = 200

COLUMNS = (
    "case", "resident MiB", "resident, bytes", "its process, bytes", "malloc, bytes", "Python, blocks",
    "threads", "handles", "processes", "logits",
)  # fmt: skip


def summarise(name: str, readings: list[Reading], short: bool = False) -> dict:
    """A row: what was done, what it left, and what is wrong with that."""
    part, kept = PARTS[name], verdict.counted(readings)
    bounds = {what: bound * (SHORT if short else 1) for what, bound in part.bounds.items()}
    constant = {what: [getattr(kept[0], what), getattr(readings[-1], what)] for what in verdict.CONSTANT}
    return {
        "case": f"{readings[-1].done:,} {part.unit}s", "n_readings": len(kept),
        "resident": [kept[0].resident, readings[-1].resident],
        "slopes": {what: [found.value, found.error] for what, found in verdict.slopes(readings).items()},
        "bounds": bounds, **constant, "changed": readings[-1].changed,
        "wrong": verdict.complaints(readings, bounds),
    }  # fmt: skip


def table(rows: list[dict]) -> report.Table:
    """Growth by unit with its standard error and bound; counts after the warm-up and, where others, at the end."""
    lines = []
    for row in rows:
        found = row["slopes"]
        grown = [_grown(*found[what], row["bounds"][what]) if what in found else "" for what in verdict.GROWING]
        counts = [" to ".join(map(str, dict.fromkeys(row[what]))) for what in verdict.CONSTANT]
        sizes = " to ".join(f"{size / 2**20:.1f}" for size in row["resident"])
        lines.append((row["case"], sizes, *grown, *counts, "other" if row["changed"] else "the same"))
    return report.Table("Growth by run, token or load ± standard error (bound)", COLUMNS, lines)


def _grown(value: float, error: float, bound: float) -> str:
    digits = 3 if bound < 1 else 1 if bound < 100 else 0
    return f"{value:,.{digits}f} ± {error:,.{digits}f} ({bound:,g})"


def soak(names: list[str], short: bool) -> dict[str, list[Reading]]:
    """The readings of each part."""
    found = {}
    for name in names:
        part = PARTS[name]
        form = (part.rounds * part.period, part.rounds, part.period) if short else (part.steps, N_READINGS)
        found[name] = list(apart(name, *form))
        report.say(f"{name}: {found[name][-1].done:,} {part.unit}s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few of each, repeated")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="only these")
    parser.add_argument("--json", type=Path, help="also write the rows to a file")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    given = parser.parse_args()
    if given.write and (given.short or given.parts != list(PARTS)):
        parser.error("the page's table is of the whole long form: leave out --short and --parts, or --write")
    if not sys.platform.startswith("linux"):
        sys.exit("The soak reads /proc, which only Linux has.")

    before, found = report.load(), soak(given.parts, given.short)
    rows = [summarise(name, readings, given.short) for name, readings in found.items()]
    measured = {
        "machine": report.machine(1), "load": [before, report.load()], "rows": rows,
        "readings": {name: list(map(asdict, readings)) for name, readings in found.items()},
    }
    report.publish(
        "soak-short" if given.short else "soak", measured, lambda: [table(rows)], "python -m ci.soak --write",
        page=given.write, copy=given.json, to=PAGE,
    )  # fmt: skip
    wrong = [f"{row['case']}: {line}" for row in rows for line in row["wrong"]]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
