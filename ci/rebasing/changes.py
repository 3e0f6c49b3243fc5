"""What upstream did between two commits, as far as it concerns us: commits, patched files, architectures, names."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ci import repo
from ci.rebasing.upstream import Store

#: commits that are listed for a file
MAX_COMMITS = 30

_MODELS = "src/models"

#: the name in ``cb(cur, "name", il)``; the first argument may hold calls and casts
_NAME = re.compile(r'\bcb\s*\((?:[^"\n]*?),\s*(?:[^"\n]*\?\s*)?"([^"\n]+)"(?:\s*:\s*"([^"\n]+)")?')


def describe(store: Store, files: list[str]) -> dict:
    """The part ``upstream`` of the report. ``files`` are those that the series changes."""
    tree, old, new = store.tree, store.pin, store.head.commit
    count, why = count_commits(store)
    added, removed = _difference(architectures(tree, old), architectures(tree, new))
    before, after = tensor_names(tree, old), tensor_names(tree, new)
    appeared, vanished = _difference(before, after)
    return {
        "commits": count,
        "commits_unknown": why,
        "patched_files": [_file(store, name, count) for name in sorted(set(files))],
        "architectures": {"added": added, "removed": removed},
        "tensor_names": {
            "new": [{"name": name, "files": after[name]} for name in appeared],
            "vanished": [{"name": name, "files": before[name]} for name in vanished],
        },
    }


def count_commits(store: Store) -> tuple[int | None, str | None]:
    """The number of upstream commits after the pin; where the history does not tell, None and the reason."""
    tree, old, new = store.tree, store.pin, store.head.commit
    if old == new:
        return 0, None
    if store.head.kind == "plain":
        return None, "upstream is a tree without history"
    if repo.asks(tree, "merge-base", "--is-ancestor", old, new):
        return int(repo.git(tree, "rev-list", "--count", f"{old}..{new}")), None
    if repo.git(tree, "rev-parse", "--is-shallow-repository").strip() == "true":
        return None, "the history is shallow and does not reach from one commit to the other"
    return None, "the pin is not in the history of upstream's head"


def _file(store: Store, name: str, count: int | None) -> dict:
    """How much a patched file changed upstream, and which commits did it."""
    stat = repo.git(store.tree, "diff", "--numstat", "--no-renames", store.pin, store.head.commit, "--", name).split()
    log = None
    if count is not None:
        span = f"{store.pin}..{store.head.commit}"
        log = repo.git(store.tree, "log", "-n", str(MAX_COMMITS), "--format=%h %as %s", span, "--", name).splitlines()
    added, removed = (int(stat[0]), int(stat[1])) if len(stat) == 3 else (0, 0)
    return {"file": name, "added": added, "removed": removed, "commits": log}


def architectures(tree: Path, commit: str) -> set[str]:
    """The architectures of a commit: the file names in ``src/models`` without their ending."""
    names = repo.git(tree, "ls-tree", "--name-only", commit, f"{_MODELS}/").splitlines()
    return {PurePosixPath(name).stem for name in names if name.endswith(".cpp")}


def tensor_names(tree: Path, commit: str) -> dict[str, list[str]]:
    """Every name in a call of ``cb``, with the files that use it."""
    found: dict[str, set[str]] = {}
    for line in repo.git(tree, "grep", "-E", r"\bcb *\(", commit, "--", "src/*.cpp").splitlines():
        _, path, text = line.split(":", 2)
        for names in _NAME.findall(text):
            for name in filter(None, names):
                found.setdefault(name, set()).add(path.removeprefix("src/"))
    return {name: sorted(paths) for name, paths in found.items()}


def _difference(before, after) -> tuple[list[str], list[str]]:
    """What is only in the second, and what only in the first."""
    return sorted(set(after) - set(before)), sorted(set(before) - set(after))
