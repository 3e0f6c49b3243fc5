"""Statistics over a long corpus: what they cost beside plain decoding, and whether memory grows.

    python -m ci.benchmark.corpus [--tokens 100000] [--plain-every 3] [--threads N]

One process takes statistics of l_out of every layer over the whole corpus in one pass; another, on the unpatched library,
decodes some of the same chunks plainly, in between, so that drift of the machine's speed falls on both.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import harness, libraries, report  # noqa: E402

#: tokens of a chunk, and chunks that are timed together
CHUNK, GROUP = 256, 4


def chunks(number: int) -> list[list[int]]:
    """The chunks of a group: random tokens, since a kernel does not ask what they mean."""
    return np.random.default_rng(number).integers(100, 40000, (GROUP, CHUNK)).tolist()


def plain(pipe, path: str, threads: int, folder: str) -> None:
    """The other process: decodes the groups that it is told, and answers with the seconds."""
    model = libraries._unpatched(path, threads, folder)
    pipe.send(0.0)
    while (number := pipe.recv()) is not None:
        start = time.perf_counter()
        for chunk in chunks(number):
            model.clear()
            model.decode(chunk, logits="last")
        pipe.send(time.perf_counter() - start)


def resident() -> float:
    """Resident memory of this process in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def measure(n_tokens: int, plain_every: int, threads: int) -> dict:
    import interp
    import models
    import unpatched

    path = str(models.default_gguf())
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    child = context.Process(target=plain, args=(theirs, path, threads, str(unpatched.library())), daemon=True)
    child.start()
    pipe.recv()
    model = interp.Model(path, n_ctx=512, n_threads=threads)
    spent: list[float] = []
    ratios: list[float] = []
    memory: list[float] = []

    def corpus():
        for number in range(n_tokens // (GROUP * CHUNK)):
            other = None
            if number % plain_every == 0:
                pipe.send(number)
                other = pipe.recv()
            start = time.perf_counter()
            yield from chunks(number)
            spent.append(time.perf_counter() - start)
            memory.append(resident())
            if other is not None:
                ratios.append(spent[-1] / other)

    stats = interp.stats(model, corpus(), chunk=CHUNK, progress=False)
    pipe.send(None)
    child.join()
    low, middle, high = np.percentile(ratios[1:], [25, 50, 75])
    tenth = max(1, len(memory) // 10)
    return {
        "tokens": stats.n_tokens, "seconds": sum(spent), "ratio": middle, "ratio_low": low, "ratio_high": high,
        "groups_compared": len(ratios) - 1, "resident_mib_after_a_tenth": memory[tenth], "resident_mib_at_the_end": memory[-1],
        "machine": report.machine(threads),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--plain-every", type=int, default=3, help="decode every Nth group plainly as well")
    parser.add_argument("--threads", type=int, default=harness.cores())
    given = parser.parse_args()
    found = measure(given.tokens, given.plain_every, given.threads)
    print(json.dumps(found, indent=1))
    report.write_json("corpus", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
