"""Activation patching as TransformerLens' own functions compute it: the values that sweeps are compared with.

    python tests/reference/sweeps.py --check     recompute, compare, exit with 1 where they are no longer true
    python tests/reference/sweeps.py             recompute and write sweeps.npz

Needs torch, transformers and transformer_lens (the extra `reference`). Several minutes: each cell is a pass of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:
    # Run as a script, this file finds its own folder only.
    sys.path[:0] = [str(Path(__file__).resolve().parents[n]) for n in (1, 2)]

import models

PATH = Path(__file__).with_name("sweeps.npz")

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
ANSWER, INSTEAD = " Mary", " John"

#: site -> the function of transformer_lens.patching, and the axes of what it returns
SITES = {
    "resid_pre": ("get_act_patch_resid_pre", ("layer", "pos")),
    "attn_out": ("get_act_patch_attn_out", ("layer", "pos")),
    "mlp_out": ("get_act_patch_mlp_out", ("layer", "pos")),
    "z": ("get_act_patch_attn_head_out_all_pos", ("layer", "head")),
}

#: how far a cell may be from theirs, in logits; the logit difference of the pair moves by 11
BOUND = 1e-3

#: the same with flash attention, which rounds keys and values to halves
FLASH_BOUND = 2e-2

#: how far two computations of the reference may lie apart
CHECK_BOUND = 2e-4

#: of so many largest effects, sign and order must be the same
N_TOP = 10


@dataclass(frozen=True)
class Pair:
    """The clean and the corrupted prompt, and the two answers, as token ids."""

    clean: list[int]
    corrupted: list[int]
    answer: int
    instead: int


def pair(tokenizer: Any) -> Pair:
    """The pair in the tokens of a transformers tokenizer."""
    clean, corrupted, answer, instead = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (CLEAN, CORRUPTED, ANSWER, INSTEAD)
    )
    return Pair(clean, corrupted, answer[0], instead[0])


def load_bridge() -> tuple[Any, Pair]:
    """The default model, dequantised to F32, in TransformerLens; and the pair in its tokens."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from reference.make import load_model
    from transformers import AutoTokenizer

    path = models.f32_default()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return bridge(load_model(path), tokenizer), pair(tokenizer)


def bridge(hf_model: Any, tokenizer: Any) -> Any:
    """A loaded transformers model in TransformerLens 4: its weights as they are, so that all values compare."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformer_lens.model_bridge import TransformerBridge

    # the name is a label only where the model is given
    return TransformerBridge.boot_transformers("gguf", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


def theirs(model: Any, site: str, tokens: Pair, cells: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """What TransformerLens' function for a site measures: the logit difference of each patched run.

    Args:
        model: as `bridge` gives it.
        cells: only these, (layer, position or head).

    Returns:
        (n_layers, n_positions or n_heads), or (len(cells),); float64.
    """
    import torch
    from transformer_lens import patching

    name, axes = SITES[site]
    options = {}
    if cells is not None:
        import pandas

        options = {"index_axis_names": None, "index_df": pandas.DataFrame(list(cells), columns=list(axes))}
    with torch.no_grad():
        hook = "hook_z" if site == "z" else f"hook_{site}"
        _, cache = model.run_with_cache(torch.tensor([tokens.clean]), names_filter=lambda key: key.endswith(hook))
        found = getattr(patching, name)(
            model, torch.tensor([tokens.corrupted]), cache,
            lambda logits: logits[0, -1, tokens.answer] - logits[0, -1, tokens.instead], **options,
        )
    return found.numpy().astype(np.float64)


def ours(model: Any, site: str, tokens: Pair, prune: bool = True) -> Any:
    """The same sweep by this package: a `Sweep`. `prune` False runs also the cells that are known to change nothing."""
    import interp

    metric = interp.logit_diff(tokens.answer, tokens.instead)
    return interp.patch_sweep(
        model, tokens.clean, tokens.corrupted, site, metric, per_head=site == "z", progress=False, prune=prune
    )


def largest(values: np.ndarray, baseline: float, k: int = N_TOP) -> list[tuple[int, int]]:
    """The cells with the k largest effects, whatever their sign, largest first."""
    effects = np.abs(values - baseline)
    order = np.argsort(-effects, axis=None, kind="stable")[:k]
    return [tuple(map(int, np.unravel_index(i, values.shape))) for i in order]


def ordered_alike(values: np.ndarray, reference: np.ndarray, baseline: float, noise: float = 0.0) -> bool:
    """Whether the largest effects of both have the same sign and order.

    Args:
        noise: effects of the reference that are no further apart may change places.
    """
    found, wanted = values - baseline, reference - baseline
    for cell in largest(reference, baseline):
        behind = np.abs(wanted) < abs(wanted[cell]) - noise
        if np.sign(found[cell]) != np.sign(wanted[cell]) or np.any(np.abs(found[behind]) >= abs(found[cell])):
            return False
    return True


# the committed values


@dataclass(frozen=True)
class Sweeps:
    """The committed file: how it was made, the tokens, and each site's values, float64."""

    meta: dict[str, Any]
    tokens: Pair
    values: dict[str, np.ndarray]


def save(sweeps: Sweeps, path: Path = PATH) -> None:
    """Write the committed file. The same values give the same bytes."""
    meta = json.dumps({**sweeps.meta, "tokens": vars(sweeps.tokens)})
    np.savez_compressed(path, meta=meta, **sweeps.values)


def load(path: Path = PATH) -> Sweeps:
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
        return Sweeps(meta, Pair(**meta.pop("tokens")), {site: file[site] for site in SITES})


def check() -> bool:
    """Recompute the committed values, print how far off they are, and say whether they are still true."""
    committed, (model, tokens) = load(), load_bridge()
    still_true = tokens == committed.tokens
    still_true &= committed.meta["gguf_sha256"] == models.sha256_of(models.default_gguf())
    for site, values in committed.values.items():
        error = np.abs(theirs(model, site, tokens) - values).max()
        still_true &= bool(error <= CHECK_BOUND)
        print(f"{site}: {error:.1e} (bound {CHECK_BOUND:g})")
    return still_true


def write() -> None:
    """Recompute the values and write them over the committed ones."""
    model, tokens = load_bridge()
    source = models.default_gguf()
    meta = {
        "recipe": "TransformerLens' patching functions on the GGUF below dequantised to F32, weights as they are",
        "clean": CLEAN,
        "corrupted": CORRUPTED,
        "gguf": source.name,
        "gguf_sha256": models.sha256_of(source),
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer-lens", "numpy")},
    }
    values = {}
    for site in SITES:
        values[site] = theirs(model, site, tokens)
        print(f"{site}: {values[site].shape}", flush=True)
    save(Sweeps(meta, tokens, values))
    print(f"{PATH.name}: {PATH.stat().st_size} bytes")


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
