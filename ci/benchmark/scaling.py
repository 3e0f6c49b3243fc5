"""How the time of a sweep grows: with the length of what differs between two prompts, and with the number of layers.

    python -m ci.benchmark.scaling            measure and show
    python -m ci.benchmark.scaling --write    and put the tables into docs/benchmarks.md

``patch_sweep(…, "resid_pre")`` on random models of the default model's width, F32 with an F32 cache, which differ in
their layers only. Both prompts begin with the same tokens and differ in all that follow. Of n tokens that differ and l layers
there are n * l cells, and a cell runs n / 2 tokens through l / 2 layers on average: twice the tokens should take four
times as long, and 40 layers (40 / 30)^2 times as long as 30. The models, 1 GB, stay in the cache of the tests' models.

Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import harness, libraries, report  # noqa: E402

LAYERS, SUFFIXES = (30, 40), (5, 10, 20)

#: tokens that both prompts begin with: as many as in the pair of the other tables
N_COMMON = 9

#: the bounds that the project sets itself: a tenth above what the count of tokens and layers says
DOUBLED, SLACK = 4.4, 1.1


@dataclass(frozen=True)
class Shape:
    """The sizes of a random Llama besides its layers; those of the default model, with a smaller vocabulary."""

    n_embd: int = 576
    n_head: int = 9
    n_head_kv: int = 3
    n_ff: int = 1536
    n_vocab: int = 2048

    def file(self, n_layer: int) -> Path:
        """The model's GGUF, made first where it is missing."""
        import models
        from tiny_parts import Normal, Tiny, matrix, norm

        kv = self.n_embd // self.n_head * self.n_head_kv
        block = {
            "attn_norm.weight": norm(self.n_embd),
            "attn_q.weight": matrix(self.n_embd, self.n_embd),
            "attn_k.weight": matrix(kv, self.n_embd),
            "attn_v.weight": matrix(kv, self.n_embd),
            "attn_output.weight": matrix(self.n_embd, self.n_embd),
            "ffn_norm.weight": norm(self.n_embd),
            "ffn_gate.weight": matrix(self.n_ff, self.n_embd),
            "ffn_up.weight": matrix(self.n_ff, self.n_embd),
            "ffn_down.weight": matrix(self.n_embd, self.n_ff),
        }
        ends = {"token_embd.weight": Normal((self.n_vocab, self.n_embd), 0.1), "output_norm.weight": norm(self.n_embd)}
        blocks = {f"blk.{i}.{name}": normal for i in range(n_layer) for name, normal in block.items()}
        metadata = {
            "context_length": 512,
            "embedding_length": self.n_embd,
            "block_count": n_layer,
            "feed_forward_length": self.n_ff,
            "attention.head_count": self.n_head,
            "attention.head_count_kv": self.n_head_kv,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.n_embd // self.n_head,
        }
        return models.random_model(f"scaling-{n_layer}", Tiny("llama", metadata, ends | blocks), self.n_vocab)


def pair(n_suffix: int, n_vocab: int) -> tuple[list[int], list[int]]:
    """Two prompts that begin with the same `N_COMMON` random tokens and differ in each of the ``n_suffix`` others."""
    rng = np.random.default_rng(n_suffix)
    clean = rng.integers(0, n_vocab, N_COMMON + n_suffix)
    corrupted = clean.copy()
    corrupted[N_COMMON:] = (clean[N_COMMON:] + rng.integers(1, n_vocab, n_suffix)) % n_vocab
    return clean.tolist(), corrupted.tolist()


def build(path: str, threads: int, n_layer: int, suffixes: tuple[int, ...]) -> libraries.Cases:
    """The sweeps of one model, in the process that calls it."""
    import interp

    model = libraries._model(path, threads, kv_type="f32")
    metric = interp.logit_diff(5, 6)

    def sweep(n_suffix: int) -> Any:
        prompts = pair(n_suffix, model.n_vocab)
        return lambda: interp.patch_sweep(model, *prompts, "resid_pre", metric, progress=False)

    return {_key(n_layer, n_suffix): sweep(n_suffix) for n_suffix in suffixes}


