"""Edits do what they say: exactly where they say it, with the effect that the reference gives."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
from conftest import PROMPT
from interp import at


@pytest.fixture
def direction(tiny, rng) -> np.ndarray:
    return rng.normal(size=tiny.n_embd).astype(np.float32)


@pytest.fixture(params=["llama", "gpt2", "qwen3", "gemma2", "mixtral"], scope="module")
def each_tiny(request):
    with interp.Model(models.tiny(request.param), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as model:
        yield model


def test_an_edit_of_the_residual_stream_equals_resuming_from_the_edited_values(tiny, direction):
    plain = tiny.run(PROMPT, capture="l_out")
    edited = tiny.run(PROMPT, capture="l_out", edits=interp.edit("l_out-1", lambda x: x + 4.0 * direction))
    expected = plain["l_out", 1] + 4.0 * direction
    assert np.array_equal(edited["l_out", 0], plain["l_out", 0]), "a layer before the edit moved"
    assert np.allclose(edited["l_out", 1], expected, atol=1e-6)
    assert not np.allclose(edited.logits, plain.logits, atol=0.1), "the edit had no effect"
    resumed = tiny.resume(edited["l_out", 1], 2, PROMPT)
    assert np.array_equal(edited.logits, resumed.logits)


def test_positions_limit_an_edit_exactly(tiny, direction):
    plain = tiny.run(PROMPT, capture="l_out")
    edit = interp.add(at("l_out", layers=2, positions=[1, -1]), direction)
    edited = tiny.run(PROMPT, capture="l_out", edits=edit)["l_out", 2]
    touched = [1, len(edited) - 1]
    spared = [p for p in range(len(edited)) if p not in touched]
    assert np.allclose(edited[touched], plain["l_out", 2][touched] + direction, atol=1e-6)
    assert np.array_equal(edited[spared], plain["l_out", 2][spared])


def test_heads_limit_an_edit_exactly(each_tiny):
    plain = each_tiny.run(PROMPT, capture="z")
    edited = each_tiny.run(PROMPT, capture="z", edits=interp.scale(at("z", layers=1, heads=[0, 2]), 0.0))
    assert not edited["z", 1][:, [0, 2]].any()
    assert np.array_equal(edited["z", 1][:, [1, 3]], plain["z", 1][:, [1, 3]])
    assert not np.array_equal(edited.logits, plain.logits)


def test_zeroing_the_scores_of_a_head_equals_zeroing_its_z(each_tiny):
    by_z = each_tiny.run(PROMPT, edits=interp.scale(at("z", layers=1, heads=1), 0.0))
    by_scores = each_tiny.run(PROMPT, edits=interp.scale(at("attn_scores", layers=1, heads=1), 0.0))
    assert np.allclose(by_z.logits, by_scores.logits, atol=1e-5)


def test_scores_are_editable_with_flash_attention_on():
    with interp.Model(models.tiny("llama"), n_ctx=256, flash_attn=True, n_threads=1) as model:
        plain = model.run(PROMPT, capture="attn_scores")
        edited = model.run(PROMPT, capture=("attn_scores", "z"), edits=interp.scale(at("attn_scores", layers=2, heads=3), 0.0))
        assert not edited["attn_scores", 2][3].any()
        assert not edited["z", 2][:, 3].any()
        assert np.array_equal(edited["attn_scores", 1], plain["attn_scores", 1])
        assert not np.array_equal(edited.logits, plain.logits)


def test_adding_to_the_logits_of_attention_moves_its_scores(each_tiny):
    """softmax(x + c) over a row is softmax(x); cutting an edge with a large negative number takes its weight away."""
    plain = each_tiny.run(PROMPT, capture="attn_scores")
    shifted = each_tiny.run(PROMPT, capture="attn_scores", edits=interp.add("attn_logits-1", 3.0))
    assert np.allclose(shifted["attn_scores", 1], plain["attn_scores", 1], atol=1e-5)

    def cut_first_key(x):
        cut = np.zeros(x.shape[-1], np.float32)
        cut[0] = -1e9
        return x + cut

    n = len(plain.tokens)
    cut = each_tiny.run(PROMPT, capture="attn_scores", edits=interp.edit(at("attn_logits", layers=1, queries=n - 1), cut_first_key))
    expected = plain["attn_scores", 1][:, -1].copy()
    expected[:, 0] = 0.0
    expected /= expected.sum(-1, keepdims=True)
    assert np.allclose(cut["attn_scores", 1][:, -1], expected, atol=1e-5)
    assert np.allclose(cut["attn_scores", 1][:, :-1], plain["attn_scores", 1][:, :-1], atol=1e-6)


def test_logits_of_attention_become_its_scores(each_tiny):
    run = each_tiny.run(PROMPT, capture=("attn_logits", "attn_scores"))
    for layer in range(each_tiny.n_layer):
        logits = run["attn_logits", layer].astype(np.float64)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        assert np.allclose(weights / weights.sum(-1, keepdims=True), run["attn_scores", layer], atol=1e-5), layer


def test_patching_a_run_with_its_own_values_changes_no_bit(each_tiny):
    plain = each_tiny.run(PROMPT, capture=("l_out", "z", "mlp_out"))
    for site in ("l_out", "z", "mlp_out"):
        edits = [interp.replace(at(site, layers=layer), plain[site, layer]) for layer in range(each_tiny.n_layer)]
        assert np.array_equal(each_tiny.run(PROMPT, edits=edits).logits, plain.logits), site


def test_edits_of_one_site_compose_in_order(tiny):
    plain = tiny.run(PROMPT, capture="l_out")["l_out", 1]
    edits = [interp.scale("l_out-1", 2.0), interp.add("l_out-1", 1.0)]
    assert np.allclose(tiny.run(PROMPT, capture="l_out", edits=edits)["l_out", 1], plain * 2 + 1, atol=1e-5)
    assert np.allclose(tiny.run(PROMPT, capture="l_out", edits=edits[::-1])["l_out", 1], (plain + 1) * 2, atol=1e-5)


def test_an_edit_holds_in_generation_and_can_spare_the_prompt(tiny, direction):
    plain = tiny.generate(PROMPT, max_tokens=5, capture="l_out")
    n = len(tiny.tokens(PROMPT))
    everywhere = tiny.generate(PROMPT, max_tokens=5, capture="l_out", edits=interp.replace("l_out-2", direction))
    assert np.allclose(everywhere.run["l_out", 2], direction, atol=1e-6)
    later = tiny.generate(PROMPT, max_tokens=5, capture="l_out", edits=interp.replace(at("l_out", 2, positions="generated"), direction))
    assert np.array_equal(later.run["l_out", 2][:n], plain.run["l_out", 2][:n])
    assert np.allclose(later.run["l_out", 2][n:], direction, atol=1e-6)


#: expressions of an edit beside what numpy gives for the same; x has shape (n_tokens, n_embd), w (n_embd, n_embd)
EXPRESSIONS = {
    "arithmetic": lambda x, v, w: (2.0 * x - v) / 3.0 + (1.0 - x) * v,
    "division by x": lambda x, v, w: 1.0 / (x * x + 1.0),
    "matrix": lambda x, v, w: x @ w,
    "projection": lambda x, v, w: x - (x @ v).reshape(-1, 1) * v / float(v @ v),
    "powers": lambda x, v, w: abs(x) ** 0.5 + x**2,
    "negation": lambda x, v, w: -x,
    "joined halves": lambda x, v, w: x[:, 32:].concat(x[:, :32]) if isinstance(x, interp.Tensor) else np.concatenate([x[:, 32:], x[:, :32]], -1),
    "one row for all": lambda x, v, w: x * 0.0 + x[-1],
    "transposed twice": lambda x, v, w: x.transpose(1, 0).transpose(1, 0) + x,
    "mean": lambda x, v, w: x - (x.mean() if isinstance(x, interp.Tensor) else x.mean(-1, keepdims=True)),
    "sum": lambda x, v, w: x + (x.sum() if isinstance(x, interp.Tensor) else x.sum(-1, keepdims=True)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_computes_what_numpy_computes(tiny, rng, name):
    v = rng.normal(size=64).astype(np.float32)
    w = rng.normal(size=(64, 64)).astype(np.float32) / 8
    fn = EXPRESSIONS[name]
    plain = tiny.run(PROMPT, capture="l_out")["l_out", 1]
    edited = tiny.run(PROMPT, capture="l_out", edits=interp.edit("l_out-1", lambda x: fn(x, v, w)))["l_out", 1]
    expected = fn(plain, v, w)
    assert np.allclose(edited, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_functions_of_each_element(tiny):
    """Against numpy in float64; GELU and SiLU are tables of half floats in ggml."""
    plain = tiny.run(PROMPT, capture="l_out")["l_out", 1].astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-plain))
    exact = {
        "exp": np.exp(plain / 8), "log": np.log(plain**2 + 1), "sqrt": np.sqrt(plain**2), "relu": np.maximum(plain, 0),
        "tanh": np.tanh(plain), "sigmoid": sigmoid, "step": plain > 0, "silu": plain * sigmoid,
        "clamp": np.clip(plain, -0.5, 0.25), "softmax": np.exp(plain) / np.exp(plain).sum(-1, keepdims=True),
        "rms_norm": plain / np.sqrt((plain**2).mean(-1, keepdims=True) + 1e-5),
        "norm": (plain - plain.mean(-1, keepdims=True)) / np.sqrt(plain.var(-1, keepdims=True) + 1e-5),
    }
    traced = {
        "exp": lambda x: (x / 8.0).exp(), "log": lambda x: (x**2 + 1.0).log(), "sqrt": lambda x: (x**2).sqrt(),
        "clamp": lambda x: x.clamp(-0.5, 0.25),
    }
    for name, expected in exact.items():
        fn = traced.get(name, lambda x, name=name: getattr(x, name)())
        found = tiny.run(PROMPT, capture="l_out", edits=interp.edit("l_out-1", fn))["l_out", 1]
        assert np.allclose(found, expected, rtol=2e-3, atol=2e-3), name
    found = tiny.run(PROMPT, capture="l_out", edits=interp.edit("l_out-1", lambda x: x.gelu()))["l_out", 1]
    gelu = 0.5 * plain * (1 + np.tanh(np.sqrt(2 / np.pi) * (plain + 0.044715 * plain**3)))
    assert np.allclose(found, gelu, atol=5e-3 * np.abs(plain).max())
