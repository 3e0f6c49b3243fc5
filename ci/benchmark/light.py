"""The light table: what reading and editing cost, as ratios to the unpatched library."""

from __future__ import annotations

from . import libraries
from .harness import Case, Seconds, Worker
from .prompts import N_CHUNKS, N_GENERATE, N_PREFILL
from .report import Table, quartiles, shown

#: case -> (what it is compared with, the bound in percent that the project sets itself)
CASES: dict[str, tuple[str | None, float | None]] = {
    "prefill, unpatched": (None, None),
    "prefill, patched": ("prefill, unpatched", None),
    "prefill, l_out of every layer": ("prefill, unpatched", 2.0),
    "prefill, attention of every layer and head": ("prefill, unpatched", 10.0),
    "generate, unpatched": (None, None),
    "generate, patched": ("generate, unpatched", None),
    "generate, l_out of every layer": ("generate, unpatched", 3.0),
    "generate, steering at one layer": ("generate, patched", 3.0),
    "generate, steering what is generated": ("generate, patched", 3.0),
    "generate, one head ablated": ("generate, patched", 3.0),
    "corpus, unpatched": (None, None),
    "corpus, statistics of l_out of every layer": ("corpus, unpatched", 10.0),
}

TITLE = f"{N_PREFILL}-token prefill, {N_GENERATE} tokens generated, a corpus of {N_CHUNKS} x {N_PREFILL} tokens"


def workers(path: str, threads: int, folder: str) -> list[Worker]:
    """The two processes: on the unpatched library through llama-cpp-python, and on the patched one."""
    return [
        Worker("unpatched", libraries.light_unpatched, (path, threads, folder)),
        Worker("patched", libraries.light_patched, (path, threads)),
    ]


def cases() -> list[Case]:
    return [Case(case, "unpatched" if "unpatched" in case else "patched") for case in CASES]


def summarise(seconds: Seconds) -> list[dict]:
    """A row for each case: median seconds, and quartiles of the ratios within a round."""
    rows = []
    for case, (base, bound) in CASES.items():
        row = {"case": case, "seconds": quartiles(seconds[case].values())[1], "bound_percent": bound}
        if base:
            ratios = (seconds[case][number] / seconds[base][number] for number in seconds[case])
            row["ratio_low"], row["ratio"], row["ratio_high"] = quartiles(ratios)
        rows.append(row)
    return rows


def table(rows: list[dict]) -> Table:
    lines = []
    for row in rows:
        ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
        spread = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}" if "ratio" in row else ""
        goal = f"at most {1 + row['bound_percent'] / 100:.2f}" if row["bound_percent"] else ""
        lines.append((row["case"], shown(row["seconds"]), ratio, spread, goal))
    return Table(TITLE, ("case", "seconds", "ratio", "quartiles", "goal"), lines)