def _key(n_layer: int, n_suffix: int) -> str:
    return f"{n_layer} layers, {n_suffix} tokens"


def measure(shape: Shape, layers, suffixes, threads: int, rounds: int, say) -> harness.Seconds:
    """Every sweep once in each round, a process for each number of layers."""
    workers = [
        harness.Worker(f"{n} layers", build, (str(shape.file(n)), threads, n, tuple(suffixes))) for n in layers
    ]
    cases = [harness.Case(_key(n, n_suffix), f"{n} layers") for n_suffix in suffixes for n in layers]
    return harness.measure(workers, cases, rounds, 0, say)[0]


def comparisons(layers, suffixes) -> Iterator[tuple[str, str, str, float]]:
    """What is compared: the question, a case, the case that it is divided by, and the goal."""
    for n_layer in layers:
        for fewer, more in zip(suffixes, suffixes[1:]):
            goal = DOUBLED ** np.log2(more / fewer)
            yield f"{fewer} to {more} tokens, {n_layer} layers", _key(n_layer, more), _key(n_layer, fewer), goal
    for n_suffix in suffixes:
        for fewer, more in zip(layers, layers[1:]):
            goal = (more / fewer) ** 2 * SLACK
            yield f"{fewer} to {more} layers, {n_suffix} tokens", _key(more, n_suffix), _key(fewer, n_suffix), goal


def summarise(seconds: harness.Seconds, layers, suffixes) -> list[dict]:
    """A row for each sweep, with quartiles of its seconds; one for each comparison, of the ratios within a round."""
    rows: list[dict] = []
    for case, spent in seconds.items():
        low, middle, high = report.quartiles(spent.values())
        rows.append({"case": case, "seconds": middle, "seconds_low": low, "seconds_high": high})
    for question, case, base, goal in comparisons(layers, suffixes):
        ratios = (spent / seconds[base][number] for number, spent in seconds[case].items())
        low, middle, high = report.quartiles(ratios)
        rows.append({"case": question, "ratio": middle, "ratio_low": low, "ratio_high": high, "goal": float(goal)})
    return rows


def tables(rows: list[dict]) -> list[report.Table]:
    """One of seconds and one of ratios."""
    spent, ratios = [], []
    for row in rows:
        if "seconds" in row:
            low, middle, high = (report.shown(row[name]) for name in ("seconds_low", "seconds", "seconds_high"))
            spent.append((row["case"], middle, f"{low} to {high}"))
        else:
            low, middle, high = (f"{row[name]:.2f}" for name in ("ratio_low", "ratio", "ratio_high"))
            ratios.append((row["case"], middle, f"{low} to {high}", f"at most {row['goal']:.2f}"))
    return [
        report.Table("A sweep of resid_pre", ("case", "seconds", "quartiles"), spent),
        report.Table("How it grows", ("case", "times", "quartiles", "goal"), ratios),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="rounds that count (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=harness.cores(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the rows to a file")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    given = parser.parse_args()
    if min(given.rounds, given.threads) < 1:
        parser.error("rounds and threads are at least 1")

    before = report.load()
    seconds = measure(Shape(), LAYERS, SUFFIXES, given.threads, given.rounds, report.say)
    rows = summarise(seconds, LAYERS, SUFFIXES)
    measured = {
        "machine": report.machine(given.threads), "rounds": given.rounds, "load": [before, report.load()], "rows": rows,
        "seconds": {case: list(spent.values()) for case, spent in seconds.items()},
    }  # fmt: skip
    command = f"python -m ci.benchmark.scaling --rounds {given.rounds} --write"
    report.publish("scaling", measured, lambda: tables(rows), command, copy=given.json, page=given.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
