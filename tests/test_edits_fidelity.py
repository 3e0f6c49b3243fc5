"""What an edit does to the default model is what the same edit, hooked into transformers, does to it.

F32 weights, F32 KV cache, flash attention off. The edits and their committed logits are in `tests/reference`; the
tests marked `reference` compute the logits anew.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import interp
import models
from reference import edits, make
from reference.edits import Ablate, Case, Knockout
from reference.values import LOGITS_BOUND, assert_within

#: what an edit must change at least, far above the bound: else another edit, or none, would pass as well
EFFECT = 0.05

EFFECTS = edits.load()

each_case = pytest.mark.parametrize("case", edits.CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def plain(f32_model: interp.Model) -> np.ndarray:
    """The logits without an edit."""
    return f32_model.run(EFFECTS.tokens).logits


def edited(model: interp.Model, case: Case) -> np.ndarray:
    """The logits under an edit."""
    return model.run(EFFECTS.tokens, edits=case.ours(model, EFFECTS.other)).logits


def test_the_reference_was_computed_from_this_default_model_and_these_edits(f32_model: interp.Model):
    advice = "run tests/reference/make.py to compute the values"
    assert EFFECTS.meta["gguf_sha256"] == models.sha256_of(models.default_gguf()), f"another default model; {advice}"
    assert EFFECTS.meta["edits"] == edits.descriptions(), f"the edits are others; {advice}"
    assert [EFFECTS.tokens, EFFECTS.other] == [f32_model.tokens(edits.PROMPT), f32_model.tokens(edits.OTHER)]


@each_case
def test_logits_under_an_edit_equal_transformers(f32_model: interp.Model, plain: np.ndarray, case: Case):
    logits = edited(f32_model, case)
    assert np.abs(logits - plain).max() > EFFECT, "the edit has hardly an effect"
    assert_within(EFFECTS.errors(case, logits), LOGITS_BOUND, "the logits", where="position")


def test_zeroing_the_attention_of_a_head_equals_zeroing_the_head(f32_model: interp.Model):
    case = next(case for case in edits.CASES if isinstance(case, Ablate) and case.mode == "zero")
    logits = edited(f32_model, replace(case, site="attn_scores"))
    assert_within(EFFECTS.errors(case, logits), LOGITS_BOUND, "the logits", where="position")


@pytest.mark.parametrize("case", [case for case in edits.CASES if isinstance(case, Knockout)], ids=lambda c: c.name)
def test_cut_edges_carry_no_attention_and_the_others_all_of_it(f32_model: interp.Model, case: Knockout):
    capture = interp.at("attn_scores", layers=case.layers)
    run = f32_model.run(EFFECTS.tokens, capture=capture, edits=case.ours(f32_model, EFFECTS.other))
    heads = range(f32_model.n_head) if case.heads is None else case.heads
    for layer in case.layers:
        attention = run["attn_scores", layer]
        cut = np.zeros(attention.shape, bool)
        cut[np.ix_(heads, case.queries, case.keys)] = True
        assert (attention[cut] == 0).all()
        assert (attention[~cut & np.tri(*cut.shape[1:], dtype=bool)] > 0).all()
        np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.reference
def test_committed_logits_are_what_transformers_computes_now(transformers):
    assert make.check_edits(), "the committed logits are no longer true; the printed lines say by how much"


@pytest.mark.reference
@each_case
def test_all_logits_under_an_edit_equal_transformers_computed_now(f32_model: interp.Model, case: Case, transformers):
    reference = make.recompute_edited(case, EFFECTS.tokens, EFFECTS.other)
    errors = np.abs(edited(f32_model, case) - reference).max(axis=-1)
    assert_within(errors, LOGITS_BOUND, "the logits", where="position")
