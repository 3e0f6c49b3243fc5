"""The edits whose effect is compared with transformers, and the committed logits under them.

Each edit is described once and can be made on both sides: `ours` gives it to `interp`, `theirs` hooks it into
transformers. What an edit puts in is drawn from a seed, or is what the same side holds when it runs `OTHER`.

`edits.npz` holds a JSON text `meta` and, by the name of the edit, logits (n_tokens, ceil(n_vocab / LOGIT_STRIDE)).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import interp
from reference import hooks
from reference.values import LOGIT_STRIDE

PATH = Path(__file__).with_name("edits.npz")

#: what is run under each edit, and the prompt of as many tokens that patches and means are taken from
PROMPT = "The Eiffel Tower is located in the city of"
OTHER = "My old friend Maria was born in the town of"


@dataclass(frozen=True)
class Case:
    """An edit on both sides."""

    name: str

    def ours(self, model: interp.Model, other: list[int]) -> interp.Edit:
        """The edit as a user of `interp` makes it; ``other`` are the tokens of `OTHER`."""
        raise NotImplementedError

    def theirs(self, model: Any, other: list[int]) -> AbstractContextManager:
        """The edit as hooks on a transformers model, in place while the context is open."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ablate(Case):
    """One head's `z` is set to zero, to its mean over the tokens of `OTHER`, or to what it is at each of them.

    Zero may be put at another site, such as `attn_scores`, where it must have the effect that it has at `z`.
    """

    layer: int
    head: int
    mode: str = "zero"
    site: str = "z"

    def ours(self, model, other):
        heads = [(self.layer, self.head)]
        if self.mode == "zero":
            return interp.ablate(heads, site=self.site)
        run = model.run(other, capture=interp.at(self.site, layers=self.layer), logits="last")
        if self.mode == "mean":
            return interp.ablate(heads, site=self.site, mode="mean", mean=run[self.site, self.layer].mean(axis=0))
        return interp.ablate(heads, site=self.site, mode="resample", source=run)

    def theirs(self, model, other):
        values: Any = 0.0
        if self.mode != "zero":
            values = _theirs(model, other, "z", self.layer)[:, self.head]
        if self.mode == "mean":
            values = values.mean(axis=0)
        return _assigned(model, "z", self.layer, (slice(None), self.head), values)


@dataclass(frozen=True)
class Patch(Case):
    """What a site holds is replaced by what it holds in `OTHER`: at some positions or all, in one head or all."""

    site: str
    layer: int
    positions: tuple[int, ...] | None = None
    from_positions: tuple[int, ...] | None = None
    head: int | None = None

    def ours(self, model, other):
        source = model.run(other, capture=interp.at(self.site, layers=self.layer), logits="last")
        return interp.patch(self.site, self.layer, source, self.positions, self.from_positions, heads=self.head)

    def theirs(self, model, other):
        to = list(range(len(other)) if self.positions is None else self.positions)
        values = _theirs(model, other, self.site, self.layer)[list(self.from_positions or to)]
        if self.head is None:
            return _assigned(model, self.site, self.layer, to, values)
        return _assigned(model, self.site, self.layer, (to, self.head), values[:, self.head])


@dataclass(frozen=True)
class Steer(Case):
    """A random direction is added, about as long as what the site holds at these positions.

    A vector many times as long would leave float32 fewer digits for everything else in the stream.
    """

    site: str
    layer: int
    coef: float
    positions: tuple[int, ...] | None = None

    def ours(self, model, other):
        vector = _directions(1, model.n_embd)[0]
        return interp.steer(self.site, self.layer, vector, coef=self.coef, positions=self.positions)

    def theirs(self, model, other):
        rows = slice(None) if self.positions is None else list(self.positions)
        vector = np.float32(self.coef) * _directions(1, model.config.hidden_size)[0]

        def add(x: np.ndarray) -> np.ndarray:
            x[rows] += vector
            return x

        return hooks.changed(model, self.site, self.layer, add)


@dataclass(frozen=True)
class ProjectOut(Case):
    """Random directions are removed from a site in several layers."""

    site: str
    layers: tuple[int, ...]
    n_directions: int = 1

    def ours(self, model, other):
        # of any length: interp scales them itself
        return interp.project_out(self.site, self.layers, 3.0 * _directions(self.n_directions, model.n_embd))

    def theirs(self, model, other):
        rows = _directions(self.n_directions, model.config.hidden_size).astype(np.float64)
        # not the orthonormal basis that interp computes: the projector by the pseudoinverse
        projector = (np.linalg.pinv(rows) @ rows).astype(np.float32)
        return _all(hooks.changed(model, self.site, layer, lambda x: x - x @ projector) for layer in self.layers)


