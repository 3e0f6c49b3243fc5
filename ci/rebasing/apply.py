"""The apply stage: the series on the pin, then patch by patch on upstream's head, and what came of each."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

from ci import repo, series
from ci.project import BuildError
from ci.rebasing.upstream import Store
from ci.steps import Report

#: of a conflict: more than this is read better in the half-merged tree
MAX_LINES = 120

_AM = ("am", "-q", "-3", "--keep-cr", "--whitespace=nowarn")


@dataclass
class Patch:
    """What came of one patch.

    Attributes:
        result: ``clean``, ``merged`` (its context had moved; git merged it three-way), ``conflict``, or ``skipped``
            after a conflict.
        files: the files that it changes.
        conflicts: the files in conflict.
        hunks: the conflicting parts of those, as ``git diff`` shows them.
    """

    name: str
    result: str
    files: list[str]
    conflicts: list[str] = field(default_factory=list)
    hunks: str = ""


@dataclass
class Applied:
    """The outcome of the stage.

    Attributes:
        old: the commit of the series on the pin.
        new: the commit of the series on upstream's head, None after a conflict.
        patches: one entry for each patch of the series, in its order.
        range_diff: ``git range-diff`` of both, empty after a conflict.
    """

    old: str
    new: str | None
    patches: list[Patch]
    range_diff: str = ""

    def as_json(self) -> list[dict]:
        return [dataclasses.asdict(patch) for patch in self.patches]


def apply(store: Store, patches: Path, report: Report) -> Applied:
    """Applies the series on both commits. After a conflict, the tree is left half-merged with the rest of the series
    waiting, for ``git am --continue``.

    Raises:
        BuildError: the series does not even apply on its own pin.
    """
    tree, head = store.tree, store.head.commit
    # the pin first: a three-way merge needs the files that each patch was made on
    repo.git(tree, "checkout", "-q", "-f", "--detach", store.pin)
    repo.checkout_base(tree, store.pin)
    try:
        series.apply(tree, patches)
    except series.ApplyError as error:
        raise BuildError(f"the series does not apply on its own pin, so nothing can be moved: {error}") from error
    old = repo.head(tree)
    repo.checkout_base(tree, head)
    applied, names = Applied(old, None, []), series.read(patches)
    for i, name in enumerate(names, start=1):
        patch = _apply_one(tree, patches, name, f"{i}/{len(names)}")
        report.line("applying", f"{name} ({i}/{len(names)}): {patch.result}")
        applied.patches.append(patch)
        if patch.result == "conflict":
            _open_rest(tree, [patches / rest for rest in names[i - 1 :]])
            applied.patches += [Patch(rest, "skipped", _files(patches, rest)) for rest in names[i:]]
            return applied
    applied.new = repo.head(tree)
    applied.range_diff = repo.git(tree, "range-diff", "--no-color", f"{store.pin}..{old}", f"{head}..{applied.new}")
    return applied


def _apply_one(tree: Path, patches: Path, name: str, place: str) -> Patch:
    # am -3 does not say whether it had to merge
    fits = repo.asks(tree, "apply", "--check", "--index", "--whitespace=nowarn", str(patches / name))
    try:
        series.apply_one(tree, patches, name, place, since=None)
    except series.ApplyError as error:
        return Patch(name, "conflict", _files(patches, name), error.conflicts, _hunks(tree, str(error)))
    return Patch(name, "clean" if fits else "merged", _files(patches, name))


def _files(patches: Path, name: str) -> list[str]:
    return series.touched((patches / name).read_text(encoding="utf-8", errors="replace"))


def _hunks(tree: Path, otherwise: str) -> str:
    """Only the parts of a half-merged tree that hold a conflict, cut where they are long."""
    lines: list[str] = []
    for file in re.split(r"^(?=diff --cc )", repo.git(tree, "diff", "--diff-filter=U"), flags=re.M):
        head, *hunks = re.split(r"^(?=@@@)", file, flags=re.M)
        if bad := [hunk for hunk in hunks if "<<<<<<<" in hunk]:
            lines += (head + "".join(bad)).splitlines()
    if len(lines) > MAX_LINES:
        lines = [*lines[:MAX_LINES], f"... {len(lines) - MAX_LINES} more lines"]
    # a patch whose files are gone leaves nothing to diff
    return "\n".join(lines) or otherwise


def _open_rest(tree: Path, files: list[Path]) -> None:
    """Stops at the same conflict with the later patches queued behind it, so that ``--continue`` goes on to them."""
    repo.git(tree, "am", "--abort")
    repo.asks(tree, *_AM, *map(str, files))
