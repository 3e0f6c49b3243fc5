"""What llama.cpp computes is what transformers computes: attention, residual stream and logits of the default model.

F32 weights, F32 KV cache, flash attention off. The values compared with are committed (`tests/reference`); one
test, marked `reference`, computes them anew.
"""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
from reference import make, values
from reference.values import ATTENTION_BOUND, LOGITS_BOUND, RESIDUAL_BOUND, Errors, Forward, Reference, assert_within

META, REFERENCES = values.load()

each_prompt = pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.prompt[:20])


@pytest.fixture(scope="module")
def forwards(f32_model: interp.Model) -> dict[str, Forward]:
    """llama.cpp's forward pass over each prompt."""
    return {reference.prompt: forward(f32_model, reference.tokens) for reference in REFERENCES}


def forward(model: interp.Model, tokens: list[int]) -> Forward:
    run = model.run(tokens, capture=("l_out", "attn_scores"))
    layers = range(model.n_layer)
    attention = np.stack([run["attn_scores", layer] for layer in layers])
    return Forward(attention, np.stack([run["l_out", layer] for layer in layers]), run.logits)


def assert_faithful(errors: Errors) -> None:
    assert_within(errors.attention, ATTENTION_BOUND, "attention")
    assert_within(errors.residual, RESIDUAL_BOUND, "the residual stream (relative)")
    assert_within(errors.logits, LOGITS_BOUND, "the logits", where="position")


def test_the_reference_was_computed_from_this_default_model():
    assert META["gguf_sha256"] == models.sha256_of(models.default_gguf()), (
        "the default model is another file; run tests/reference/make.py to compute its values"
    )


@each_prompt
def test_prompts_are_tokenised_as_in_the_reference(f32_model: interp.Model, reference: Reference):
    assert f32_model.tokens(reference.prompt) == reference.tokens


@each_prompt
def test_attention_equals_transformers_in_every_layer(forwards, reference: Reference):
    found = values.errors(forwards[reference.prompt], reference)
    assert_within(found.attention, ATTENTION_BOUND, "attention")


@each_prompt
def test_residual_stream_equals_transformers_in_every_layer(forwards, reference: Reference):
    found = values.errors(forwards[reference.prompt], reference)
    assert_within(found.residual, RESIDUAL_BOUND, "the residual stream (relative)")


@each_prompt
def test_logits_equal_transformers_at_every_position(forwards, reference: Reference):
    found = values.errors(forwards[reference.prompt], reference)
    assert_within(found.logits, LOGITS_BOUND, "the logits", where="position")


@pytest.mark.parametrize(
    ("name", "at"), [("attention", (3, 0, 2, 1)), ("residual", (3, 2, 5)), ("logits", (2, values.LOGIT_STRIDE))]
)
def test_one_wrong_number_is_noticed_where_it_is(name: str, at: tuple[int, ...]):
    rng = np.random.default_rng(0)
    shapes = {"attention": (4, 2, 3, 3), "residual": (4, 3, 8), "logits": (3, 200)}
    right = Forward(**{key: rng.standard_normal(shape, np.float32) for key, shape in shapes.items()})
    reference = Reference.of("a b c", [1, 2, 3], right)
    assert_faithful(values.errors(right, reference))

    wrong = getattr(right, name).copy()
    wrong[at] += 1e-3
    found = values.errors(Forward(**{**vars(right), name: wrong}), reference)
    assert np.flatnonzero(getattr(found, name)).tolist() == [at[0]]
    with pytest.raises(AssertionError, match=f"{at[0]}: "):
        assert_faithful(found)


@pytest.mark.reference
def test_committed_values_are_what_transformers_computes_now(transformers):
    assert make.check(), "the committed values are no longer true; the printed lines say by how much"


@pytest.mark.reference
@each_prompt
def test_every_position_equals_transformers_computed_now(forwards, reference: Reference, transformers):
    assert_faithful(values.errors(forwards[reference.prompt], make.recompute(reference.tokens)))
