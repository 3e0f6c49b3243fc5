"""The table of peers: the same work in other libraries, on the same weights, as ratios to this project."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from . import libraries, torch_peers
from .harness import Case, Memory, Seconds, Worker
from .prompts import LAYER, N_GENERATE, N_PREFILL
from .report import Table, quartiles, shown

OURS, OURS_F32 = "llama-interp", "llama-interp, F32"

#: case -> what a table calls it; the first part of a case's key
ROWS = {
    "prefill": f"prefill of {N_PREFILL} tokens",
    "prefill_resid": "the same, residual stream of every layer read",
    "prefill_attention": "the same, attention of every layer and head read",
    "generate": f"generation of {N_GENERATE} tokens",
    "generate_resid": "the same, residual stream of every layer read",
    "generate_steer": f"the same, steered at layer {LAYER}",
    "sweep_resid": "sweep of the residual stream, 30 layers x 14 positions",
    "sweep_resid_unpruned": "the same, cells that are known to change nothing run as well",
    "sweep_z": "sweep of the heads' z, 30 layers x 9 heads",
}

#: row -> how many times as long as ours TransformerLens should take on the same weights, at least
GOALS = {"sweep_resid": 40, "sweep_resid_unpruned": 10, "sweep_z": 20}


@dataclass(frozen=True)
class Subject:
    """A library on some weights.

    Attributes:
        name: as tables call it.
        weights: Q4_1 is the default model as it comes, F32 the same dequantised.
        rows: the cases that it has.
        slow: those of them that take most of a minute.
        same: those of them for which another one's measurement stands: it knows no difference between the two.
    """

    name: str
    weights: str
    rows: tuple[str, ...]
    slow: tuple[str, ...] = ()
    same: dict[str, str] = field(default_factory=dict)

    def case(self, row: str) -> str:
        """The key of the case that is measured for a row."""
        return f"{self.same.get(row, row)}, {self.name}"

    @property
    def base(self) -> str:
        """This project on the same weights."""
        return OURS if self.weights == "Q4_1" else OURS_F32


_TORCH = ("prefill", "prefill_resid", "prefill_attention", "generate", "generate_resid", "generate_steer")
_SWEEPS = ("sweep_resid", "sweep_resid_unpruned", "sweep_z")

SUBJECTS = (
    Subject(OURS, "Q4_1", tuple(ROWS)),
    Subject("llama.cpp, unpatched", "Q4_1", ("prefill", "generate", "generate_steer")),
    Subject("llama.cpp, cb_eval", "Q4_1", ("prefill_resid", "generate_resid")),
    Subject(OURS_F32, "F32", tuple(ROWS)),
    Subject("transformers", "F32", _TORCH),
    Subject("TransformerLens", "F32", _TORCH + _SWEEPS, _SWEEPS, {"sweep_resid_unpruned": "sweep_resid"}),
    Subject("nnsight", "F32", _TORCH),
)


def workers(path: str, exact: str, threads: int, folder: str) -> list[Worker]:
    """A process for each subject.

    Args:
        path: the default model.
        exact: the same in F32.
        folder: of the unpatched library.
    """
    builds = {
        OURS: (libraries.ours, path, False),
        "llama.cpp, unpatched": (libraries.unpatched, path, folder),
        "llama.cpp, cb_eval": (libraries.cb_eval, path, folder),
        OURS_F32: (libraries.ours, exact, True),
        "transformers": (torch_peers.transformers, exact),
        "TransformerLens": (torch_peers.transformer_lens, exact),
        "nnsight": (torch_peers.nnsight, exact),
    }
    return [
        Worker(subject.name, build, (file, threads, subject.name, *more))
        for subject in SUBJECTS
        for build, file, *more in [builds[subject.name]]
    ]


def cases(rows: Iterable[str] = tuple(ROWS)) -> list[Case]:
    """Row by row, so that what is compared runs one after the other."""
    found = {
        subject.case(row): Case(subject.case(row), subject.name, row in subject.slow)
        for row in rows
        for subject in SUBJECTS
        if row in subject.rows
    }
    return list(found.values())


def summarise(seconds: Seconds, memory: dict[str, Memory]) -> list[dict]:
    """A row for each case that ran, and one of each subject's memory.

    ``ratio`` compares with this project on the same weights, ``ratio_default`` with the default model: both are
    ``[lower quartile, median, upper quartile]`` of the ratios within a round.
    """
    rows = []
    for row in ROWS:
        for subject in SUBJECTS:
            spent = seconds.get(subject.case(row)) if row in subject.rows else None
            if not spent:
                continue
            low, middle, high = quartiles(spent.values())
            entry = {
                "row": row, "subject": subject.name, "weights": subject.weights, "rounds": len(spent),
                "seconds": middle, "seconds_low": low, "seconds_high": high,
                "goal": GOALS.get(row) if subject.name == "TransformerLens" else None,
            }
            for name, base in (("ratio", subject.base), ("ratio_default", OURS)):
                of = seconds.get(f"{row}, {base}", {})
                ratios = [spent[number] / of[number] for number in spent if number in of]
                entry[name] = list(quartiles(ratios)) if ratios and base != subject.name else None
            rows.append(entry)
    for subject in SUBJECTS:
        if peak := memory.get(subject.name):
            entry = {"row": "memory", "subject": subject.name, "weights": subject.weights}
            rows.append(entry | {"bytes": peak.whole, "bytes_used": peak.used})
    return rows


def tables(rows: list[dict]) -> list[Table]:
    """One table for each row of cases, and one of the memory."""
    found = []
    for row, title in ROWS.items():
        # a column of goals only where there are some
        goals = ("goal",) if row in GOALS else ()
        lines = [
            (
                entry["subject"], entry["weights"], shown(entry["seconds"]), _ratio(entry["ratio"]),
                *(f"at least {entry[goal]}" if entry[goal] else "" for goal in goals),
                _ratio(entry["ratio_default"]), str(entry["rounds"]),
            )
            for entry in rows
            if entry["row"] == row
        ]
        if lines:
            title = title.replace("the same", ROWS.get(row.rpartition("_")[0], ""))
            heads = ("library", "weights", "seconds", f"times {OURS}", *goals, "times its default", "rounds")
            found.append(Table(title[0].upper() + title[1:], heads, lines))
    lines = [
        (entry["subject"], entry["weights"], *(_mebibytes(entry[name]) for name in ("bytes", "bytes_used")))
        for entry in rows
        if entry["row"] == "memory"
    ]
    found.append(Table("Peak resident memory, MiB", ("library", "weights", "whole process", "after loading"), lines))
    return found


def _ratio(ratio: list[float] | None) -> str:
    if ratio is None:
        return ""
    low, middle, high = map(shown, ratio)
    return f"{middle} ({low} to {high})"


def _mebibytes(n: int | None) -> str:
    return "" if n is None else f"{n / 2**20:.0f}"
