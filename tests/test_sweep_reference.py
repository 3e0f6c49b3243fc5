"""A sweep is what TransformerLens' own patching functions measure, on the same F32 weights.

The values compared with are committed (`tests/reference/sweeps.npz`); a test marked `reference` computes some of them
anew: all would take minutes, which `tests/reference/sweeps.py --check` does.
"""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
from reference import sweeps

COMMITTED = sweeps.load()

each_site = pytest.mark.parametrize("site", list(sweeps.SITES))


@pytest.fixture(scope="module")
def found(f32_model: interp.Model) -> dict[str, interp.Sweep]:
    """Our sweep of each site."""
    return {site: sweeps.ours(f32_model, site, COMMITTED.tokens) for site in sweeps.SITES}


def test_the_reference_was_computed_from_this_default_model():
    assert COMMITTED.meta["gguf_sha256"] == models.sha256_of(models.default_gguf()), (
        "the default model is another file; run tests/reference/sweeps.py to compute its values"
    )


def test_the_pair_is_tokenised_as_in_the_reference(f32_model: interp.Model):
    tokens = COMMITTED.tokens
    assert f32_model.tokens(sweeps.CLEAN) == tokens.clean
    assert f32_model.tokens(sweeps.CORRUPTED) == tokens.corrupted
    assert [f32_model.tokens(sweeps.ANSWER), f32_model.tokens(sweeps.INSTEAD)] == [[tokens.answer], [tokens.instead]]


@each_site
def test_every_cell_equals_transformer_lens(found, site: str):
    values, reference = found[site].values, COMMITTED.values[site]
    assert values.shape == reference.shape
    off = np.abs(values - reference)
    layer, column = np.unravel_index(off.argmax(), off.shape)
    assert off.max() <= sweeps.BOUND, f"{site}: layer {layer}, column {column} is off by {off.max():.1e}"


@each_site
def test_the_largest_effects_have_the_same_sign_and_order(found, site: str):
    sweep = found[site]
    assert sweeps.ordered_alike(sweep.values, COMMITTED.values[site], sweep.baseline)


def test_another_order_or_sign_is_noticed():
    reference = COMMITTED.values["z"]
    first, second = sweeps.largest(reference, 0.0)[:2]
    assert sweeps.ordered_alike(reference.copy(), reference, 0.0)
    swapped = reference.copy()
    swapped[first], swapped[second] = reference[second], reference[first]
    assert not sweeps.ordered_alike(swapped, reference, 0.0)
    gap = abs(reference[first]) - abs(reference[second])
    assert not sweeps.ordered_alike(swapped, reference, 0.0, 0.9 * gap)
    assert sweeps.ordered_alike(swapped, reference, 0.0, 1.1 * gap)
    assert not sweeps.ordered_alike(-reference, reference, 0.0)


def test_with_flash_attention_the_sign_and_order_of_the_largest_effects_stay():
    """llama.cpp casts keys and values to halves there, also those of an F32 cache: the committed bound is out of reach."""
    with interp.Model(models.f32_default(), n_ctx=64, kv_type="f32", flash_attn=True, n_threads=1) as model:
        for site in ("resid_pre", "z"):
            sweep, reference = sweeps.ours(model, site, COMMITTED.tokens), COMMITTED.values[site]
            assert np.abs(sweep.values - reference).max() <= sweeps.FLASH_BOUND, site
            assert sweeps.ordered_alike(sweep.values, reference, sweep.baseline, sweeps.FLASH_BOUND), site


@pytest.fixture(scope="module")
def lens():
    """The default model in TransformerLens, and the pair in its tokens."""
    pytest.importorskip("transformer_lens", reason="transformer_lens is missing: pip install 'llama-interp[reference]'")
    return sweeps.load_bridge()


@pytest.mark.reference
@each_site
def test_cells_equal_transformer_lens_computed_now(found, lens, site: str):
    """The ten largest effects, and twenty others."""
    model, tokens = lens
    assert tokens == COMMITTED.tokens
    reference, values = COMMITTED.values[site], found[site].values
    cells = sweeps.largest(reference, found[site].baseline)
    others = [cell for cell in np.ndindex(reference.shape) if cell not in cells]
    cells += [others[i] for i in np.random.default_rng(0).choice(len(others), 20, replace=False)]
    now = sweeps.theirs(model, site, tokens, cells)
    where = tuple(np.array(cells).T)
    assert np.abs(now - reference[where]).max() <= sweeps.CHECK_BOUND, "the committed values are no longer true"
    assert np.abs(now - values[where]).max() <= sweeps.BOUND
