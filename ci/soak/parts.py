"""What is repeated: hooked runs, generated tokens, loads, and the same with the model in a process of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from . import readings
from .programs import EVERYTHING, LONGEST, PROGRAMS, Draw
from .readings import Reading

ROOT = Path(__file__).resolve().parents[2]

#: small random models (tests/recipes.py) by architecture and whether flash attention is on; None: the default model
TINY = (("llama", False), ("mixtral", True), ("gpt2", True), ("gemma2", False))
DEFAULT = (None, True)

#: of so many runs, loads and generations one is the default model's, which takes twenty times as long
DEFAULT_EVERY = 20

N_CTX, N_GENERATE = 256, 64

TOKENS = [11, 4711, 300, 9, 1024, 77, 5]

#: the bounds of the short form in those of the long one
SHORT = 10

#: what does one piece of work, by number, and says how many units that was
Step = Callable[[int], int]


class Checked:
    """Models, and whether their logits stay what they were at first, bit for bit."""

    def __init__(self):
        self._first: dict = {}
        self.changed = 0

    def check(self, model, key) -> None:
        """Run a prompt with nothing attached; ``key``: what decides its logits."""
        digest = hashlib.sha256(model.run(TOKENS).logits.tobytes()).hexdigest()
        self.changed += self._first.setdefault(key, digest) != digest


def load(kind: tuple[str | None, bool], **options):
    """A model of ``TINY``, or `DEFAULT`."""
    import interp
    import models

    arch, flash_attn = kind
    given = {"n_ctx": N_CTX, "flash_attn": flash_attn, "n_threads": 1, **options}
    return interp.Model(models.tiny(arch) if arch else None, **given)


def _held(stack: contextlib.ExitStack, kinds, **options) -> dict:
    """Models that stay open, with what they keep filled now, so that it cannot look like a leak: the texts of tokens
    that were asked for, and the pages of the buffer that the largest graph of all programs needs."""
    held = {kind: stack.enter_context(load(kind, **options)) for kind in kinds}
    for model in held.values():
        model.pieces(range(model.n_vocab))
        [model.vocab.is_end(token) for token in range(model.n_vocab)]
        _touch(model)
    return held


def _touch(model) -> None:
    """The largest graph of all programs: a refused run may have got the model new buffers, of pages that nobody touched."""
    model.run(list(range(LONGEST)), capture=EVERYTHING)


def _check(held: dict, checked: Checked) -> None:
    """What comes before a reading."""
    for kind, model in held.items():
        _touch(model)
        checked.check(model, kind)


@dataclass(frozen=True)
class Part:
    """One process of the soak.

    Attributes:
        unit: what is counted, in the singular.
        prepare: opens what stays open, and gives the step, what runs before each reading (plain runs, or nothing), and
            the id of the model's process where there is one.
        bounds: the largest growth by unit, in bytes and in Python's blocks.
        steps: of the long form, no two alike.
        rounds, period: of the short form, which repeats its first steps: what a round leaves behind is then no larger
            buffer that was needed for the first time. It ends while Python still fills caches, so its bounds are
            `SHORT` times as large.
    """

    unit: str
    prepare: Callable[[contextlib.ExitStack, Checked], tuple[Step, Callable[[], None], int | None]]
    bounds: dict[str, float]
    steps: int
    rounds: int
    period: int


def _runs(stack: contextlib.ExitStack, checked: Checked):
    held = _held(stack, (*TINY, DEFAULT))
    tiny, programs = [held[kind] for kind in TINY], list(PROGRAMS.values())

    def step(i: int) -> int:
        if i % DEFAULT_EVERY == DEFAULT_EVERY - 1:
            model, number = held[DEFAULT], i // DEFAULT_EVERY
        else:
            # the next model for each program when all programs had their turn
            model, number = tiny[i // len(programs) % len(tiny)], i
        programs[number % len(programs)](model, Draw(model, i))
        return 1

    return step, lambda: _check(held, checked), None


def _tokens(stack: contextlib.ExitStack, checked: Checked):
    import interp

    held = _held(stack, (*TINY, DEFAULT))

    def step(i: int) -> int:
        kind = DEFAULT if i % DEFAULT_EVERY == DEFAULT_EVERY - 1 else TINY[i % len(TINY)]
        model, d = held[kind], Draw(held[kind], i)
        edits = [
            interp.steer("resid_post", d.layer(), d.vector(), d.number(), d.one([None, "generated"])),
            d.one([interp.ablate(d.heads()), interp.project_out("resid_pre", d.layers(), d.vector())]),
        ]
        capture = d.one([(), interp.at("resid_post", d.layer(), positions="generated")])
        made = model.generate(d.tokens(), N_GENERATE, edits, capture, d.one([0.0, 1.0]), seed=i)
        return len(made.tokens)

    return step, lambda: _check(held, checked), None


def _loads(_stack: contextlib.ExitStack, checked: Checked):
    options = [
        {"flash_attn": flash_attn, "kv_type": kv_type, "n_ctx": n_ctx, "repack": repack}
        for flash_attn, kv_type in ((True, "f16"), (True, "f32"), (False, "f32"))
        for n_ctx in (64, N_CTX)
        for repack in (True, False)
    ]

    def step(i: int) -> int:
        is_default = i % DEFAULT_EVERY == DEFAULT_EVERY - 1
        arch, _ = DEFAULT if is_default else TINY[i % len(TINY)]
        chosen = options[(i // DEFAULT_EVERY if is_default else i // len(TINY)) % len(options)]
        model = load((arch, True), **chosen)
        PROGRAMS["steering"](model, Draw(model, i))
        checked.check(model, (arch, *chosen.items()))
        if i % 2:  # the others go with their last reference
            model.close()
        return 1

    return step, lambda: None, None


def _isolated_runs(stack: contextlib.ExitStack, checked: Checked):
    held = _held(stack, TINY[:1], isolated=True)
    model = held[TINY[0]]
    programs = list(PROGRAMS.values())

    def step(i: int) -> int:
        programs[i % len(programs)](model, Draw(model, i))
        return 1

    return step, lambda: _check(held, checked), model.pid


def _isolated_loads(_stack: contextlib.ExitStack, checked: Checked):
    def step(i: int) -> int:
        kind = TINY[i % len(TINY)]
        model = load(kind, isolated=True)
        PROGRAMS["steering"](model, Draw(model, i))
        if i % 3 == 2:
            with warnings.catch_warnings(action="ignore"):
                model.kill()
                checked.check(model, kind)  # in the process that takes its place
        checked.check(model, kind)
        if i % 2:
            model.close()
        return 1

    return step, lambda: None, None


PARTS = {
    "runs": Part("hooked run", _runs, {"resident": 200, "heap": 2, "blocks": 0.2}, 10_000, 5, 28),
    # of 64 tokens at most: some generations end early
    "tokens": Part("generated token", _tokens, {"resident": 10, "heap": 0.05, "blocks": 0.05}, 1_600, 5, 5),
    "loads": Part("model load", _loads, {"resident": 1_000, "heap": 10, "blocks": 2}, 1_000, 5, 4),
    "isolated runs": Part(
        "isolated run", _isolated_runs, {"resident": 400, "child": 1_000, "heap": 5, "blocks": 0.5}, 2_000, 8, 28
    ),
    "isolated loads": Part(
        "isolated load", _isolated_loads, {"resident": 4_000, "heap": 50, "blocks": 2}, 150, 4, 2
    ),
}


def run(name: str, n_steps: int, n_readings: int, period: int | None = None) -> Iterator[Reading]:
    """Work through a part and read what the process holds at regular points.

    Args:
        name: of the part.
        n_steps: pieces of work.
        n_readings: after as many steps each.
        period: begin again after so many steps; None: never.
    """
    part, checked, done = PARTS[name], Checked(), 0
    with contextlib.ExitStack() as stack:
        step, check, child = part.prepare(stack, checked)
        for i in range(n_steps):
            done += step(i % period if period else i)
            if (i + 1) * n_readings // n_steps > i * n_readings // n_steps:
                check()
                yield readings.read(done, child, checked.changed)


#: glibc's malloc: one arena, as in a program without threads of its own; a fixed size from which on memory comes from
#: the system and goes back there, otherwise what stays free in the heap depends on the order of all frees; and no cache
#: of freed blocks, which mallinfo2 counts as handed out
ALLOCATOR = {
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}={value}"
        for name, value in {
            "arena_max": 1, "mmap_threshold": 131072, "trim_threshold": 131072, "tcache_count": 0,
        }.items()
    )
}  # fmt: skip


def apart(*args) -> Iterator[Reading]:
    """`run` in a process of its own, which keeps no reading, and where no part finds what another one left free.

    Raises:
        SystemExit: it failed; its errors are on the standard error.
    """
    command = [sys.executable, "-m", __spec__.name, *(str(arg) for arg in args if arg is not None)]
    env = {**os.environ, **ALLOCATOR}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env) as process:
        for line in process.stdout:
            yield Reading(**json.loads(line))
    if process.returncode:
        raise SystemExit(f"the part {args[0]!r} ended with exit code {process.returncode}")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    part, *numbers = sys.argv[1:]
    for reading in run(part, *map(int, numbers)):
        print(json.dumps(asdict(reading)), flush=True)
