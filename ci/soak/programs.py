"""One program of each kind that a researcher runs, its arguments drawn from a seed: what is read, changed and swept.

``PROGRAMS[name](model, Draw(model, seed))`` runs one and returns what it found. The same model and seed give the same
program, in any process; what it found must then be the same bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import interp

#: one row of n_embd numbers for each token, in every layer of every model here
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "mlp_in", "mlp_out", "attn_out")
#: with heads; keys and values may have fewer of them
HEADED = ("q", "z", "attn_scores", "k", "v")

EVERYTHING = (*RESIDUAL[2:], *HEADED)

#: tokens of a prompt
SHORTEST, LONGEST = 5, 24

N_CHOSEN = 3

Program = Callable[[interp.Model, "Draw"], Any]

PROGRAMS: dict[str, Program] = {}


def program(fn: Program) -> Program:
    PROGRAMS[fn.__name__] = fn
    return fn


class Draw:
    """Arguments for a model, drawn from a seed."""

    def __init__(self, model: interp.Model, seed: int):
        self._model, self._rng = model, np.random.default_rng(seed)

    def number(self, low: float = -2.0, high: float = 2.0) -> float:
        return float(self._rng.uniform(low, high))

    def whole(self, low: int, high: int) -> int:
        """From ``low`` to ``high``, without the latter."""
        return int(self._rng.integers(low, high))

    def one(self, of) -> Any:
        return of[self.whole(0, len(of))]

    def tokens(self, n: int | None = None) -> list[int]:
        return self._rng.integers(10, self._model.n_vocab - 10, n or self.whole(SHORTEST, LONGEST)).tolist()

    def layer(self, first: int = 0) -> int:
        return self.whole(first, self._model.n_layer)

    def layers(self) -> list[int]:
        return sorted({self.layer() for _ in range(N_CHOSEN)})

    def head(self) -> int:
        return self.whole(0, self._model.n_head)

    def heads(self) -> list[tuple[int, int]]:
        return [(self.layer(), self.head()) for _ in range(N_CHOSEN)]

    def positions(self, n: int) -> Any:
        return self.one([None, -1, "last", [0, n - 1], [self.whole(0, n), self.whole(0, n)]])

    def vector(self, *shape: int) -> np.ndarray:
        return self._rng.normal(size=shape or self._model.n_embd).astype(np.float32)

    def metric(self):
        a = self.whole(10, 1000)
        return interp.logit_diff(a, a + 1)

    def pair(self) -> tuple[list[int], list[int]]:
        """Two prompts that differ in some of their last tokens."""
        clean = self.tokens(self.whole(4, 9))
        n = self.whole(1, len(clean) - 1)
        return clean, clean[:-n] + self.tokens(n)


# // reading


@program
def capture(m, d):
    tokens = d.tokens()
    chosen = interp.at(d.one(RESIDUAL), layers=d.layers(), positions=d.positions(len(tokens)))
    return m.run(tokens, capture=[chosen, "final_norm"], logits=d.one(["all", "last", None]))


@program
def capture_heads(m, d):
    site = d.one(HEADED[:3])
    at = interp.at(site, layers=d.layers(), heads=d.head(), positions=d.one([None, -1, [0, 2]]))
    return m.run(d.tokens(), capture=at)


@program
def capture_everything(m, d):
    return m.run(d.tokens(), capture=EVERYTHING)


# // changing


@program
def arithmetic(m, d):
    tokens = d.tokens()
    at = interp.at(d.one(RESIDUAL), layers=d.layers(), positions=d.positions(len(tokens)))
    value = d.one([d.number(), d.vector(), d.vector(1, m.n_embd)])
    return m.run(tokens, edits=d.one([interp.add, interp.scale, interp.replace])(at, value), capture="resid_post")


@program
def expression(m, d):
    a, b = d.vector(), d.number(1.0, 3.0)
    at = interp.at("resid_post", d.layer())
    return m.run(d.tokens(), edits=interp.edit(at, lambda x: (x * a).tanh() * b + x.rms_norm()))


@program
def on_the_host(m, d):
    factor = d.number()
    at = interp.at("mlp_out", d.layer())
    return m.run(d.tokens(), edits=interp.edit_host(at, lambda x: np.cumsum(x, axis=-1) * factor))


@program
def ablation(m, d):
    tokens = d.tokens()
    other = m.run(d.tokens(len(tokens)), capture="z")
    kind = d.one([{"mode": "zero"}, {"mode": "mean", "mean": other}, {"mode": "resample", "source": other}])
    return m.run(tokens, edits=[interp.ablate(d.heads(), **kind), interp.keep_only(d.layer(), d.head())])


@program
def patching(m, d):
    tokens, site, layer = d.tokens(), d.one(RESIDUAL + HEADED), d.layer()
    source = m.run(d.tokens(len(tokens)), capture=site)
    return m.run(tokens, edits=interp.patch(site, layer, source, positions=d.one([None, -1, [0, 1]])), capture=site)


@program
def steering(m, d):
    tokens = d.tokens()
    steer = interp.steer("resid_post", d.layers(), d.vector(), d.number(), d.positions(len(tokens)))
    return m.run(tokens, edits=[steer, interp.project_out("resid_pre", d.layers(), d.vector(d.whole(1, 4), m.n_embd))])


@program
def knockout(m, d):
    tokens = d.tokens()
    return m.run(tokens, edits=interp.knockout(d.layers(), -1, [0, d.whole(1, len(tokens) - 1)]), capture="attn_scores")


@program
def batch(m, d):
    edits = [[interp.scale(interp.at("z", d.layer(), heads=d.head()), d.number())] for _ in range(N_CHOSEN)]
    return m.run([d.tokens() for _ in edits], capture="resid_post", edits=edits, logits="last")


# // parts of a model


@program
def stop_and_resume(m, d):
    tokens, layer = d.tokens(), d.layer(1)
    start = m.run(tokens, capture=interp.at("resid_post", layer - 1), stop_after=layer - 1)
    edits = interp.ablate([(layer, d.head())])
    return m.resume(start["resid_post", layer - 1], layer, tokens, capture="mlp_out", edits=edits)


@program
def unembed(m, d):
    return m.unembed(d.vector(d.whole(1, 6), m.n_embd))


@program
def weight(m, d):
    return m.weight(d.one(["output_norm.weight", f"blk.{d.layer()}.attn_norm.weight"]))


@program
def graph(m, d):
    return len(m.graph(d.tokens(), capture="attn_scores", edits=interp.scale("mlp_out", d.number())).nodes)


# // the cache


@program
def prefix(m, d):
    with m.prefix(d.tokens()), tempfile.TemporaryDirectory() as folder:
        file = m.save_state(Path(folder) / "state.safetensors")
        before = m.run(d.tokens(), capture="k", edits=interp.scale("q", d.number()))
        with m.load_state(file):
            return before, m.run(d.tokens(), logits="last")


@program
def generation(m, d):
    edits = interp.steer("resid_post", d.layer(), d.vector(), d.number(), d.one([None, "generated"]))
    options = {"max_tokens": d.whole(1, 6), "temperature": d.one([0.0, 1.0]), "seed": d.whole(0, 99), "top_k": 40}
    return m.generate(d.tokens(), edits=edits, capture=interp.at("z", d.layers()), **options)


@program
def abandoned_stream(m, d):
    with m.stream(d.tokens(), max_tokens=9, edits=interp.ablate(d.heads())) as stream:
        return next(iter(stream), None)


# // analyses


@program
def statistics(m, d):
    corpus = [d.tokens() for _ in range(N_CHOSEN)]
    return interp.stats(m, corpus, ("resid_post", "mlp_out"), chunk=d.whole(8, 20), progress=False)


@program
def patch_sweep(m, d):
    site, per_head = d.one([("resid_pre", False), ("z", True), ("mlp_out", False)])
    method = d.one(["batched", "serial"])
    return interp.patch_sweep(
        m, *d.pair(), site, d.metric(), per_head, layers=d.layers(), method=method, progress=False
    )


@program
def ablation_sweep(m, d):
    return interp.ablation_sweep(m, d.tokens(), d.metric(), layers=d.layers(), progress=False)


@program
def knockout_sweep(m, d):
    return interp.knockout_sweep(m, d.tokens(), d.metric(), keys=[0, 1], window=2, layers=d.layers(), progress=False)


@program
def path_patch(m, d):
    return interp.path_patch(m, *d.pair(), sender=[(0, d.head())], metric=d.metric(), progress=False)


@program
def lens(m, d):
    found = interp.logit_lens(m, d.tokens(6), k=3)
    return [found.top(layer) for layer in d.layers()]


@program
def attention(m, d):
    layer = d.layer()
    return interp.attention(m, d.tokens(), layers=layer).pattern(layer)


@program
def attribution(m, d):
    return interp.direct_logit_attribution(m, d.tokens(6), a=d.whole(10, 999)).values


@program
def file(m, d):
    with tempfile.TemporaryDirectory() as folder:
        path = m.run(d.tokens(), capture=d.one(RESIDUAL)).save(Path(folder) / "run.safetensors")
        return interp.Run.load(path)


# // what is refused


class Refused(Exception):
    """What an edit of a program raises on purpose."""


@program
def mistakes(m, d):
    """Errors of every stage: before the run, while the graph is built, while it is computed."""

    def fail(_x):
        raise Refused

    at = interp.at("resid_post", d.layer())
    wrong = [
        {"capture": "l_uot"}, {"edits": interp.edit(at, fail)}, {"edits": interp.edit_host(at, fail)},
        {"edits": interp.edit(at, lambda x: x[:, :-1])}, {"capture": interp.at("z", heads=999)},
    ]  # fmt: skip
    return [_error(lambda: m.run(d.tokens(), **given)) for given in wrong]


def _error(call: Callable[[], Any]) -> str:
    try:
        call()
    except interp.InterpError as err:
        return str(err)
    raise AssertionError("a program that must be refused was run")
