"""Induction scores: attention of a repeated random sequence, read off the patterns by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import interp


def test_scores_are_the_mean_attention_to_what_followed(tiny):
    made = interp.induction_scores(tiny, n_tokens=12, n_batch=2, seed=3)
    rng = np.random.default_rng(3)
    begin, expected = tiny.tokens(""), []
    for _ in range(2):
        drawn = rng.choice(tiny.n_vocab, 12, replace=False).tolist()
        patterns = tiny.run([*begin, *drawn, *drawn], capture="attn_scores")["attn_scores"]
        for place in range(12):
            query = len(begin) + 12 + place
            expected.append(patterns[:, :, query, len(begin) + place + 1])
    assert made.values.shape == (4, 4) and made.complete and made.n_batch == 2
    assert np.allclose(made.values, np.mean(expected, axis=0), atol=1e-6)
    again = interp.induction_scores(tiny, n_tokens=12, n_batch=2, seed=3)
    assert np.array_equal(again.values, made.values)
    assert not np.array_equal(interp.induction_scores(tiny, 12, 2, seed=4).values, made.values)


def test_the_default_model_has_induction_heads(model, tmp_path, capsys):
    made = interp.induction_scores(model, n_tokens=25, n_batch=1)
    assert made.values.shape == (30, 9) and made.values.max() > 0.6 and np.median(made.values) < 0.1
    made.print(3)
    best = made.top(1)[0]
    assert best.value == made.values[best.layer, best.head] == made.values.max()
    assert f"{best.value:.3f}" in capsys.readouterr().out
    made.plot(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 150
    made.html(tmp_path / "a.html")
    loaded = interp.InductionScores.load(made.save(tmp_path / "a.npz"))
    assert np.array_equal(loaded.values, made.values) and loaded.top(5) == made.top(5)


def test_ctrl_c_returns_the_mean_so_far(tiny, monkeypatch):
    real, calls = interp.Model.run, []

    def run(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(interp.Model, "run", run)
    part = interp.induction_scores(tiny, 8, 4, progress=False)
    assert not part.complete and part.n_batch == 2
    calls[:] = [None] * 2
    with pytest.raises(KeyboardInterrupt):
        interp.induction_scores(tiny, 8, 4, progress=False)
    calls[:] = [None] * 5
    assert np.array_equal(part.values, interp.induction_scores(tiny, 8, 2).values)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n_tokens": 1}, "n_tokens=1.*at least 2"),
        ({"n_batch": 0}, "n_batch=0"),
        ({"n_tokens": 1.5}, "integer"),
        ({"n_tokens": 200}, "context holds 256"),
        ({"n_tokens": 10**6}, "vocabulary has"),
    ],
)
def test_what_cannot_be_scored_is_said(tiny, given, says):
    with pytest.raises(interp.RunError, match=says):
        interp.induction_scores(tiny, **given)
