"""What reading and editing cost, interleaved in one run: beside the unpatched library, or beside other libraries.

    python ci/bench.py                 this project against the unpatched library
    python ci/bench.py --peers         also against upstream's eval callback, transformers, TransformerLens, nnsight
    python ci/bench.py … --write       and put the tables into docs/benchmarks.md

Child processes hold a model each. In every round each case runs once, one after the other, so that drift of the
machine's speed falls on all of them; a ratio is taken within its round, and the tables show the median of the ratios
with their quartiles. Run it while nothing else runs: ggml's threads spin, and a core taken away counts many times
over. All numbers, with the machine's description, go to ``out/bench/``.

Needs what ``python3 build.py test`` sets up, and for ``--peers`` the extra ``bench``; a peer that is not installed is
left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import harness, light, peers, report  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true", help="other libraries on the same weights")
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count (default: %(default)s)")
    parser.add_argument(
        "--slow-rounds", type=int, default=3, help="rounds of cases that take most of a minute (default: %(default)s)"
    )
    parser.add_argument(
        "--rows", nargs="+", choices=list(peers.ROWS), default=list(peers.ROWS), help="of --peers: only these"
    )
    parser.add_argument("--threads", type=int, default=harness.cores(), help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the rows to a file")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    given = parser.parse_args()
    if min(given.rounds, given.slow_rounds, given.threads) < 1:
        parser.error("rounds and threads are at least 1")

    import models
    import unpatched

    folder = unpatched.library()
    if folder is None:
        sys.exit("The unpatched library is not built. Build it with: python3 build.py --unpatched")
    path, name = str(models.default_gguf()), "peers" if given.peers else "light"
    if given.peers:
        workers = peers.workers(path, str(models.f32_default()), given.threads, str(folder))
        cases = peers.cases(given.rows)
    else:
        workers, cases = light.workers(path, given.threads, str(folder)), light.cases()

    before = report.load()
    seconds, memory = harness.measure(workers, cases, given.rounds, given.slow_rounds, report.say)
    if not given.peers and any(worker.missing for worker in workers):
        return 1
    rows = peers.summarise(seconds, memory) if given.peers else light.summarise(seconds)
    measured = {
        "machine": report.machine(given.threads), "rounds": given.rounds, "slow_rounds": given.slow_rounds,
        "load": [before, report.load()], "rows": rows,
        "seconds": {case: list(spent.values()) for case, spent in seconds.items()},
    }
    options = "--peers " if given.peers else ""
    slow = f" --slow-rounds {given.slow_rounds}" if given.peers else ""
    command = f"python ci/bench.py {options}--rounds {given.rounds}{slow} --write"
    tables = (lambda: peers.tables(rows)) if given.peers else (lambda: [light.table(rows)])
    report.publish(name, measured, tables, command, copy=given.json, page=given.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
