"""What the patches cost while nothing is attached, in instructions: a prefill, and generation after it.

    python -m ci.benchmark.instructions            count and show
    python -m ci.benchmark.instructions --write    and put the table into docs/benchmarks.md

Valgrind's callgrind runs one small program on the unpatched and on the patched library, with one thread, and counts the
instructions of each decode: building the graph, or seeing that the last one serves again, and computing it. Loading
and Python are left out. Counts do not depend on what else the machine does, and repeat to a few thousand: ggml's hash
tables are keyed by addresses. They tell nothing about time that is spent waiting for memory, which the measured table does. A
minute or two for each library.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import libraries, report  # noqa: E402
from ci.benchmark.prompts import prompt  # noqa: E402

N_PREFILL, N_GENERATE = 32, 8

#: The C interface only passes on to it, and callgrind does not see a function that ctypes calls under its name.
DECODE = "llama_context::decode(llama_batch const&)"

#: how the small program is started, with the model's file and the library's folder
PROGRAM = "import sys; from ci.benchmark.instructions import decode; decode(*sys.argv[1:])"

#: row -> its decodes; the first one of all also allocates, and does not count
ROWS = {
    f"prefill of {N_PREFILL} tokens": slice(1, 2),
    f"generation of {N_GENERATE} tokens": slice(2, 2 + N_GENERATE),
}


def decode(path: str, folder: str) -> None:
    """The small program: two equal prefills, and tokens after the second; a decode each."""
    model = libraries._unpatched(path, 1, folder)
    for _ in range(2):
        model.clear()
        token = int(model.decode(prompt()[:N_PREFILL], logits="last")[0].argmax())
    for i in range(N_GENERATE):
        token = int(model.decode([token], N_PREFILL + i, "last")[0].argmax())


def count(path: str, folder: Path) -> list[int]:
    """Instructions of each decode of the small program on the library in a folder.

    Raises:
        SystemExit: valgrind is missing or failed, or did not find the function.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        sys.exit("valgrind is missing. Install it with: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            valgrind, "--tool=callgrind", "--collect-atstart=no",
            f"--toggle-collect={DECODE}", f"--dump-after={DECODE}",
            f"--callgrind-out-file={scratch}/counts", sys.executable, "-c", PROGRAM, path, str(folder),
        ]  # fmt: skip
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        # a fixed seed: otherwise Python's own dictionaries differ from run to run, and with them the heap
        env = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"valgrind failed on {folder}:\n{done.stderr[-2000:]}")
        found = totals(Path(scratch))
    if len(found) != 2 + N_GENERATE:
        sys.exit(
            f"callgrind counted {len(found)} decodes of {2 + N_GENERATE}. If llama.cpp renamed {DECODE}, change DECODE in "
            f"{Path(__file__).name}."
        )
    return found


def totals(folder: Path) -> list[int]:
    """The counts in callgrind's files ``counts.1``, ``counts.2``, …: one for each decode.

    The file without a number is of what ran after the last one.
    """
    files = sorted(folder.glob("counts.*"), key=lambda path: int(path.suffix[1:]))
    return [int(re.search(r"^totals: (\d+)$", path.read_text(), re.MULTILINE)[1]) for path in files]


def summarise(unpatched: list[int], patched: list[int]) -> list[dict]:
    """A row for each of `ROWS`: instructions of both libraries, and their ratio."""
    rows = []
    for row, part in ROWS.items():
        theirs, ours = sum(unpatched[part]), sum(patched[part])
        rows.append({"case": row, "unpatched": theirs, "patched": ours, "ratio": ours / theirs})
    return rows


def table(rows: list[dict]) -> report.Table:
    lines = [(row["case"], f"{row['unpatched']:,}", f"{row['patched']:,}", f"{row['ratio']:.5f}") for row in rows]
    return report.Table("Instructions with nothing attached", ("case", "unpatched", "patched", "ratio"), lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file (default: the default model)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md")
    given = parser.parse_args()
    if given.model and given.write:
        parser.error("the page's table is of the default model: leave out --model or --write")

    import models
    import unpatched
    from interp import native

    folders = {"unpatched": unpatched.library(), "patched": native.find_library().parent}
    if folders["unpatched"] is None:
        sys.exit("The unpatched library is not built. Build it with: python3 build.py --unpatched")
    path = given.model or str(models.default_gguf())
    counts = {name: count(path, folder) for name, folder in folders.items()}
    rows = summarise(**counts)
    measured = {"machine": report.machine(1), "model": Path(path).name, "rows": rows, "instructions": counts}
    command = "python -m ci.benchmark.instructions --write"
    report.publish("instructions", measured, lambda: [table(rows)], command, page=given.write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
