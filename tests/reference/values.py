"""The committed reference values: reading, writing, and comparing them with a run. Needs numpy only.

`values.npz` holds a JSON text `meta` and, for prompt i, the arrays `<i>.attention`, `<i>.residual`, `<i>.logits`
and `<i>.last`; README.md beside this file says what was kept and why.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("values.npz")

# Logits of every position are kept at each 97th token: a prime, so that no pattern in the ids is met.
LOGIT_STRIDE = 97

# How far llama.cpp may lie from the reference: F32 weights, F32 KV cache, flash attention off.
ATTENTION_BOUND = 1e-5
RESIDUAL_BOUND = 1e-5  # relative, see relative_error
LOGITS_BOUND = 1e-4


@dataclass(frozen=True)
class Forward:
    """All that is compared of one forward pass, float32.

    attention: (n_layer, n_head, n_tokens, n_tokens), queries before keys, after the softmax.
    residual: (n_layer, n_tokens, n_embd), after each layer and before the final norm.
    logits: (n_tokens, n_vocab).
    """

    attention: np.ndarray
    residual: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Reference:
    """What is kept of the reference's forward pass over one prompt, float32.

    attention: (n_layer, n_head, n_tokens, n_tokens).
    residual: (n_layer, len(positions), n_embd).
    logits: (n_tokens, ceil(n_vocab / LOGIT_STRIDE)).
    last: (n_vocab,), all logits of the last position.
    """

    prompt: str
    tokens: list[int]
    positions: list[int]
    attention: np.ndarray
    residual: np.ndarray
    logits: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, prompt: str, tokens: list[int], run: Forward) -> Reference:
        """Keep of a forward pass what is committed: the residual of the first, a middle and the last position."""
        positions = [0, len(tokens) // 2, len(tokens) - 1]
        residual, logits = run.residual[:, positions], run.logits[:, ::LOGIT_STRIDE]
        return cls(prompt, tokens, positions, run.attention, residual, logits, run.logits[-1])


@dataclass(frozen=True)
class Errors:
    """How far a forward pass is from a reference.

    attention: (n_layer,), the largest absolute difference.
    residual: (n_layer,), the largest relative difference, as `relative_error` measures it.
    logits: (n_tokens,), the largest absolute difference.
    """

    attention: np.ndarray
    residual: np.ndarray
    logits: np.ndarray


def relative_error(value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The largest difference in each row, relative to the largest entry of the reference's same row.

    By position and not by layer: the first position's residual is up to thousands of times larger than the
    others', and measured against it an error elsewhere would not show.

    Args:
        value, reference: (..., n_embd).

    Returns:
        (...).
    """
    return np.abs(value - reference).max(axis=-1) / np.abs(reference).max(axis=-1)


def errors(run: Forward, reference: Reference | Forward) -> Errors:
    """Compare a forward pass with the committed part of another one, or with the whole of it."""
    if isinstance(reference, Forward):
        residual, logits = run.residual, np.abs(run.logits - reference.logits).max(axis=-1)
    else:
        residual = run.residual[:, reference.positions]
        logits = np.abs(run.logits[:, ::LOGIT_STRIDE] - reference.logits).max(axis=-1)
        logits[-1] = np.abs(run.logits[-1] - reference.last).max()
    attention = np.abs(run.attention - reference.attention).max(axis=(1, 2, 3))
    return Errors(attention, relative_error(residual, reference.residual).max(axis=-1), logits)


def assert_within(errors: np.ndarray, bound: float, what: str, where: str = "layer") -> None:
    """Fail with every layer (or position) whose error is over the bound, and the largest error of all."""
    over = [f"{where} {i}: {error:.1e}" for i, error in enumerate(errors) if not error <= bound]
    worst = f"the largest error is {np.max(errors):.1e}, at {where} {np.argmax(errors)}"
    assert not over, f"{what} differs from transformers by more than {bound:g}; {worst}; " + ", ".join(over)


ARRAYS = ("attention", "residual", "logits", "last")


def save(meta: dict[str, Any], references: list[Reference], path: Path = PATH) -> None:
    """Write the committed file. The same values give the same bytes."""
    prompts = [{"prompt": r.prompt, "tokens": r.tokens, "positions": r.positions} for r in references]
    arrays = {f"{i}.{name}": getattr(r, name) for i, r in enumerate(references) for name in ARRAYS}
    np.savez_compressed(path, meta=json.dumps({**meta, "prompts": prompts}), **arrays)


def load(path: Path = PATH) -> tuple[dict[str, Any], list[Reference]]:
    """Read the committed file: how it was made, and one reference for each prompt."""
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        references = [
            Reference(**prompt, **{name: file[f"{i}.{name}"] for name in ARRAYS})
            for i, prompt in enumerate(meta["prompts"])
        ]
    return meta, references
