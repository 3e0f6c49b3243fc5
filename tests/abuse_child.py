"""Runs programs that are plain data, and answers what became of them: for ``child.Child``.

A program is what ``programs`` in ``abuse_programs.py`` makes. The answer is ``"ok"``, the name of an InterpError, or
``"BUG …"`` for any other exception and for a result of the wrong shape. The question ``"plain"`` runs a prompt on every
model, and is answered by a hash of all logits.
"""

from __future__ import annotations

import hashlib
import math
import traceback
from functools import lru_cache

import numpy as np

import interp
import models
from child import serve

#: names of models in programs: architecture, and whether flash attention is on
MODELS = [f"{arch}{suffix}" for arch in ("llama", "gpt2", "gemma2", "mixtral") for suffix in ("", "-flash")]

N_CTX = 48
PLAIN = [11, 4711, 300, 9, 1024, 77, 5]


class Raised(Exception):
    """What an edit of a program raises on purpose."""


@lru_cache(maxsize=None)
def load(name: str) -> interp.Model:
    arch, flash = name.removesuffix("-flash"), name.endswith("-flash")
    return interp.Model(models.tiny(arch), n_ctx=N_CTX, flash_attn=flash, n_threads=1)


def number(value):
    """A number that JSON holds, or the name of one that it does not."""
    return float(value) if value in ("nan", "inf", "-inf") else value


def array(shape: list[int], fill) -> np.ndarray:
    assert math.prod(shape) < 1e6, "a program of the generator's own making that needs gigabytes"
    if fill == "random":
        return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)
    return np.full(shape, number(fill), np.float32)


def cut(part):
    """An index of a slice expression."""
    if part == "...":
        return ...
    return slice(*part) if isinstance(part, list) else part


class Expression:
    """An edit's function from its description."""

    def __init__(self, node: list, kept: list):
        self.node, self.kept = node, kept

    def __call__(self, x: interp.Tensor):
        y = self.value(self.node, x)
        self.kept.append(x)
        return y

    def value(self, node: list, x: interp.Tensor):
        kind, *given = node
        if kind == "raise":
            raise Raised("on purpose")
        if kind in ("none", "text", "truth"):
            return {"none": None, "text": "x", "truth": True}[kind]
        if kind in ("x", "number", "array", "kept"):
            return self._leaf(kind, given, x)
        if kind in ("fit", "concat", "binary"):
            return self._combine(kind, given, x)
        y = self.value(given[0], x)
        if kind == "call":
            return getattr(y, given[1])(*[number(v) for v in given[2]])
        if kind == "shape":
            return getattr(y, given[1])(*given[2])
        if kind == "slice":
            return y[tuple(cut(part) for part in given[1])]
        raise AssertionError(f"no such node: {kind}")

    def _leaf(self, kind: str, given: list, x: interp.Tensor):
        if kind == "x":
            return x
        if kind == "number":
            return number(given[0])
        if kind == "array":
            return array(*given)
        return self.kept[0] if self.kept else x

    def _combine(self, kind: str, given: list, x: interp.Tensor):
        if kind == "fit":
            # whatever it is, brought to the shape of x by way of one number
            y = x * 0.0 + self.value(given[0], x)
            return y if y.shape == x.shape else x + 0.01 * y.reshape(1, -1).sum().reshape(1)
        if kind == "concat":
            return self.value(given[0], x).concat(self.value(given[1], x), given[2])
        a, b = self.value(given[1], x), self.value(given[2], x)
        return getattr(a, f"__{given[0]}__")(b) if isinstance(a, interp.Tensor) else getattr(b, f"__r{given[0]}__")(a)


def selector(given):
    return interp.at(**given) if isinstance(given, dict) else given


def edits(given: list, kept: list) -> list:
    found = []
    for one in given:
        if one["kind"] == "edit":
            found.append(interp.edit(selector(one["at"]), Expression(one["fn"], kept)))
        elif one["kind"] == "other":
            found.append(one["value"])
        else:
            value = one["value"]
            value = array(*value) if isinstance(value, list) else number(value)
            found.append(getattr(interp, one["kind"])(selector(one["at"]), value))
    return found


def check_run(run: interp.Run, n_logits: int | None, n_vocab: int) -> None:
    found = None if run.logits is None else run.logits.shape
    assert found == (None if n_logits is None else (n_logits, n_vocab)), f"logits of shape {found}"
    for key in run.keys:
        assert run[str(key)].size >= 0


def do(program: dict, kept: list) -> None:
    """Run a program; whatever it raises goes to the caller."""
    model, call = load(program["model"]), program["call"]
    if call == "unembed":
        logits = model.unembed(array(*program["resid"]))
        assert logits.shape[-1] == model.n_vocab
        return
    given = {"capture": [selector(s) for s in program["capture"]], "edits": edits(program["edits"], kept)}
    prompt = program["prompt"]
    if call == "generate":
        made = model.generate(prompt, **given, **{k: number(v) for k, v in program["options"].items()})
        check_run(made.run, len(made.tokens), model.n_vocab)
    elif call == "resume":
        run = model.resume(array(*program["resid"]), program["from_layer"], prompt, **given)
        check_run(run, len(run.tokens), model.n_vocab)
    else:
        logits, stop = program["logits"], program["stop_after"]
        run = model.run(prompt, **given, logits=logits, stop_after=stop)
        for run in run if isinstance(run, list) else [run]:
            n_logits = None if stop is not None or logits is None else 1 if logits == "last" else len(run.tokens)
            check_run(run, n_logits, model.n_vocab)


def outcome(program: dict, kept: list) -> str:
    try:
        do(program, kept)
    except interp.InterpError as err:
        # an assertion that failed was made an error, but nothing here should have come so far
        if not str(err) or "GGML_ASSERT" in str(err):
            return f"BUG {err!r}"
        return type(err).__name__
    except Exception:
        return f"BUG {traceback.format_exc()}"
    return "ok"


def plain() -> str:
    digest = hashlib.sha256()
    for name in MODELS:
        digest.update(load(name).run(PLAIN).logits.tobytes())
    return digest.hexdigest()


def main() -> None:
    kept: list = []  # tensors of edits that have returned, for later programs to misuse

    def answer(program) -> str:
        if program == "plain":
            return plain()
        with np.errstate(all="ignore"):
            found = outcome(program, kept)
        del kept[:-2]
        return found

    serve(answer)


if __name__ == "__main__":
    main()
