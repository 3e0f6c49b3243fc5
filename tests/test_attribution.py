"""Direct logit attribution: the parts sum to the logits, heads to their attention."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import interp
import models
from interp import attribution
from recipes import RECIPES

PROMPT = "When Mary and John went to the store, John gave a drink to"
A, B = " Mary", " John"


def loaded(arch: str) -> interp.Model:
    return interp.Model(models.tiny(arch), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1)


def logits_of(model, run, position: int = -1) -> np.ndarray:
    """Before the cap, where there is one."""
    logits = run.logits[position].astype(np.float64)
    cap = {"gemma2": 5.0}.get(model.arch)
    return cap * np.arctanh(logits / cap) if cap else logits


@pytest.mark.parametrize("arch", RECIPES)
def test_the_parts_sum_to_the_logits_and_heads_to_their_attention(arch):
    with loaded(arch) as model:
        run = model.run(PROMPT)
        for position in (-1, 5):
            logits = logits_of(model, run, position)
            a, b = (model.tokens(text)[-1] for text in (A, B))
            both = interp.direct_logit_attribution(model, PROMPT, A, B, position)
            assert both.total == pytest.approx(logits[a] - logits[b], abs=1e-3)
            whole = both.embedding + both.attn.sum() + both.mlp.sum() + both.bias
            assert whole == pytest.approx(both.total, abs=1e-3)
            assert sum(share.value for share in both.top(10**6)) == pytest.approx(both.total, abs=1e-3)
            one = interp.direct_logit_attribution(model, PROMPT, A, position=position)
            assert one.total == pytest.approx(logits[a], abs=1e-3)
            assert both.by_head.shape == (model.n_layer, model.n_head) and not np.isnan(both.by_head).any()
            biased = model._has_weight("blk.0.attn_output.bias")
            off = np.abs(both.by_head.sum(axis=1) - both.attn).max()
            assert off > 1e-3 if biased else off < 1e-4


def test_each_part_is_what_the_head_makes_of_it_with_the_norm_held(tiny):
    sites = (*attribution.SITES, *attribution.HEAD_SITES)
    run = tiny.run(PROMPT, capture=sites)
    made = interp.direct_logit_attribution(run, None, A, B)
    a, b = (tiny.tokens(text)[-1] for text in (A, B))
    last = run["l_out", -1][-1].astype(np.float64)
    scale = 1 / np.sqrt(np.mean(last**2) + 1e-5)
    matrix = tiny.weight("output.weight")
    direction = scale * tiny.weight("output_norm.weight") * (matrix[a] - matrix[b])
    assert made.embedding == pytest.approx(run["resid_pre", 0][-1] @ direction, abs=1e-4)
    assert np.allclose(made.mlp, run["mlp_out"][:, -1] @ direction, atol=1e-4)
    assert np.allclose(made.attn, run["attn_out"][:, -1] @ direction, atol=1e-4)
    matrix = tiny.weight("blk.2.attn_output.weight")
    head = run["z", 2][-1, 3] @ matrix[:, 3 * 16 : 4 * 16].T
    assert made.by_head[2, 3] == pytest.approx(head @ direction, abs=1e-4)
    from_model = interp.direct_logit_attribution(tiny, PROMPT, A, B)
    assert np.allclose(from_model.values, made.values, atol=1e-4)


def test_of_a_quantised_model_the_parts_sum_to_the_noise_of_its_kernels():
    with interp.Model(n_ctx=64, n_threads=1, repack=False) as model:
        run = model.run("The Eiffel Tower is located in the city of")
        a, b = (model.tokens(text)[-1] for text in (" Paris", " London"))
        made = interp.direct_logit_attribution(model, run.tokens, a, b)
        wanted = float(run.logits[-1, a] - run.logits[-1, b])
        assert made.total == pytest.approx(wanted, abs=0.25)
        whole = made.embedding + made.attn.sum() + made.mlp.sum() + made.bias
        assert whole == pytest.approx(made.total, abs=0.02)
        assert np.nanmax(np.abs(made.by_head.sum(axis=1) - made.attn)) < 0.2


def test_what_is_no_sum_is_refused_by_the_name_of_its_architecture(tiny, monkeypatch):
    run = tiny.run(PROMPT, capture=attribution.SITES)
    made = interp.direct_logit_attribution(run, None, A)
    assert made.by_head.shape == (4, 0) and made.top(1)[0].part != "head", "without z there are no heads"
    run["hook_mlp_out", 2][:] *= 1.1
    with pytest.raises(interp.ModelError, match="architecture llama is no plain sum.* miss [0-9.]+%"):
        interp.direct_logit_attribution(run, None, A)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"a": None}, interp.RunError, "needs a token"),
        ({"b": A}, interp.RunError, "the same token"),
        ({"a": "antidisestablishmentarianism"}, interp.RunError, "not one"),
        ({"prompt": None}, interp.RunError, "needs a prompt"),
        ({"position": 14}, interp.SiteError, "0 to 13"),
        ({"position": 1.5}, interp.SiteError, "whole number"),
    ],
)
def test_what_cannot_be_attributed_is_said(tiny, given, error, says):
    with pytest.raises(error, match=says):
        interp.direct_logit_attribution(tiny, **{"prompt": PROMPT, "a": A, "b": B, **given})


def test_a_run_that_holds_too_little_is_refused(tiny, tmp_path):
    with pytest.raises(interp.SiteError, match="was not captured"):
        interp.direct_logit_attribution(tiny.run(PROMPT, capture="l_out"), None, A)
    last = tiny.run(PROMPT, capture=attribution.SITES, logits="last")
    with pytest.raises(interp.RunError, match="logits='all'"):
        interp.direct_logit_attribution(last, None, A, position=3)
    with pytest.raises(interp.RunError, match="has no model"):
        interp.direct_logit_attribution(interp.Run.load(last.save(tmp_path / "a.npz")), None, A)
    some = tiny.run(PROMPT, capture=[interp.at(site, layers=None, positions=4) for site in attribution.SITES])
    with pytest.raises(interp.SiteError, match="at position 13"):
        interp.direct_logit_attribution(some, None, A)


def test_it_is_printed_drawn_and_saved(tiny, tmp_path, capsys):
    made = interp.direct_logit_attribution(tiny, PROMPT, A, B)
    made.print()
    text = capsys.readouterr().out
    assert "logit difference ␣Mary − ␣John" in text
    assert f"{made.total:+.3f}" in text and f"{made.top(1)[0].value:+.3f}" in text
    made.plot(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 150
    made.html(tmp_path / "a.html")
    again = interp.Attribution.load(made.save(tmp_path / "a.npz"))
    assert np.array_equal(again.values, made.values) and again.top(4) == made.top(4)
