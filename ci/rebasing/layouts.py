"""Layouts of llama.cpp's public structs at both commits: sizes and the offset of each field, as a compiler says."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

from ci import repo, toolchain
from ci.project import BuildError
from ci.rebasing.upstream import Store
from ci.steps import run

_HEADERS = ("include", "ggml/include")

_STRUCT = re.compile(r"(?:typedef\s+)?struct\s+(llama_\w+)\s*\{(.*?)\n\s*\}", re.S)
_NAME = re.compile(r"(?:\(\s*\*\s*(\w+)\s*\)\s*\(.*|(\w+)\s*(?:\[[^\]]*\]\s*)*)$", re.S)


def compare(store: Store) -> tuple[list[dict], str | None]:
    """What differs between the pin and upstream's head.

    Returns:
        ``{"name": "struct.field" or "struct.size", "old": bytes or None, "new": bytes or None}`` for each difference,
        and why they are not known, None where they are.
    """
    try:
        old, new = (_measure(store.tree, commit) for commit in (store.pin, store.head.commit))
    except BuildError as error:
        return [], str(error).splitlines()[0]
    return [
        {"name": name, "old": old.get(name), "new": new.get(name)}
        for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)
    ], None


def _measure(tree: Path, commit: str) -> dict[str, int]:
    if not (compiler := toolchain.cxx()):
        raise BuildError("there is no compiler to ask")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in repo.git(tree, "ls-tree", "-r", "--name-only", commit, *_HEADERS).splitlines():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(repo.git(tree, "show", f"{commit}:{name}"), encoding="utf-8")
        source = folder / "layouts.cpp"
        source.write_text(_program((folder / "include" / "llama.h").read_text(encoding="utf-8")), encoding="utf-8")
        includes = [f"-I{folder / name}" for name in _HEADERS]
        run([compiler, "-w", "-std=c++17", *includes, source, "-o", folder / "layouts"],
            fail=f"the public headers of {commit[:9]} could not be measured")
        return json.loads(subprocess.run([folder / "layouts"], capture_output=True, text=True, check=True).stdout)


def _program(header: str) -> str:
    """A program that prints the layouts of all structs of a header as JSON."""
    lines = []
    for struct, fields in structs(header).items():
        lines.append(f'printf("\\"{struct}.size\\": %zu,\\n", sizeof(struct {struct}));')
        lines += [f'printf("\\"{struct}.{f}\\": %zu,\\n", offsetof(struct {struct}, {f}));' for f in fields]
    body = "\n    ".join(lines)
    return f"""#include <cstddef>
#include <cstdio>
#include "llama.h"
int main() {{
    printf("{{");
    {body}
    printf("\\"end\\": 0}}");
}}
"""


def structs(header: str) -> dict[str, list[str]]:
    """The structs that a C header defines, with their fields in order. Of a nested union or struct, nothing is kept."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", header, flags=re.S)
    found = {}
    for name, body in _STRUCT.findall(text):
        body = re.sub(r"(?:union|struct)\s*\{[^}]*\}\s*\w*\s*;", "", body, flags=re.S)
        names = [match for line in body.split(";") if (match := _NAME.search(line.strip()))]
        found[name] = [match[1] or match[2] for match in names]
    return found