@dataclass(frozen=True)
class Knockout(Case):
    """Queries do not see keys, in several layers and some heads or all."""

    layers: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: tuple[int, ...] | None = None

    def ours(self, model, other):
        return interp.knockout(self.layers, self.queries, self.keys, self.heads)

    def theirs(self, model, other):
        return _all(hooks.unseen(model, layer, self.queries, self.keys, self.heads) for layer in self.layers)


CASES: tuple[Case, ...] = (
    Ablate("zero ablation", 24, 4),
    Ablate("mean ablation", 12, 2, "mean"),
    Ablate("resample ablation", 18, 5, "resample"),
    Patch("patch of resid_post", "resid_post", 12, positions=(3,)),
    Patch("patch of attn_out", "attn_out", 9, positions=(9,), from_positions=(6,)),
    Patch("patch of mlp_out", "mlp_out", 18),
    Patch("patch of z of a head", "z", 15, head=5),
    Steer("steering", "resid_post", 14, 150.0),
    Steer("steering at a position", "resid_post", 10, 180.0, positions=(3,)),
    Steer("steering of resid_pre, backwards", "resid_pre", 20, -200.0, positions=(-1,)),
    ProjectOut("direction ablation", "resid_post", (8, 12, 16, 20)),
    ProjectOut("ablation of a subspace", "resid_post", (10, 18), n_directions=3),
    Knockout("knockout", (10, 11), queries=(8, 9), keys=(1, 2, 3)),
    Knockout("knockout in some heads", (5, 22), queries=(4, 9), keys=(0, 3), heads=(0, 5, 8)),
)


# The values of the edits


def _directions(n: int, width: int) -> np.ndarray:
    """``n`` random directions of length 1, float32."""
    rows = np.random.default_rng(0).standard_normal((n, width))
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _theirs(model: Any, tokens: list[int], site: str, layer: int) -> np.ndarray:
    """What a site holds in transformers when it runs these tokens."""
    with hooks.read(model, site, [layer]) as held:
        hooks.passed(model, tokens)
    return held[layer]


def _assigned(model: Any, site: str, layer: int, where: Any, values: np.ndarray) -> AbstractContextManager:
    """Hooks that put values at some indices of a site."""

    def assign(x: np.ndarray) -> np.ndarray:
        x[where] = values
        return x

    return hooks.changed(model, site, layer, assign)


@contextmanager
def _all(contexts: Iterable[AbstractContextManager]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


# The committed logits


@dataclass(frozen=True)
class Effects:
    """What is committed: the tokens of both prompts, and the kept part of the logits under each edit.

    meta: how the file was made; `edits` holds the description of each edit, as text.
    logits: name of an edit -> (n_tokens, ceil(n_vocab / LOGIT_STRIDE)).
    """

    meta: dict[str, Any]
    tokens: list[int]
    other: list[int]
    logits: dict[str, np.ndarray]

    def errors(self, case: Case, logits: np.ndarray) -> np.ndarray:
        """How far logits (n_tokens, n_vocab) are from the committed ones: the largest difference at each position."""
        return np.abs(kept(logits) - self.logits[case.name]).max(axis=-1)


def kept(logits: np.ndarray) -> np.ndarray:
    """What is committed of logits (n_tokens, n_vocab)."""
    return logits[:, ::LOGIT_STRIDE]


def descriptions() -> dict[str, str]:
    """Each edit as text, to notice an edit that was changed after its logits were computed."""
    return {case.name: repr(case) for case in CASES}


def save(effects: Effects, path: Path = PATH) -> None:
    """Write the committed file. The same values give the same bytes."""
    meta = {**effects.meta, "tokens": effects.tokens, "other": effects.other}
    np.savez_compressed(path, meta=json.dumps(meta), **effects.logits)


def load(path: Path = PATH) -> Effects:
    """Read the committed file."""
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        logits = {name: file[name] for name in file.files if name != "meta"}
    return Effects(meta, meta.pop("tokens"), meta.pop("other"), logits)
