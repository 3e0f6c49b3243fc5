"""Compute the reference values with transformers' eager attention, and check or write the committed ones.

    python tests/reference/make.py --check     recompute, compare, exit with 1 where they are no longer true
    python tests/reference/make.py             recompute and write values.npz and edits.npz

Needs torch and transformers (the extra `reference`). Writing also needs the built project, because the tokens
are llama.cpp's.
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:
    # Run as a script, this file finds its own folder only.
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

import models
from reference import edits, hooks, values
from reference.edits import Case, Effects
from reference.values import Errors, Forward, Reference

PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "When Mary and John went to the store, John gave a drink to",
    "def square(x):\n    return x",
)

# How far two computations of the reference may lie apart: other CPUs and thread counts add in another order.
# Measured: the same CPU and threads, 0; torch held to SSE4 kernels in place of AVX2, about half of these.
BOUNDS = {"attention": 5e-6, "residual": 5e-6, "logits": 1e-4}


@lru_cache(maxsize=1)
def load_model(path: Path) -> Any:
    """The GGUF as a transformers model: float32, eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def forward(model: Any, tokens: list[int]) -> Forward:
    """One pass of a transformers decoder over a prompt."""
    layers = range(model.config.num_hidden_layers)
    # The last entry of `hidden_states` has already passed the final norm, hence hooks.
    with hooks.read(model, "resid_post", layers) as residual:
        out = hooks.passed(model, tokens, output_attentions=True)
    return Forward(
        attention=np.stack([a[0].numpy() for a in out.attentions]),
        residual=np.stack([residual[i] for i in layers]),
        logits=out.logits[0].numpy(),
    )


def recompute(tokens: list[int]) -> Forward:
    """One pass of the default model, dequantised to F32, over a prompt."""
    return forward(load_model(models.f32_default()), tokens)


def recompute_edited(case: Case, tokens: list[int], other: list[int]) -> np.ndarray:
    """Logits (n_tokens, n_vocab) of the default model, dequantised to F32, under an edit.

    Args:
        other: the tokens of `edits.OTHER`.
    """
    model = load_model(models.f32_default())
    with case.theirs(model, other):
        return hooks.passed(model, tokens).logits[0].numpy()


def largest(found: Errors) -> dict[str, float]:
    """The largest error of each kind over all layers and positions."""
    return {name: float(getattr(found, name).max()) for name in BOUNDS}


def check() -> bool:
    """Recompute the committed values, print how far off they are, and say whether they are still true."""
    meta, references = values.load()
    still_true = _made_from_this_model(meta)
    for reference in references:
        found = largest(values.errors(recompute(reference.tokens), reference))
        still_true &= all(found[name] <= bound for name, bound in BOUNDS.items())
        print(f"{reference.prompt!r}: " + ", ".join(f"{k} {v:.1e} (bound {BOUNDS[k]:g})" for k, v in found.items()))
    return still_true


def check_edits() -> bool:
    """As `check`, of the logits under each edit."""
    effects = edits.load()
    still_true = _made_from_this_model(effects.meta)
    for case in edits.CASES:
        error = effects.errors(case, recompute_edited(case, effects.tokens, effects.other)).max()
        still_true &= bool(error <= BOUNDS["logits"])
        print(f"{case.name}: logits {error:.1e} (bound {BOUNDS['logits']:g})")
    return still_true


def _made_from_this_model(meta: dict[str, Any]) -> bool:
    print(f"committed: {meta['versions']}\nhere:      {_versions()}")
    same = meta["gguf_sha256"] == models.sha256_of(models.default_gguf())
    if not same:
        print("The default model is not the file that the committed values were computed from.")
    return same


def write() -> None:
    """Recompute the values and write them over the committed ones."""
    import interp

    source = models.default_gguf()
    llama = interp.Model(source)
    references = []
    for prompt in PROMPTS:
        tokens = llama.tokens(prompt)
        references.append(Reference.of(prompt, tokens, recompute(tokens)))
    meta = {
        "recipe": "transformers, eager attention, float32, on the GGUF below dequantised to F32",
        "gguf": source.name,
        "gguf_sha256": models.sha256_of(source),
        "versions": _versions(),
    }
    values.save(meta, references)

    tokens, other = llama.tokens(edits.PROMPT), llama.tokens(edits.OTHER)
    logits = {case.name: edits.kept(recompute_edited(case, tokens, other)) for case in edits.CASES}
    edits.save(Effects({**meta, "edits": edits.descriptions()}, tokens, other, logits))
    for path in (values.PATH, edits.PATH):
        print(f"{path.name}: {path.stat().st_size} bytes")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "gguf", "numpy")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed values and write nothing")
    if not parser.parse_args().check:
        write()
        return 0
    if check() & check_edits():
        print("The committed values are still true.")
        return 0
    print("The committed values are no longer true.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
