"""What changes the bits of a run, and by how much: threads, batches, flash attention, cache, weights, kernels, backend.

    python -m ci.determinism            measure and show
    python -m ci.determinism --write    and put the tables into docs/reliability.md

Every setting runs in a process of its own and is compared with the plain one: one thread, flash attention, an F16
cache, the whole prompt at once. Vulkan needs a library built for it (``--vulkan FOLDER``) and is measured on whatever
device it finds, such as Mesa's llvmpipe; other CPU instructions need a library that was compiled for them
(``--instructions FOLDER``). Without one, its row stays empty.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ci.benchmark import report  # noqa: E402

PAGE = ROOT / "docs" / "reliability.md"

TEXT = (
    "The Eiffel Tower is located in the city of Paris, and the Colosseum in Rome. When Mary and John went to the store,"
    " John gave a drink to Mary. Water boils at 100 degrees, but on a mountain it takes less."
)

#: tokens of the prompt that a split puts into the first batch, that are generated, that an emulated GPU is given, and of
#: a long prompt
N_FIRST, N_GENERATE, N_EMULATED, N_LATE = 24, 12, 12, 600

PLAIN = {"n_ctx": 1024, "n_threads": 1}

MODELS = ("Q4_1", "F32")


@dataclass(frozen=True)
class Setting:
    """One way to run the prompt.

    Attributes:
        case: what is other than in the plain run.
        options: of the model.
        how: ``"whole"``, or a function's name below.
        weights: one of `MODELS` instead of the plain run's.
        library: the folder of another library.
        missing: why it cannot be measured.
        n_tokens: of the prompt, None: all.
        base: what it is compared with, None: the plain run over the same tokens.
    """

    case: str
    options: dict = field(default_factory=dict)
    how: str = "whole"
    weights: str | None = None
    library: Path | None = None
    missing: str = ""
    n_tokens: int | None = None
    base: Setting | None = None


@dataclass(frozen=True)
class Found:
    """What a setting gave: the tokens that it ran, and from ``first`` on its logits and residual stream.

    Shapes: ``logits`` (n_rows, n_vocab), ``resid`` (n_layer, n_rows, n_embd), or None.
    """

    tokens: list[int]
    first: int
    logits: np.ndarray
    resid: np.ndarray | None


# // ways to run: each (model, tokens) -> Found


def whole(model, tokens) -> Found:
    run = model.run(tokens, capture="l_out")
    return Found(tokens, 0, run.logits, run["l_out"])


def split(model, tokens) -> Found:
    with model.prefix(tokens[:N_FIRST]):
        run = model.run(tokens[N_FIRST:], capture="l_out")
    return Found(tokens, N_FIRST, run.logits, run["l_out"])


def beginning(model, tokens) -> Found:
    run = model.run(tokens * (N_LATE // len(tokens)), capture="l_out")
    return Found(tokens, 0, run.logits[: len(tokens)], run["l_out"][:, : len(tokens)])


def generated(model, tokens) -> Found:
    made = model.generate(tokens, N_GENERATE, capture="l_out").run
    # the row that chose the first token belongs to the prompt's batch
    rows = len(made.tokens) - len(tokens)
    return Found(made.tokens, len(tokens), made.logits[1:][:rows], made["l_out"][:, len(tokens) :])


def generated_late(model, tokens) -> Found:
    """After so many tokens that flash attention shares the keys of one query among the threads."""
    made = model.generate(tokens * (N_LATE // len(tokens)), 4, capture=_at_generated()).run
    return Found(made.tokens, 0, made.logits[1:], made["l_out"])


def _at_generated():
    import interp

    return interp.at("l_out", positions="generated")


def last(model, tokens) -> Found:
    return Found(tokens, len(tokens) - 1, model.run(tokens, logits="last").logits, None)


def everything_read(model, tokens) -> Found:
    run = model.run(tokens, capture=("l_out", "attn_scores", "q", "k", "v", "z", "mlp_act", "final_norm"))
    return Found(tokens, 0, run.logits, run["l_out"])


def resumed(model, tokens) -> Found:
    layer = model.n_layer // 2
    start = model.run(tokens, capture="l_out", stop_after=layer - 1)["l_out"]
    run = model.resume(start[-1], layer, tokens, capture="l_out")
    return Found(tokens, 0, run.logits, np.concatenate([start, run["l_out"]]))


def serial(model, tokens, method: str = "serial") -> Found:
    """The values of a sweep in the place of logits: (1, n_layer * n_columns)."""
    import interp

    other = [*tokens[:4], tokens[4] + 1, *tokens[5:12]]
    sweep = interp.patch_sweep(
        model, tokens[:12], other, "resid_pre", interp.logit_diff(tokens[12], tokens[13]), method=method, progress=False
    )
    return Found(tokens, 0, sweep.values.reshape(1, -1), None)


def batched(model, tokens) -> Found:
    return serial(model, tokens, "batched")


def settings(vulkan: Path, instructions: Path | None) -> list[Setting]:
    has_vulkan = vulkan.is_dir()
    late, exact = Setting("", how="generated_late"), Setting("", {"flash_attn": False}, how="generated_late")
    return [
        Setting("nothing: the same in another process"),
        Setting("the model in a process of its own (`isolated=True`)", {"isolated": True}),
        Setting("everything read (`capture`)", how="everything_read"),
        Setting("stopped at half of the layers and resumed", how="resumed"),
        Setting("2 threads", {"n_threads": 2}),
        Setting("4 threads", {"n_threads": 4}),
        Setting("2 threads, tokens generated after 600 others", {"n_threads": 2}, "generated_late", base=late),
        Setting("4 threads, likewise", {"n_threads": 4}, "generated_late", base=late),
        Setting(
            "2 threads, likewise, flash attention off in both", {"n_threads": 2, "flash_attn": False}, "generated_late",
            base=exact,
        ),
        Setting("the prompt in two batches (`prefix`)", how="split"),
        Setting("the beginning of a prompt of 600 tokens", how="beginning"),
        Setting("tokens one at a time (`generate`)", how="generated"),
        Setting('`logits="last"`', how="last"),
        Setting("a sweep, batched instead of serial: its values", how="batched", base=Setting("", how="serial")),
        Setting("flash attention off", {"flash_attn": False}),
        Setting("KV cache F32", {"kv_type": "f32"}),
        Setting("KV cache Q8_0", {"kv_type": "q8_0"}),
        Setting("weights not repacked (`repack=False`)", {"repack": False}),
        Setting("weights dequantised to F32", weights="F32"),
        Setting(
            "CPU instructions: no AVX2, FMA, F16C", library=instructions,
            missing="" if instructions else "no library that was compiled for others",
        ),
        Setting(
            f"Vulkan, the first {N_EMULATED} tokens", {"device": "vulkan:0"}, library=vulkan, n_tokens=N_EMULATED,
            missing="" if has_vulkan else "no library built with --vulkan",
        ),
    ]  # fmt: skip


# // measuring


def _set_environment(env: dict[str, str]) -> None:
    os.environ.update(env)


def _measure(weights: str, options: dict, how: str, tokens: list[int] | None, n_tokens: int | None) -> Found:
    """In a process of its own."""
    import interp
    import models

    path = models.f32_default() if weights == "F32" else None
    with interp.Model(path, **{**PLAIN, **options}) as model:
        tokens = model.tokens(TEXT)[:n_tokens] if tokens is None else tokens
        return globals()[how](model, tokens)


def measure(weights: str, setting: Setting, tokens: list[int] | None = None) -> Found:
    """What a setting gives on a model, in a fresh process; ``tokens`` None: those of `TEXT`."""
    env = {"GGML_VK_VISIBLE_DEVICES": "0", **({"LLAMA_INTERP_LIB": str(setting.library)} if setting.library else {})}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _set_environment, (env,)) as pool:
        call = setting.weights or weights, setting.options, setting.how, tokens, setting.n_tokens
        return pool.submit(_measure, *call).result()


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The largest difference of two arrays, and the largest as a share of the largest magnitude of its row in ``a``."""
    gap, size = np.abs(a.astype(np.float64) - b), np.abs(a).max(axis=-1)
    return float(gap.max()), float((gap.max(axis=-1) / size).max())


