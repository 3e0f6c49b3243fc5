"""Reading changes nothing: the same logits, bit for bit, from the unpatched library, the patched one, and while reading."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
import unpatched
from conftest import PROMPT

READ = ("l_out", "kqv_out", "attn_scores")


def prompts(model: interp.Model) -> dict[str, list[int]]:
    """A short prompt, and one of several hundred tokens: other kernels, and keys in two blocks of the cache."""
    long = np.random.default_rng(1).integers(0, model.n_vocab, 300).tolist()
    return {"short": model.tokens(PROMPT), "long": long}


@pytest.mark.parametrize("length", ["short", "long"])
def test_the_patched_library_gives_the_bits_of_the_unpatched_one(model, tmp_path, length):
    folder = unpatched.needed()
    tokens = prompts(model)[length]
    reference = unpatched.logits(models.default_gguf(), tokens, folder, tmp_path)
    plain = model.run(tokens).logits
    assert np.array_equal(plain, reference), "nothing attached"
    read = model.run(tokens, capture=READ)
    assert np.array_equal(read.logits, reference), "while reading"
    assert read["l_out"].shape == (model.n_layer, len(tokens), model.n_embd)
    assert read["attn_scores"].shape == (model.n_layer, model.n_head, len(tokens), len(tokens))


def test_every_site_can_be_read_without_changing_a_bit(tiny):
    plain = tiny.run(PROMPT).logits
    for site in tiny.sites():
        if site.layer in (-1, 1):
            run = tiny.run(PROMPT, capture=interp.at(str(site.key)))
            assert np.array_equal(run.logits, plain), str(site.key)
            assert list(run[str(site.key)].shape[-1:]) == [site.shape[-1] or len(run.tokens)], str(site.key)


def test_reading_everything_at_once_equals_reading_one_by_one(tiny):
    sites = [site for site in tiny.sites() if site.layer in (-1, 0, 3)]
    together = tiny.run(PROMPT, capture=[str(site.key) for site in sites])
    for site in sites:
        alone = tiny.run(PROMPT, capture=str(site.key))
        assert np.array_equal(together[str(site.key)], alone[str(site.key)]), str(site.key)


def test_a_program_never_inherits_the_memory_plan_of_another(tiny):
    """Graphs of one size whose captures differ: ggml-alloc would take the first one's plan for the second."""
    alone = {site: tiny.run(PROMPT, capture=site)[site] for site in ("l_out-0", "l_out-1", "ffn_inp-2", "Kcur-1", "attn_norm-3")}
    for first in alone:
        for second in alone:
            tiny.run(PROMPT, capture=first)
            assert np.array_equal(tiny.run(PROMPT, capture=second)[second], alone[second]), (first, second)


def test_a_prompt_in_several_ubatches_reads_as_one(model):
    """600 tokens are two ubatches: rows are joined, and the keys of the first are those of the second."""
    with interp.Model(models.tiny("llama"), n_ctx=1024, kv_type="f32", flash_attn=False, n_threads=1) as long:
        tokens = np.random.default_rng(2).integers(0, long.n_vocab, 600).tolist()
        whole, start = long.run(tokens, capture=READ), long.run(tokens[:500], capture=READ)
        assert whole["l_out"].shape == (long.n_layer, 600, long.n_embd)
        assert np.allclose(whole["l_out"][:, :500], start["l_out"], atol=1e-4)
        attention = whole["attn_scores", 1]
        assert attention.shape == (long.n_head, 600, 600)
        assert np.allclose(attention.sum(-1), 1, atol=1e-5)
        assert not np.triu(attention, 1).any()
        assert np.allclose(attention[:, :500, :500], start["attn_scores", 1], atol=1e-5)
        chosen = long.run(tokens, capture=[interp.at("l_out", positions=[3, 511, 512, -1]), interp.at("attn_scores", queries=[3, 599])])
        assert np.array_equal(chosen["l_out"], whole["l_out"][:, [3, 511, 512, 599]])
        assert np.allclose(chosen["attn_scores"], whole["attn_scores"][:, :, [3, 599]], atol=1e-6)


def test_generation_reads_what_one_run_over_the_same_tokens_reads(tiny):
    made = tiny.generate(PROMPT, max_tokens=6, capture=READ)
    again = tiny.run(made.run.tokens, capture=READ)
    assert len(made.tokens) == 6
    assert made.run["l_out"].shape == again["l_out"].shape
    for site in READ:
        assert np.allclose(made.run[site], again[site], atol=1e-4), site
    assert np.allclose(made.run.logits, again.logits[-6:], atol=1e-4)


def test_generation_with_captures_makes_the_same_tokens(model):
    plain = model.generate(PROMPT, max_tokens=16)
    read = model.generate(PROMPT, max_tokens=16, capture=("l_out", "attn_scores"))
    assert plain.tokens == read.tokens
    assert "Paris" in plain.text
    assert np.array_equal(plain.run.logits[1:], read.run.logits[1:])
