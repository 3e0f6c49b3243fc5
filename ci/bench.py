"""What reading costs, as ratios to the unpatched library, interleaved in one run.

    python ci/bench.py [--rounds 12] [--threads N] [--json FILE]

Two child processes hold the same model, one on the unpatched library through llama-cpp-python, one on the patched
library through ``interp``. In every round each case runs once, one after the other, so that drift of the machine's
speed falls on all of them; a ratio is taken within its round, and the table shows the median of the ratios with
their quartiles. Run it while nothing else runs: ggml's threads spin, and a core taken away counts many times over.

Needs what ``python3 build.py test`` sets up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

N_PREFILL, N_GENERATE, N_CTX = 256, 64, 512

#: of N_PREFILL tokens each: what a corpus is cut into
N_CHUNKS = 4

#: case -> (what it is compared with, the bound in percent that the project sets itself)
CASES = {
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


def prompt(number: int = 0) -> list[int]:
    return np.random.default_rng(number).integers(100, 40000, N_PREFILL).tolist()


def corpus() -> list[list[int]]:
    return [prompt(number) for number in range(N_CHUNKS)]


def serve_unpatched(pipe, path: str, threads: int, folder: str) -> None:
    """Cases of the unpatched library; the pipe takes a case and gives seconds."""
    os.environ["LLAMA_CPP_LIB_PATH"] = folder
    from unpatched import Unpatched

    model = Unpatched(path, N_CTX, threads, flash_attn=True)

    def prefill() -> None:
        model.clear()
        model.decode(prompt())

    def generate() -> None:
        model.clear()
        token = int(model.decode(prompt()[:8], logits="last")[0].argmax())
        for i in range(N_GENERATE - 1):
            token = int(model.decode([token], 8 + i, "last")[0].argmax())

    def decode_corpus() -> None:
        for chunk in corpus():
            model.clear()
            model.decode(chunk, logits="last")

    cases = {"prefill": prefill, "generate": generate, "corpus": decode_corpus}
    _serve(pipe, {f"{name}, unpatched": case for name, case in cases.items()})


def serve_patched(pipe, path: str, threads: int) -> None:
    """Cases of this project; the pipe takes a case and gives seconds."""
    import interp

    model = interp.Model(path, n_ctx=N_CTX, n_threads=threads)
    model.vocab.is_end = lambda token: False  # as many tokens as the other side generates

    def generate(capture=(), edits=()):
        return lambda: model.generate(prompt()[:8], max_tokens=N_GENERATE, capture=capture, edits=edits)

    vector = np.random.default_rng(1).normal(size=model.n_embd).astype(np.float32)

    _serve(
        pipe,
        {
            "prefill, patched": lambda: model.run(prompt()),
            "prefill, l_out of every layer": lambda: model.run(prompt(), capture="l_out"),
            "prefill, attention of every layer and head": lambda: model.run(prompt(), capture="attn_scores"),
            "generate, patched": generate(),
            "generate, l_out of every layer": generate("l_out"),
            "generate, steering at one layer": generate(edits=interp.steer("l_out", 10, vector)),
            "generate, steering what is generated": generate(edits=interp.steer("l_out", 10, vector, positions="generated")),
            "generate, one head ablated": generate(edits=interp.ablate([(10, 3)])),
            "corpus, statistics of l_out of every layer": lambda: interp.stats(model, corpus(), progress=False),
        },
    )


def _serve(pipe, cases: dict) -> None:
    while (case := pipe.recv()) is not None:
        start = time.perf_counter()
        cases[case]()
        pipe.send(time.perf_counter() - start)


def measure(rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of every case in every round, after one round that does not count."""
    import models
    import unpatched

    folder = unpatched.library()
    if folder is None:
        sys.exit("The unpatched library is not built. Build it with: python3 build.py --unpatched")
    path = str(models.default_gguf())
    context = multiprocessing.get_context("spawn")
    pipes, children = {}, []
    for name, serve, extra in (("unpatched", serve_unpatched, (str(folder),)), ("patched", serve_patched, ())):
        pipes[name], theirs = context.Pipe()
        child = context.Process(target=serve, args=(theirs, path, threads, *extra), daemon=True)
        child.start()
        children.append(child)

    def run(case: str) -> float:
        pipe = pipes["unpatched" if "unpatched" in case else "patched"]
        pipe.send(case)
        return pipe.recv()

    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for i in range(rounds + 1):
        for case in CASES:
            spent = run(case)
            if i:
                seconds[case].append(spent)
    for pipe in pipes.values():
        pipe.send(None)
    for child in children:
        child.join()
    return seconds


def summarise(seconds: dict[str, list[float]]) -> list[dict]:
    rows = []
    for case, (base, bound) in CASES.items():
        row = {"case": case, "seconds": float(np.median(seconds[case])), "bound_percent": bound}
        if base:
            low, middle, high = np.percentile(np.array(seconds[case]) / np.array(seconds[base]), [25, 50, 75])
            row |= {"ratio": float(middle), "ratio_low": float(low), "ratio_high": float(high)}
        rows.append(row)
    return rows


def show(rows: list[dict], threads: int, rounds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{N_PREFILL}-token prefill, {N_GENERATE} tokens generated, a corpus of {N_CHUNKS} x {N_PREFILL} tokens"
    table = Table(title=f"{title}, {threads} threads, {rounds} rounds")
    for name in ("case", "seconds", "ratio", "quartiles", "goal"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for row in rows:
        ratio = f"{row['ratio']:.3f}" if "ratio" in row else ""
        quartiles = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}" if "ratio" in row else ""
        goal = f"at most {1 + row['bound_percent'] / 100:.2f}" if row["bound_percent"] else ""
        table.add_row(row["case"], f"{row['seconds']:.3f}", ratio, quartiles, goal)
    Console(width=110).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    parser.add_argument("--json", type=Path, help="also write the rows to a file")
    given = parser.parse_args()
    rows = summarise(measure(given.rounds, given.threads))
    show(rows, given.threads, given.rounds)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
