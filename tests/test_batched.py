"""The batched sweep measures what the serial one measures, in few decodes, and leaves the model as it was."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
import recipes

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
METRIC = interp.logit_diff(" Mary", " John")

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")


#: ggml's GELU is a table of halves: an input that another kernel rounds otherwise may fall into the next entry
GELU = ("gpt2", "gemma2", "gemma3", "gptneox", "falcon", "starcoder2")


def bound(model) -> float:
    return 1e-3 if model.arch in GELU else 1e-4


def both(model, site: str, clean=CLEAN, corrupted=CORRUPTED, **options) -> tuple[interp.Sweep, interp.Sweep]:
    return tuple(
        interp.patch_sweep(model, clean, corrupted, site, METRIC, method=method, **options)
        for method in ("batched", "serial")
    )


@pytest.fixture(scope="module", params=recipes.RECIPES)
def each(request):
    with interp.Model(models.tiny(request.param), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as model:
        yield model


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def flash(request):
    with interp.Model(models.tiny(request.param), n_ctx=256, flash_attn=True, n_threads=1) as model:
        yield model


def test_every_site_on_every_architecture(each):
    for site in SITES:
        batched, serial = both(each, site)
        assert np.allclose(batched.values, serial.values, atol=bound(each)), site
        assert np.abs(serial.effects).max() > 1e-3, f"{site} moves nothing, so nothing is shown"


def test_every_head_on_every_architecture(each):
    for site in ("z", "q", "k", "v"):
        batched, serial = both(each, site, per_head=True)
        assert np.allclose(batched.values, serial.values, atol=bound(each)), site


def test_flash_attention_and_a_half_precision_cache(flash):
    for site, per_head in (("l_out", False), ("attn_out", False), ("z", True)):
        batched, serial = both(flash, site, per_head=per_head)
        # keys are rounded to halves, whichever path they take
        assert np.allclose(batched.values, serial.values, atol=2e-3), site


def test_the_default_model(model):
    batched, serial = both(model, "l_out", layers=[0, 12, 22, 29])
    assert np.allclose(batched.values, serial.values, atol=0.05)
    assert batched.normalized[1, 9] > 0.9 and batched.normalized[3, 13] == 1.0


def test_noising_chosen_positions_and_no_pruning(tiny):
    for options in ({"direction": "noise"}, {"positions": [3, 9, -1]}, {"prune": False}, {"layers": [1, -1]}):
        batched, serial = both(tiny, "l_out", **options)
        assert np.allclose(batched.values, serial.values, atol=1e-4), options


def test_prompts_that_differ_everywhere(tiny):
    tokens = np.random.default_rng(0).integers(100, 40000, (2, 24)).tolist()
    for site, per_head in (("l_out", False), ("v", False), ("z", True)):
        batched, serial = both(tiny, site, *tokens, per_head=per_head)
        assert np.allclose(batched.values, serial.values, atol=1e-4), site


def test_more_cells_than_fit_are_run_in_groups(tiny, monkeypatch):
    tokens = np.random.default_rng(1).integers(100, 40000, (2, 20)).tolist()
    whole = interp.patch_sweep(tiny, *tokens, "l_out", METRIC, method="batched")
    counts = []
    real = interp.batched._Engine.run

    def counted(engine, layer, group):
        counts.append(len(group))
        return real(engine, layer, group)

    monkeypatch.setattr(interp.batched._Engine, "run", counted)
    monkeypatch.setattr(tiny, "_n_seq_max", 4)
    again = interp.patch_sweep(tiny, *tokens, "l_out", METRIC, method="batched")
    assert max(counts) == 3 and np.allclose(again.values, whole.values, atol=1e-4)
    with interp.Model(models.tiny("llama"), n_ctx=45, kv_type="f32", flash_attn=False, n_threads=1) as small:
        cramped = interp.patch_sweep(small, *tokens, "l_out", METRIC, method="batched")
        assert np.allclose(cramped.values, whole.values, atol=1e-4)


def test_a_sequence_that_cannot_fit_is_refused_before_anything_is_run():
    tokens = np.random.default_rng(1).integers(100, 40000, (2, 20)).tolist()
    with interp.Model(models.tiny("llama"), n_ctx=30, kv_type="f32", flash_attn=False, n_threads=1) as small:
        with pytest.raises(interp.RunError, match="n_ctx=40"):
            interp.patch_sweep(small, *tokens, "l_out", METRIC, method="batched")


def test_one_graph_for_each_layer(tiny):
    import ctypes as ct

    def built() -> int:
        n_built, n_reused = ct.c_int64(), ct.c_int64()
        tiny._lib.graph_counts(tiny._handle, n_built, n_reused)
        return n_built.value

    interp.patch_sweep(tiny, CLEAN, CORRUPTED, "mlp_out", METRIC)  # whether runs may start in the middle is known now
    before = built()
    interp.patch_sweep(tiny, CLEAN, CORRUPTED, "mlp_out", METRIC)
    # two plain runs, the plain run's cache once more, and one for each layer
    assert built() - before == 3 + tiny.n_layer


def test_a_metric_may_run_the_model(tiny):
    plain = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", METRIC, method="batched")

    def metric(run) -> float:
        tiny.run("something else", edits=interp.scale("l_out-1", 0.5))
        return METRIC(run)

    again = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric, method="batched")
    assert np.allclose(again.values, plain.values, atol=1e-6)


def test_what_is_interrupted_leaves_the_model_as_it_was(tiny):
    expected = tiny.run(CLEAN).logits
    calls = []

    def metric(run) -> float:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return METRIC(run)

    sweep = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric, method="batched")
    assert not sweep.complete and np.isnan(sweep.values).any() and np.isfinite(sweep.values).any()
    assert np.array_equal(tiny.run(CLEAN).logits, expected)


def test_where_it_cannot_be_done_the_serial_method_does_it(tiny):
    with interp.Model(models.tiny("llama"), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as model:
        model._n_seq_max = 1
        assert np.allclose(
            interp.patch_sweep(model, CLEAN, CORRUPTED, "l_out", METRIC).values,
            interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", METRIC).values, atol=1e-4,
        )  # fmt: skip
        with pytest.raises(interp.RunError, match="Leave method out"):
            interp.patch_sweep(model, CLEAN, CORRUPTED, "l_out", METRIC, method="batched")
    with pytest.raises(interp.RunError, match="batched"):
        interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", METRIC, method="quick")
