"""Compute the reference values with transformers' eager attention, and check or write the committed ones.

    python tests/reference/make.py --check     recompute, compare, exit with 1 where they are no longer true
    python tests/reference/make.py             recompute and write values.npz

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
from reference import values
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
    import torch

    layers = model.get_decoder().layers
    residual: dict[int, np.ndarray] = {}

    def keep(layer: int):
        # The last entry of `hidden_states` has already passed the final norm, hence hooks.
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            residual[layer] = output[0].numpy().copy()

        return hook

    hooks = [layer.register_forward_hook(keep(i)) for i, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            out = model(torch.tensor([tokens]), output_attentions=True, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Forward(
        attention=np.stack([a[0].numpy() for a in out.attentions]),
        residual=np.stack([residual[i] for i in range(len(layers))]),
        logits=out.logits[0].numpy(),
    )


def recompute(tokens: list[int]) -> Forward:
    """One pass of the default model, dequantised to F32, over a prompt."""
    return forward(load_model(models.f32_default()), tokens)


def largest(found: Errors) -> dict[str, float]:
    """The largest error of each kind over all layers and positions."""
    return {name: float(getattr(found, name).max()) for name in BOUNDS}


def check() -> bool:
    """Recompute the committed values, print how far off they are, and say whether they are still true."""
    meta, references = values.load()
    print(f"committed: {meta['versions']}\nhere:      {_versions()}")
    if meta["gguf_sha256"] != models.sha256_of(models.default_gguf()):
        print("The default model is not the file that the committed values were computed from.")
        return False
    still_true = True
    for reference in references:
        found = largest(values.errors(recompute(reference.tokens), reference))
        still_true &= all(found[name] <= bound for name, bound in BOUNDS.items())
        print(f"{reference.prompt!r}: " + ", ".join(f"{k} {v:.1e} (bound {BOUNDS[k]:g})" for k, v in found.items()))
    return still_true


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
    print(f"{values.PATH.name}: {values.PATH.stat().st_size} bytes")


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "gguf", "numpy")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed values and write nothing")
    if not parser.parse_args().check:
        write()
        return 0
    if check():
        print("The committed values are still true.")
        return 0
    print("The committed values are no longer true.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
