"""Runs every command and example of the pages and compares what comes out with what they print.

    python ci/docs.py                   run and compare; exit code 1 where a page no longer tells the truth
    python ci/docs.py --write           run and write outputs and pictures into the pages
    python ci/docs.py README.md …       only these pages

A page holds blocks of two kinds. ``console``: lines that start with ``$ `` are commands, what follows each is its output.
``python``: run in one namespace for the page; a ``text`` block right after it is what it prints. All of a page runs in
one scratch folder, and every picture that the page shows must have been written there under the same name. Kernels for one
processor round otherwise, which quantised weights make large: the pages are of the library that ``build.py wheel`` makes, whose
kernels are the same on every x86-64 with AVX2 (LLAMA_INTERP_LIB names another). Numbers may differ a little; words may not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __package__ in (None, ""):
    sys.path.insert(0, str(ROOT))

from ci.steps import write_text
from interp import files

PORTABLE = ROOT / "build" / "portable-cpu" / "lib"

#: how far a number may be from the page's, on another kind of processor
ABSOLUTE, RELATIVE = 0.05, 0.1

_BLOCK = re.compile(r"^```(console|python|text)\n(.*?)^```$", re.M | re.S)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)]+\.png)\)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:e[-+]?\d+)?")


@dataclass
class Page:
    """One Markdown file: its text with the outputs replaced by those of this run, and what does not match."""

    path: Path
    text: str = ""
    wrong: list[str] = field(default_factory=list)

    def run(self, folder: Path) -> None:
        """Run all blocks in a folder."""
        source = self.path.read_text(encoding="utf-8")
        blocks, parts, end, names = list(_BLOCK.finditer(source)), [], 0, {"__name__": "__main__"}
        printed: str | None = None
        for block in blocks:
            kind, content = block[1], block[2]
            follows = source[end : block.start()].strip() == ""
            parts.append(source[end : block.start()])
            end = block.end()
            if kind == "console":
                new = _console(content, folder)
            elif kind == "python":
                new, printed = content, _python(content, names, folder)
            else:
                if not follows or printed is None:
                    raise SystemExit(f"{self.path.name}: a text block must follow the python block that prints it")
                new, printed = printed, None
            self._compare(content, new)
            parts.append(f"```{kind}\n{new}```")
        self.text = "".join(parts) + source[end:]

    def _compare(self, old: str, new: str) -> None:
        for before, after in zip(_padded(old, new), _padded(new, old)):
            if not same(before, after):
                self.wrong.append(f"{self.path.name}\n  page: {before}\n  now:  {after}")

    def pictures(self, folder: Path) -> list[tuple[Path, Path]]:
        """Each picture of the page with the one that this run wrote."""
        shown = [self.path.parent / name for name in _PICTURE.findall(self.text)]
        return [(path, folder / path.name) for path in shown]


def _padded(lines: str, other: str) -> list[str]:
    mine = lines.splitlines()
    return mine + ["(nothing)"] * (len(other.splitlines()) - len(mine))


def same(before: str, after: str) -> bool:
    """Whether two lines say the same: equal words, and numbers with a point that differ a little at most."""
    if re.sub(r"\s+", " ", _NUMBER.sub("#", before)).strip() != re.sub(r"\s+", " ", _NUMBER.sub("#", after)).strip():
        return False
    pairs = zip(map(float, _NUMBER.findall(before)), map(float, _NUMBER.findall(after)))
    return all(abs(a - b) <= ABSOLUTE + RELATIVE * max(abs(a), abs(b)) for a, b in pairs)


def _environment() -> dict[str, str]:
    scripts = str(Path(sys.executable).parent)
    # a terminal of fixed width, and no colours
    return os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"], "COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}


def _console(content: str, folder: Path) -> str:
    out = []
    for line in content.splitlines():
        if not line.startswith("$ "):
            continue
        done = subprocess.run(
            ["bash", "-c", line[2:]], cwd=folder, env=_environment(), text=True, encoding="utf-8",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise SystemExit(f"failed with {done.returncode}: {line}\n{done.stdout}")
        out += [line, *(text.rstrip() for text in done.stdout.splitlines())]
    return "".join(f"{line}\n" for line in out)


def _python(content: str, names: dict, folder: Path) -> str:
    printed, before = io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(content, "<page>", "exec"), names)
    finally:
        os.chdir(before)
    return printed.getvalue()


def check(path: Path, write: bool) -> list[str]:
    """Run a page; returns what is wrong with it, nothing after writing."""
    page = Page(path)
    with tempfile.TemporaryDirectory() as scratch:
        page.run(Path(scratch))
        for shown, written in page.pictures(Path(scratch)):
            if not written.is_file():
                raise SystemExit(f"{path.name} shows {shown.name}, but nothing on the page writes it")
            if write:
                shown.parent.mkdir(parents=True, exist_ok=True)
                with files.written(shown, (shown.suffix,)) as unfinished:
                    shutil.copyfile(written, unfinished)
            elif not shown.is_file():
                page.wrong.append(f"{path.name} shows {shown.name}, which is not there")
    if not write:
        return page.wrong
    write_text(path, page.text)
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="default: README.md and docs/*.md")
    parser.add_argument("--write", action="store_true", help="write outputs and pictures into the pages")
    given = parser.parse_args()
    if not PORTABLE.is_dir():
        sys.exit(f"{PORTABLE.relative_to(ROOT)} is not there, and the pages are of that library: python3 build.py wheel --cpu")
    os.environ.setdefault("LLAMA_INTERP_LIB", str(PORTABLE))
    pages = given.pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    wrong = []
    for page in pages:
        print(f"{page.name} ...", flush=True)
        wrong += check(page.resolve(), given.write)
    for line in wrong:
        print(f"no longer true: {line}", file=sys.stderr)
    if wrong:
        print("Look at the differences, then: python ci/docs.py --write", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