def compare(plain: Found, found: Found, is_sweep: bool = False) -> dict:
    """A row: differences of logits and residual stream, and how many rows have another top token."""
    # where another token was generated, what follows is another text
    n_rows = len(found.logits) if is_sweep else _n_common(plain, found)
    found = replace(found, logits=found.logits[:n_rows], resid=None if found.resid is None else found.resid[:, :n_rows])
    rows = slice(found.first, found.first + n_rows)
    wanted = plain.logits[rows]
    row = {"logits": difference(wanted, found.logits)}
    if found.resid is not None:
        row["resid"] = difference(plain.resid[:, rows], found.resid)
    if not is_sweep:
        row["top"] = [int((wanted.argmax(-1) != found.logits.argmax(-1)).sum()), len(wanted)]
    return row


def _n_common(plain: Found, found: Found) -> int:
    """Rows of ``found`` up to the first token that the plain run does not have."""
    pairs = zip(plain.tokens[len(found.tokens) - len(found.logits) :], found.tokens[len(found.tokens) - len(found.logits) :])
    other = [a != b for a, b in pairs]
    return other.index(True) if True in other else len(found.logits)


def rows(weights: str, chosen: list[Setting]) -> Iterator[dict]:
    """A row for each setting, of one model."""
    plain = Setting("")
    known: dict = {}
    for setting in chosen:
        if setting.missing or setting.weights == weights:
            yield {"case": setting.case, "missing": setting.missing or "these are"}
            continue
        is_sweep = setting.how == "batched"
        found, base = measure(weights, setting), setting.base or plain
        # one that generates is given the prompt only
        tokens = found.tokens if base is plain else None
        key = (base.case, base.how, *base.options.items(), *(tokens or ()))
        if key not in known:
            known[key] = measure(weights, base, tokens)
        yield {"case": setting.case, **compare(known[key], found, is_sweep)}
        report.say(f"{weights}: {setting.case}")


