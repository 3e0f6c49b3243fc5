"""The effect of an edit is the one that transformers gives for the same edit, computed live on the same weights."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
from conftest import PROMPT
from interp import at
from reference import make

#: a plain run stays within 1e-4; an edit takes the residual stream to larger values, and float32 rounds with them
LOGITS_BOUND = 3e-4

pytestmark = pytest.mark.reference


@pytest.fixture(scope="module")
def ours():
    with interp.Model(models.f32_default(), n_ctx=64, kv_type="f32", flash_attn=False, n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def theirs():
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'llama-interp[reference]'")
    return make.load_model(models.f32_default())


def transformers_logits(model, tokens: list[int], module, hook) -> np.ndarray:
    """Logits ``(n_tokens, n_vocab)`` with a forward pre-hook (``hook(input) -> input``) on one module."""
    import torch

    handle = module.register_forward_pre_hook(lambda _module, args: (hook(args[0].clone()), *args[1:]))
    try:
        with torch.no_grad():
            return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    finally:
        handle.remove()


def assert_same_effect(ours, edit, reference: np.ndarray) -> None:
    plain, edited = ours.run(PROMPT).logits, ours.run(PROMPT, edits=edit).logits
    assert np.abs(edited - plain).max() > 0.1, "the edit had no effect"
    worst = np.abs(edited - reference).max()
    assert worst <= LOGITS_BOUND, f"the logits differ by {worst:.1e}"


@pytest.mark.parametrize("site", ["z", "attn_scores"])
def test_ablating_a_head(ours, theirs, site):
    layer, head, width = 24, 4, ours.n_embd // ours.n_head
    projection = theirs.get_decoder().layers[layer].self_attn.o_proj

    def zero(x):
        x[..., head * width : (head + 1) * width] = 0
        return x

    reference = transformers_logits(theirs, ours.tokens(PROMPT), projection, zero)
    assert_same_effect(ours, interp.scale(at(site, layers=layer, heads=head), 0.0), reference)


def test_adding_to_the_residual_stream_at_one_position(ours, theirs):
    import torch

    layer, position = 10, 3
    vector = (20 * np.random.default_rng(0).normal(size=ours.n_embd)).astype(np.float32)

    def add(x):
        x[:, position] += torch.from_numpy(vector)
        return x

    reference = transformers_logits(theirs, ours.tokens(PROMPT), theirs.get_decoder().layers[layer], add)
    assert_same_effect(ours, interp.add(at("resid_pre", layers=layer, positions=position), vector), reference)


def test_replacing_the_output_of_an_mlp(ours, theirs):
    import torch

    layer = 5
    other = ours.run("Mount Fuji is located in the country of Japan now", capture="mlp_out")["mlp_out", layer]
    n = len(ours.tokens(PROMPT))
    values = other[np.arange(n) % len(other)]
    # what enters the down projection cannot be chosen freely, so the reference replaces what leaves it
    mlp = theirs.get_decoder().layers[layer].mlp
    handle = mlp.register_forward_hook(lambda *_: torch.from_numpy(values)[None])
    try:
        with torch.no_grad():
            reference = theirs(torch.tensor([ours.tokens(PROMPT)]), use_cache=False).logits[0].numpy()
    finally:
        handle.remove()
    assert_same_effect(ours, interp.replace(at("mlp_out", layers=layer), values), reference)
