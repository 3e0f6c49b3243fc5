"""What is written of a measurement: tables on the terminal and in Markdown, and JSON with the machine's description."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from interp.files import written

from .harness import ROOT, cores

PAGE = ROOT / "docs" / "benchmarks.md"

#: whose versions a measurement names
PACKAGES = ("numpy", "llama-cpp-python", "torch", "transformers", "transformer-lens", "nnsight")


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and lines of text; ``left`` names the columns that hold words."""

    title: str
    columns: tuple[str, ...]
    lines: list[tuple[str, ...]]
    left: tuple[str, ...] = ("case", "library", "weights")

    def print(self) -> None:
        from rich.console import Console
        from rich.table import Table as Rich

        table = Rich(title=self.title, title_justify="left")
        for name in self.columns:
            table.add_column(name, justify="left" if name in self.left else "right")
        for line in self.lines:
            table.add_row(*line)
        Console(width=120).print(table)

    def markdown(self) -> str:
        rule = ["---" if name in self.left else "---:" for name in self.columns]
        rows = [self.columns, rule, *self.lines]
        return f"**{self.title}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    low, middle, high = np.percentile(list(values), [25, 50, 75])
    return float(low), float(middle), float(high)


def shown(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}" if value < 1 else f"{value:#.3g}"


def machine(threads: int) -> dict:
    """What numbers depend on: processor, memory, versions and commit."""
    return {
        "date": date.today().isoformat(),
        "cpu": _first("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": threads,
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "llama_cpp": _first(ROOT / "patches" / "upstream.toml", r'commit = "(\w+)"'),
        "commit": _commit(),
    }


def load() -> float | None:
    """How many processes wanted to run during the last minute; None where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def say(text: str) -> None:
    """Tells what happens, while it happens."""
    print(text, file=sys.stderr, flush=True)


def publish(
    name: str, measured: dict, tables: Callable[[], list[Table]], command: str, *, page: bool, copy: Path | None = None,
    to: Path | None = None,
) -> None:
    """Writes and prints what was measured.

    Args:
        name: of the file in ``out/bench``, and of the page's part.
        measured: all of it; ``"rows"`` are what the tables show.
        tables: makes them.
        command: what the page gives to measure it again.
        copy: a file that gets the rows as well.
        page: put the tables into the page.
        to: the page, if it is not `PAGE`.
    """
    # first of all, so that no table's mistake loses what was measured
    file = write_json(name, measured)
    made = tables()
    for table in made:
        table.print()
    print(f"wrote {file.relative_to(ROOT)}")
    if copy:
        with written(copy, [copy.suffix]) as unfinished:
            unfinished.write_text(json.dumps(measured["rows"], indent=1))
    if page:
        write_page(name, made, measured, command, to)
        print(f"wrote the tables into {(to or PAGE).relative_to(ROOT)}")


def write_json(name: str, measured: dict) -> Path:
    """Writes ``out/bench/<name>.json``."""
    path = ROOT / "out" / "bench" / f"{name}.json"
    with written(path, [".json"], make_folders=True) as unfinished:
        unfinished.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    return path


def write_page(name: str, tables: list[Table], measured: dict, command: str, page: Path | None = None) -> None:
    """Puts tables between the page's marks of a name.

    Raises:
        ValueError: the page has no such marks.
    """
    page = page or PAGE
    text = page.read_text(encoding="utf-8")
    part = re.search(rf"(<!-- {name}: written by [^>]+ -->\n).*?(<!-- end of {name} -->)", text, re.DOTALL)
    if part is None:
        raise ValueError(f"{page.name} has no lines <!-- {name}: written by … --> and <!-- end of {name} -->")
    new = [f"```sh\n{command}\n```", _described(measured), *(table.markdown() for table in tables)]
    text = text[: part.end(1)] + "\n" + "\n\n".join(new) + "\n\n" + text[part.start(2) :]
    with written(page, [".md"]) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _described(measured: dict) -> str:
    about = measured["machine"]
    # the commit says which llama.cpp and which bindings are pinned, and a page must not repeat the pin
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if name != "llama-cpp-python")
    rounds = f" {measured['rounds']} rounds." if "rounds" in measured else ""
    loads = " and ".join(str(n) for n in measured.get("load", ()) if n is not None)
    busy = f" Load of the machine before and after: {loads}." if loads else ""
    threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
    text = (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}, {threads}, "
        f"{about['date']}, commit {about['commit']} with the llama.cpp that it pins; "
        f"Python {about['python']}, {versions}.{rounds}{busy}"
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _first(path: str | Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1].strip() if found else None


def _memory() -> int | None:
    found = _first("/proc/meminfo", r"MemTotal:\s*(\d+)")
    return round(int(found) / 2**20) if found else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit, with a plus where the tree differs from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=9", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