def table(weights: str, lines: list[dict]) -> report.Table:
    columns = ("case", "logits", "share", "residual stream", "share of it", "other top token")
    cells = []
    for row in lines:
        if "missing" in row:
            cells.append((f"{row['case']}: {row['missing']}", "", "", "", "", ""))
            continue
        resid = [_shown(value) for value in row["resid"]] if "resid" in row else ["", ""]
        top = "{} of {}".format(*row["top"]) if "top" in row else ""
        cells.append((row["case"], *map(_shown, row["logits"]), *resid, top))
    title = "The default model, weights in Q4_1" if weights == "Q4_1" else "The same, dequantised to F32"
    return report.Table(f"{title}: the largest difference from the plain run", columns, cells)


def _shown(value: float) -> str:
    return f"{value:.1e}" if value else "same bits"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vulkan", type=Path, default=ROOT / "build" / "vulkan" / "lib", help="default: %(default)s")
    parser.add_argument("--instructions", type=Path, help="a library that was compiled for other CPU instructions")
    parser.add_argument("--json", type=Path, help="also write the rows to a file")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    given = parser.parse_args()

    chosen = settings(given.vulkan, given.instructions)
    found = {weights: list(rows(weights, chosen)) for weights in MODELS}
    measured = {"machine": report.machine(1), "rows": found}
    report.publish(
        "determinism", measured, lambda: [table(*item) for item in found.items()], "python -m ci.determinism --write",
        page=given.write, copy=given.json, to=PAGE,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
