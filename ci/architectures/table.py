"""``docs/architectures.md``: its tables, written from what was measured, and read again by a test."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ci.benchmark import report
from ci.benchmark.report import Table

from . import ROOT
from .bounds import ROUNDINGS
from .shapes import BY_NAME

if TYPE_CHECKING:
    from .result import Effect, Result

PAGE = ROOT / "docs" / "architectures.md"
COMMAND = "python -m ci.architectures --write"

READING, ALIKE, EDITING, LACKING = "Reading", "Reading, rounded alike", "Editing", "What is lacking"

#: groups of errors -> the head of their column
GROUPS = {
    "attention": "attention",
    "residual": "residual stream",
    "z": "z",
    "modules": "modules",
    "activation": "MLP activation",
    "logits": "logits",
}
EDITS = ("zero head", "patch", "knockout", "zero mixer")
EXACT = ("captures", "resume", "stop", "unembed")

RECURRENT = "recurrent layers have none"
DEAD = "the name comes after the tensor's use, so that it can be read only"


def tables(results: list[Result]) -> list[Table]:
    """The tables of the page."""
    rounded = [found for found in results if found.imitated is not None]
    return [
        Table(READING, _columns("graph", "in use", *GROUPS.values(), "bit for bit"), [*map(_reading, results)], _LEFT),
        Table(ALIKE, _columns("rounds", *GROUPS.values()), [*map(_alike, rounded)], _LEFT),
        Table(EDITING, _columns(*EDITS), [*map(_editing, results)], _LEFT),
        Table(LACKING, _columns("what", "why", "what a user is told"), [*_lacking(results)], _LEFT),
    ]


_LEFT = ("architecture", "graph", "in use", "rounds", "what", "why", "what a user is told")


def _columns(*names: str) -> tuple[str, ...]:
    return "architecture", *names


def _reading(found: Result) -> tuple[str, ...]:
    exact = "yes" if all(found.exact[name] for name in EXACT) else "no"
    return found.name, f"`{found.arch}`", found.about, *_errors(found.errors), exact


def _alike(found: Result) -> tuple[str, ...]:
    return found.name, ROUNDINGS[found.rounding].name, *_errors(found.imitated or {})


def _errors(errors: dict[str, float]) -> list[str]:
    return [f"{errors[group]:.1e}" if group in errors else "–" for group in GROUPS]


def _editing(found: Result) -> tuple[str, ...]:
    return found.name, *(_effect(found.edits[name]) if name in found.edits else "–" for name in EDITS)


def _effect(edit: Effect) -> str:
    error = edit.error if edit.imitated is None else edit.imitated
    return f"{edit.effect:.2f} / {error:.1e} / {edit.wrong:.2f}"


def _lacking(results: list[Result]):
    for found in results:
        for what, message in found.lacks.items():
            why = DEAD if what.startswith("edits of") else BY_NAME[found.name].lacks.get(what, RECURRENT)
            yield found.name, what, why, message


def write(results: list[Result]) -> None:
    """Put the tables between the marks of the page."""
    measured = {"machine": report.machine(threads=1)}
    report.write_page("architectures", tables(results), measured, COMMAND, PAGE)


#: title, head and lines, as :meth:`ci.benchmark.report.Table.markdown` writes them
_TABLE = re.compile(r"^\*\*(.+?)\*\*\n\n\|(.+)\|\n\|[-|: ]+\|\n((?:\|.+\|\n)*)", re.MULTILINE)


def read(page: Path = PAGE) -> dict[str, list[dict[str, str]]]:
    """The tables as the page has them: title -> lines, each by column."""
    found: dict[str, list[dict[str, str]]] = {}
    for title, head, body in _TABLE.findall(page.read_text("utf-8")):
        columns = [cell.strip() for cell in head.split("|")]
        found[title] = [dict(zip(columns, _cells(line))) for line in body.splitlines()]
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
