"""Reading, unembedding, parts of runs and several prompts, on small random models of every recipe."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
import recipes

SITES = ("l_out", "kqv_out", "attn_scores")

# Three times the sliding window, so that a good part of each pattern lies outside it.
TOKENS = np.random.default_rng(1).integers(10, recipes.N_VOCAB - 10, 3 * recipes.WINDOW).tolist()
N = len(TOKENS)

# Those whose heads are wider than n_embd / n_head.
WIDE_HEADS = ("qwen3", "gemma2", "gemma3", "gpt-oss")

# A window in the even layers, and none in the odd ones.
WINDOWED = ("gemma2", "gemma3", "gpt-oss")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "flash"])
def flash_attn(request) -> bool:
    return request.param


@pytest.fixture(scope="module", params=recipes.RECIPES)
def arch(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(arch: str, flash_attn: bool) -> interp.Model:
    return interp.Model(models.tiny(arch), n_ctx=64, kv_type="f32", flash_attn=flash_attn, n_threads=1)


@pytest.fixture(scope="module")
def run(model: interp.Model) -> interp.Run:
    """One run with every site of `SITES` captured in every layer."""
    return model.run(TOKENS, capture=SITES)


def patterns(run: interp.Run, model: interp.Model) -> np.ndarray:
    """Attention of all layers, (n_layer, n_head, n_query, n_key)."""
    return np.stack([run["attn_scores", layer] for layer in range(model.n_layer)])


def test_logits_are_finite_and_depend_on_the_first_token(model: interp.Model, run: interp.Run):
    assert np.isfinite(run.logits).all()
    other = model.run([TOKENS[0] + 1, *TOKENS[1:]])
    assert np.abs(other.logits[-1] - run.logits[-1]).max() > 0.1


def test_logits_are_bit_identical_with_and_without_captures(model: interp.Model, run: interp.Run):
    assert np.array_equal(model.run(TOKENS).logits, run.logits)


@pytest.mark.parametrize("site", SITES)
def test_each_site_captured_alone_gives_the_same_bits(model: interp.Model, run: interp.Run, site: str):
    alone = model.run(TOKENS, capture=(site,))
    assert np.array_equal(alone.logits, run.logits)
    for layer in range(model.n_layer):
        assert np.array_equal(alone[site, layer], run[site, layer]), f"{site} of layer {layer}"


def test_captures_have_the_shapes_of_their_axes(model: interp.Model, run: interp.Run, arch: str):
    for layer in range(model.n_layer):
        assert run["l_out", layer].shape == (N, recipes.N_EMBD)
        assert run["kqv_out", layer].shape == (N, recipes.N_HEAD, 32 if arch in WIDE_HEADS else 16)
        assert run["attn_scores", layer].shape == (recipes.N_HEAD, N, N)
    assert run.logits.shape == (N, recipes.N_VOCAB)


def test_captures_are_float32_and_finite(model: interp.Model, run: interp.Run):
    for site in SITES:
        for layer in range(model.n_layer):
            assert run[site, layer].dtype == np.float32
            assert np.isfinite(run[site, layer]).all()


def test_unembedding_the_last_residual_gives_the_logits_bit_for_bit(model: interp.Model, run: interp.Run):
    assert np.array_equal(model.unembed(run["l_out", model.n_layer - 1]), run.logits)


def test_resuming_at_any_layer_gives_the_bits_of_the_whole_run(model: interp.Model, run: interp.Run):
    whole = model.run(TOKENS, capture="resid_pre")
    for layer in range(1, model.n_layer):
        resumed = model.resume(whole["resid_pre", layer], layer, TOKENS, capture=SITES)
        assert np.array_equal(resumed.logits, run.logits), layer
        assert resumed.layers("l_out") == list(range(layer, model.n_layer))
        for site in SITES:
            assert np.array_equal(resumed[site], run[site][layer:]), (site, layer)


def test_stopping_after_any_layer_reads_the_bits_of_the_whole_run(model: interp.Model, run: interp.Run):
    for layer in range(model.n_layer):
        stopped = model.run(TOKENS, capture=SITES, stop_after=layer)
        assert stopped.logits is None
        assert stopped.layers("l_out") == list(range(layer + 1))
        for site in SITES:
            assert np.array_equal(stopped[site], run[site][: layer + 1]), (site, layer)


def test_prompts_with_edits_of_their_own_give_the_bits_of_single_runs(model: interp.Model, run: interp.Run):
    prompts = [TOKENS, TOKENS[::-1][:10]]
    edits = [[interp.scale("l_out-1", 0.5)], [interp.ablate([(1, 2)])]]
    together = model.run(prompts, capture=SITES, edits=edits)
    for prompt, one, found in zip(prompts, edits, together, strict=True):
        alone = model.run(prompt, capture=SITES, edits=one)
        assert np.array_equal(found.logits, alone.logits)
        for site in SITES:
            assert np.array_equal(found[site], alone[site]), site
        assert not np.array_equal(found.logits, model.run(prompt).logits), "the edit had no effect"
    plain = model.run(prompts, edits=[[], edits[1]])
    assert np.array_equal(plain[0].logits, run.logits)
    assert np.array_equal(plain[1].logits, together[1].logits)


def test_attention_rows_sum_to_one_where_no_sink_takes_a_share(model: interp.Model, run: interp.Run, arch: str):
    sums = patterns(run, model).sum(axis=-1)
    if arch == "gpt-oss":
        assert 0 < sums.min() and sums.max() < 1
    else:
        assert np.abs(sums - 1).max() <= 1e-5


def test_attention_is_causal(model: interp.Model, run: interp.Run):
    future = ~np.tri(N, dtype=bool)
    assert not patterns(run, model)[..., future].any()
    assert patterns(run, model)[..., ~future].min() >= 0


def test_a_longer_prompt_leaves_the_earlier_rows_as_they_were(model: interp.Model, run: interp.Run):
    shorter = model.run(TOKENS[:-5], capture=("l_out",))
    for layer in range(model.n_layer):
        np.testing.assert_allclose(shorter["l_out", layer], run["l_out", layer][:-5], rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", WINDOWED, indirect=True)
def test_sliding_window_layers_see_only_the_window(model: interp.Model, run: interp.Run):
    seen = np.tri(N, dtype=bool) & ~np.tri(N, k=-recipes.WINDOW, dtype=bool)
    attention = patterns(run, model)
    assert not attention[0::2][..., ~seen].any(), "the even layers have the window"
    assert attention[1::2][..., ~seen].max() > 0.1, "the odd layers see everything before them"


def test_the_last_logits_are_those_of_the_whole_run_whatever_else_is_read_or_changed(model: interp.Model, run: interp.Run):
    """The head takes chosen rows only, and some architectures choose them late."""
    for capture, edits in ((), ()), (SITES, ()), ("l_out", interp.scale("l_out-1", 1.5)), ((), interp.ablate([(0, 1)])):
        whole = model.run(TOKENS, capture=capture, edits=edits)
        last = model.run(TOKENS, capture=capture, edits=edits, logits="last")
        assert last.logits.shape == (1, recipes.N_VOCAB)
        # the head multiplies one row with another kernel than many
        assert np.allclose(last.logits[0], whole.logits[-1], atol=1e-5)
        none = model.run(TOKENS, capture=capture or "l_out", edits=edits, logits=None)
        assert none.logits is None and np.array_equal(none["l_out"], model.run(TOKENS, capture="l_out", edits=edits)["l_out"])


def test_generation_under_an_edit_begins_with_the_edited_run_s_token(model: interp.Model):
    edit = interp.scale("l_out-1", 1.5)
    generation = model.generate(TOKENS, max_tokens=3, edits=edit, capture="l_out")
    assert generation.tokens[0] == int(model.run(TOKENS, edits=edit).logits[-1].argmax())
