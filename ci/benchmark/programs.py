"""llama.cpp's own programs on the patched and on the unpatched library: llama-perplexity's figure, llama-bench's speed.

    python -m ci.benchmark.programs            measure and show
    python -m ci.benchmark.programs --write    and put the tables into docs/backends.md

Perplexity is of a text made of this project's own pages, and must be the same to the last digit, chunk by chunk. Speed
is measured in rounds, in which each library runs once, the unpatched one first in every other round; a ratio is taken
within its round. Run it while nothing else runs.

Needs the programs beside both libraries: ``python3 build.py --tools`` and ``python3 build.py --unpatched --tools``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import harness, report  # noqa: E402

PAGE = ROOT / "docs" / "backends.md"

#: characters of the text, and tokens that llama-perplexity reads at once
N_TEXT, N_CTX = 30_000, 512

#: tokens of llama-bench's prompt, and of what it generates
N_PREFILL, N_GENERATE = 256, 64

_FIGURE = re.compile(r"Final estimate: PPL = (\S+ \+/- \S+)")
_CHUNK = re.compile(r"\[(\d+)\](\d+\.\d+)")


def text() -> str:
    """The first characters of this project's pages, in the order of their names."""
    pages = (path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")) if path != PAGE)
    return "\n".join(pages)[:N_TEXT]


def perplexity(folder: Path, model: str, file: Path, threads: int) -> dict:
    """What llama-perplexity says of a text: ``figure``, and ``chunks``, the estimate after each."""
    done = _run(folder / "llama-perplexity", "-m", model, "-f", file, "-c", N_CTX, "-t", threads)
    # the chunks are printed, the figure is logged
    said = done.stdout + done.stderr
    figure = _FIGURE.search(said)
    if figure is None:
        sys.exit(f"{folder / 'llama-perplexity'} gave no figure. The end of what it said:\n{said[-1500:]}")
    return {"figure": figure[1], "chunks": [value for _, value in _CHUNK.findall(said)]}


def speed(folder: Path, model: str, threads: int) -> dict[str, float]:
    """Tokens per second by llama-bench: of a prefill, and of a generation from nothing."""
    done = _run(
        folder / "llama-bench", "-m", model, "-p", N_PREFILL, "-n", N_GENERATE, "-r", 1, "-t", threads, "-o", "json"
    )
    # ggml may report devices before it
    tests = json.loads(done.stdout[done.stdout.index("[\n") :])
    return {"generation" if test["n_gen"] else "prefill": test["avg_ts"] for test in tests}


def _run(program: Path, *arguments) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    command = [str(part) for part in (program, *arguments)]
    done = subprocess.run(command, env=env, text=True, errors="replace", capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{program} failed with {done.returncode}:\n{done.stderr[-1500:]}")
    return done


def summarise(figures: dict[str, dict], speeds: dict[str, list[dict[str, float]]]) -> list[dict]:
    """A row for the perplexity and one for each speed.

    Args:
        figures: library -> what `perplexity` gave.
        speeds: library -> what `speed` gave in each round.
    """
    chunks = {name: found["chunks"] for name, found in figures.items()}
    rows = [{
        "case": f"{len(chunks['patched'])} chunks of {N_CTX} tokens",
        "unpatched": figures["unpatched"]["figure"],
        "patched": figures["patched"]["figure"],
        "equal": figures["unpatched"] == figures["patched"],
    }]
    for case, tokens in (("prefill", N_PREFILL), ("generation", N_GENERATE)):
        pairs = [(ours[case], theirs[case]) for ours, theirs in zip(speeds["patched"], speeds["unpatched"])]
        low, ratio, high = report.quartiles(ours / theirs for ours, theirs in pairs)
        rows.append({
            "case": f"{case} of {tokens} tokens", "ratio_low": low, "ratio": ratio, "ratio_high": high,
            "unpatched": report.quartiles(theirs for _, theirs in pairs)[1],
            "patched": report.quartiles(ours for ours, _ in pairs)[1],
        })
    return rows


def tables(rows: list[dict]) -> list[report.Table]:
    first, *speeds = rows
    figure = (first["case"], first["unpatched"], first["patched"], "yes" if first["equal"] else "no")
    lines = [
        (row["case"], report.shown(row["unpatched"]), report.shown(row["patched"]), f"{row['ratio']:.3f}",
         f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}")
        for row in speeds
    ]
    return [
        report.Table("llama-perplexity", ("case", "unpatched", "patched", "the same after every chunk"), [figure]),
        report.Table("llama-bench, tokens per second", ("case", "unpatched", "patched", "ratio", "quartiles"), lines),
    ]


def folders() -> dict[str, Path]:
    """Where the programs of each library lie: in ``bin`` beside it."""
    import unpatched
    from interp import native

    theirs = unpatched.library()
    found = {"unpatched": theirs and theirs.parent / "bin", "patched": native.find_library().parent.parent / "bin"}
    if not all(folder and (folder / "manifest.json").is_file() for folder in found.values()):
        sys.exit("Programs are missing. Build them: python3 build.py --tools, python3 build.py --unpatched --tools")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a GGUF file (default: the default model)")
    parser.add_argument("--rounds", type=int, default=10, help="of llama-bench (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=harness.cores(), help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/backends.md")
    given = parser.parse_args()
    if min(given.rounds, given.threads) < 1:
        parser.error("rounds and threads are at least 1")
    if given.model and given.write:
        parser.error("the page's tables are of the default model: leave out --model or --write")

    import models

    path, places = given.model or str(models.default_gguf()), folders()
    figures, speeds = {}, {name: [] for name in places}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "text.txt"
        file.write_text(text(), encoding="utf-8")
        for name, folder in places.items():
            figures[name] = perplexity(folder, path, file, given.threads)
            report.say(f"perplexity, {name}: {figures[name]['figure']}")
    before = report.load()
    for number in range(given.rounds):
        # whoever runs second may find the processor warmer, or its clock lower
        for name in sorted(places, reverse=number % 2 == 0):
            speeds[name].append(speed(places[name], path, given.threads))
        report.say(f"round {number + 1} of {given.rounds}")
    rows = summarise(figures, speeds)
    measured = {
        "machine": report.machine(given.threads), "rounds": given.rounds, "load": [before, report.load()],
        "model": Path(path).name, "rows": rows, "perplexity": figures, "speeds": speeds,
    }
    command = f"python -m ci.benchmark.programs --rounds {given.rounds} --write"
    report.publish("programs", measured, lambda: tables(rows), command, page=given.write, to=PAGE)
    return 0 if rows[0]["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
