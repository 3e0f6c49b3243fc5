"""What was found of one shape, and which bounds do not hold. Needs neither side: no torch, no model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .bounds import CLEAR, EXACT, PEAKED, bounds

#: what the page calls an error -> the roles that it is the largest of
GROUPS = {
    "attention": ("attn_scores",),
    "residual": ("resid_pre", "resid_post", "resid_mid"),
    "z": ("z",),
    "modules": ("attn_out", "mlp_in", "mlp_out", "final_norm", "mixer_out", "hook_attn_out", "hook_mlp_out"),
    "activation": ("mlp_act",),
}


@dataclass
class Effect:
    """What an edit does to the logits, all relative to the largest logit of a position.

    Attributes:
        effect: how far it moves them.
        error: how far ours are from transformers' under the same edit.
        imitated: the same where transformers rounds as llama.cpp does; None where nothing rounds otherwise.
        wrong: how far from that the same edit at another head, layer, position or key is.
    """

    effect: float
    error: float
    imitated: float | None
    wrong: float


@dataclass
class Result:
    """All that was found of one shape.

    Attributes:
        errors: the largest of each of :data:`GROUPS`, and of the logits: attention absolute, the others relative to the
            largest entry of a position's row.
        imitated: the same where transformers rounds as llama.cpp does; None where nothing rounds otherwise.
        edits: by name.
        exact: what holds bit for bit -> whether it does.
        lacks: what this graph names no tensor for -> the error that a user gets.
        peak: see :data:`PEAKED`; None without attention.
        n_arrays: how many were compared: sites, in each layer, of each prompt.
        problems: which bounds do not hold; empty: all do.
    """

    name: str
    arch: str
    about: str
    rounding: str
    n_layer: int
    attention_layers: list[int]
    errors: dict[str, float] = field(default_factory=dict)
    imitated: dict[str, float] | None = None
    edits: dict[str, Effect] = field(default_factory=dict)
    exact: dict[str, bool] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    peak: float | None = None
    n_arrays: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def problems(found: Result) -> list[str]:
    """Which bounds do not hold."""
    wrong = [f"not bit for bit: {name}" for name, holds in found.exact.items() if not holds]
    wrong += [f"no clear error for {what}" for what, message in found.lacks.items() if not message]
    kept = bounds(found.rounding)
    for group, error in found.errors.items():
        wrong += _over(group, error, kept.of(group))
    for group, error in (found.imitated or {}).items():
        # what is taken from llama.cpp is where the sides differ
        own = kept if group == "activation" else EXACT
        wrong += _over(f"{group}, rounded alike", error, own.of(group))
    for name, edit in found.edits.items():
        wrong += _over(name, edit.error, kept.other)
        wrong += _over(f"{name}, rounded alike", edit.imitated or 0.0, EXACT.other)
        for what, size in (("moves the logits", edit.effect), ("at a wrong place differs", edit.wrong)):
            if not size >= CLEAR * kept.other:
                wrong.append(f"{name} {what} by {size:.1e} only")
    if found.peak is not None and not found.peak >= PEAKED:
        wrong.append(f"attention is flat: {found.peak:.2f} times an even row")
    return wrong


def unexpected(lacks: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Roles without a tensor where there should be one, and those that have one although they should not."""
    wrong = [f"no tensor for {role}" for role in lacks if role not in expected]
    return wrong + [f"a tensor for {role}, which was said to be lacking" for role in expected if role not in lacks]


def _over(what: str, error: float, bound: float) -> list[str]:
    # a NaN is over every bound
    return [] if error <= bound else [f"{what}: {error:.1e} > {bound:g}"]
