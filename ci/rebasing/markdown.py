"""The report as a page for people."""

from __future__ import annotations


def render(found: dict) -> str:
    """The Markdown of a report; its first line says what came out."""
    parts = [
        f"# Rebase {found['result']}{f': {found_stage}' if (found_stage := found['failed_stage']) else ''}",
        _commits(found),
        table(("stage", "result", "seconds", ""), [
            (stage["name"], stage["result"], stage["seconds"], first_line(stage["detail"])) for stage in found["stages"]
        ]),
        _details(found),
        _patches(found),
        _break(found["break"]),
        _changes(found["changes"]),
        _abi(found["abi"]),
        _tests(found["tests"]),
        _speed(found),
        f"## Range-diff\n\n{_fence(found['range_diff'], 'diff')}" if found["range_diff"] else "",
        "## Written\n\n" + "\n".join(f"- `{name}`" for name in found["written"]) if found["written"] else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _commits(found: dict) -> str:
    old, new, changes = found["old"], found["new"], found["changes"]
    commit = f"`{new['commit']}`" if new["kind"] == "git" else "a tree without history"
    rows = [("old", f"`{old['commit']}`", old["tag"]), ("new", commit, new["tag"] or "unknown")]
    count = "unknown"
    if changes:
        count = f"unknown: {changes['commits_unknown']}" if changes["commits"] is None else str(changes["commits"])
    return f"{table(('', 'commit', 'tag'), rows)}\n\nUpstream commits between: {count}. Run on {found['date']}."


def _details(found: dict) -> str:
    """What a failed stage said, in full."""
    bad = next((stage for stage in found["stages"] if stage["result"] == "failed"), None)
    return f"## What {bad['name']} said\n\n{_fence(bad['detail'])}" if bad else ""


def _patches(found: dict) -> str:
    rows = [(f"`{p['name']}`", p["result"], ", ".join(f"`{f}`" for f in p["conflicts"])) for p in found["patches"]]
    parts = ["## Patches", table(("patch", "result", "in conflict"), rows)] if rows else []
    parts += [f"### Conflict in {p['name']}\n\n{_fence(p['hunks'], 'diff')}" for p in found["patches"] if p["hunks"]]
    if found["recover"]:
        first, second, third = found["recover"]
        parts.append("\n".join([
            "To go on, from the project's folder:", "",
            f"1. `{first}`: the half-merged tree; resolve its files",
            f"2. `{second}`: goes on to the later patches; again where one of them stops",
            f"3. `{third}`",
        ]))
    return "\n\n".join(parts)


def _break(found: dict | None) -> str:
    if found is None:
        return ""
    said = f"`{found['commit']}` {found['subject']}" if found["commit"] else f"unknown: {found['unknown']}"
    return f"## First commit at which {found['stage']} fails\n\n{said} ({len(found['tried'])} commits tried)"


def _changes(changes: dict | None) -> str:
    if changes is None:
        return ""
    rows, commits = [], []
    for file in changes["patched_files"]:
        log, size = file["commits"], f"+{file['added']} -{file['removed']}"
        rows.append((f"`{file['file']}`", size, "unknown" if log is None else len(log)))
        if log:
            commits.append(f"`{file['file']}`\n\n" + "\n".join(f"- {line}" for line in log))
    archs = changes["architectures"]
    parts = [
        "## What upstream changed",
        table(("file that we patch", "lines", "commits"), rows) if rows else "",
        *commits,
        f"Architectures added: {names(archs['added'])}. Removed: {names(archs['removed'])}.",
    ]
    for kind, title in (("new", "New tensor names"), ("vanished", "Vanished tensor names")):
        rows = [(f"`{one['name']}`", ", ".join(one["files"])) for one in changes["tensor_names"][kind]]
        parts.append(table((title, "in"), rows) if rows else f"{title}: none.")
    return "\n\n".join(part for part in parts if part)


def _abi(abi: dict | None) -> str:
    if abi is None:
        return ""
    wrong = [*abi["differences"], *(f"{name}: the library lacks it" for name in abi["missing_symbols"])]
    right = f"All {abi['fields']} fields and {abi['symbols']} symbols agree."
    lines = "\n".join(f"- {line}" for line in wrong) or right
    rows = [(f"`{s['name']}`", _offset(s["old"]), _offset(s["new"])) for s in abi["upstream_structs"]]
    theirs = table(("upstream's structs (none crosses by value)", "old", "new"), rows) if rows else (
        f"Upstream's own structs: {abi['upstream_structs_unknown'] or 'no difference'}."
    )
    return f"## ABI\n\n{lines}\n\n{theirs}"


def _offset(value: int | None) -> str:
    return "none" if value is None else str(value)


def _tests(tests: dict | None) -> str:
    if tests is None:
        return ""
    counts = f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped."
    return "\n".join(["## Tests", "", counts, *(f"- `{name}`" for name in tests["failures"])])


def _speed(found: dict) -> str:
    parts = []
    if found["build_ratio"] is not None:
        parts.append(f"All objects together took {found['build_ratio']:.3f} of the pin's time to compile.")
    if found["bench"] is not None:
        parts.append(table(("case", "seconds", "ratio to the pin", "first quartile", "third quartile"), [
            (row["case"], *(f"{row[name]:.3f}" for name in ("seconds", "ratio", "ratio_low", "ratio_high")))
            for row in found["bench"]
        ]))
    return "\n\n".join(["## Speed", *parts]) if parts else ""


def names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def first_line(text: str) -> str:
    return text.splitlines()[0].replace("|", "\\|") if text else ""


def _fence(text: str, kind: str = "text") -> str:
    # longer than any fence inside
    return f"````{kind}\n{text.rstrip()}\n````"


def table(head: tuple, rows: list[tuple]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
