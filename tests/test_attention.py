"""Attention maps: which layers and heads are kept, what is drawn, and the default model's patterns."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import interp
from fakes import FakeModel, FakeRun
from interp import plot
from interp.attention import attention
from interp.errors import RunError, SiteError

TOKENS = [0, 1, 4, 5, 6, 9, 11]


@pytest.fixture
def run() -> FakeRun:
    return FakeModel().run(TOKENS, capture=("attn_scores",))


def test_patterns_are_those_of_the_run(run: FakeRun):
    maps = attention(run)
    assert maps.layers == [0, 1, 2, 3] and maps.heads == [0, 1, 2] and maps.pieces == run.pieces
    assert np.array_equal(maps.pattern(-1), run["attn_scores", 3])


def test_a_model_and_a_prompt_give_the_same_as_a_run(run: FakeRun):
    assert np.array_equal(attention(run.model, TOKENS).pattern(2), run["attn_scores", 2])


def test_chosen_layers_and_heads(run: FakeRun):
    maps = attention(run, layers=[-1, 1], heads=[2, 0])
    assert maps.layers == [1, 3] and maps.heads == [0, 2]
    assert np.array_equal(maps.pattern(1), run["attn_scores", 1][[0, 2]])
    assert attention(run, layers=2, heads=-1).pattern(2).shape == (1, 7, 7)


def test_a_model_copies_only_the_chosen_layers_and_heads(run: FakeRun):
    asked = []
    run.model.run, plain = lambda prompt, capture: asked.append(capture) or plain(prompt, capture), run.model.run
    maps = attention(run.model, TOKENS, layers=[-1, 1], heads=[-1, 0])
    assert set(asked[0][0].layers) == {-1, 1} and asked[0][0].heads == (0, 2)
    assert maps.layers == [1, 3] and maps.heads == [0, 2]
    assert np.array_equal(maps.pattern(3), run["attn_scores", 3][[0, 2]])


def test_a_run_of_some_heads_needs_their_names(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    for layer in range(4):
        run._values["attn_scores", layer] = run["attn_scores", layer][[0, 2]]
    with pytest.raises(SiteError, match="2 of the 3 heads of layer 0"):
        attention(run)
    drawn = []
    monkeypatch.setattr(plot, "attention_head_png", lambda *args: drawn.append(args))
    maps = attention(run, heads=[0, 2])
    maps.plot("a.png", layer=1, head=2)
    assert np.array_equal(drawn[0][1], run["attn_scores", 1][1]) and "head 2" in drawn[0][4]


def test_a_run_of_some_queries_is_drawn_with_their_tokens(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    for layer in range(4):
        run._values["attn_scores", layer] = run["attn_scores", layer][:, 2:3]
    run.positions = lambda site, layer: [2]
    maps, drawn = attention(run), []
    assert maps.pattern(0).shape == (3, 1, 7)
    monkeypatch.setattr(plot, "attention_head_png", lambda *args: drawn.append(args))
    maps.plot("a.png", layer=0, head=0)
    _, weights, queries, keys, _ = drawn[0]
    assert queries == [run.pieces[2]] and keys == run.pieces
    # What comes after the query is no weight of zero: it cannot be seen.
    assert np.isnan(weights[0, 3:]).all() and np.array_equal(weights[0, :3], maps.pattern(0)[0, 0, :3])


def test_what_is_not_there_names_what_is(run: FakeRun, tmp_path: Path):
    with pytest.raises(SiteError, match="layer 4 .*0-3"):
        attention(run, layers=4)
    with pytest.raises(SiteError, match="head -4 .*0-2"):
        attention(run, heads=[0, -4])
    with pytest.raises(SiteError, match="layer 0 .*1, 3"):
        attention(run, layers=[1, 3]).pattern(0)
    with pytest.raises(SiteError, match="head 3 .*0-2"):
        attention(run).plot(tmp_path / "a.png", layer=0, head=3)
    with pytest.raises(SiteError, match="of which layer"):
        attention(run).plot(tmp_path / "a.png", head=1)
    with pytest.raises(SiteError, match="no layer chosen"):
        attention(run, layers=[])
    with pytest.raises(SiteError, match="whole number"):
        attention(run, heads="x")
    with pytest.raises(SiteError, match="capture"):
        attention(run.model.run(TOKENS, capture=("l_out",)))
    with pytest.raises(RunError, match="needs a prompt"):
        attention(run.model)
    with pytest.raises(RunError, match="takes no prompt"):
        attention(run, "x")
    assert os.listdir(tmp_path) == []


def test_a_run_from_a_file_needs_no_model(run: FakeRun, tmp_path: Path):
    run.model = None
    # The file keeps the model's number of layers, so -1 means its last one even where others are missing.
    del run._values["attn_scores", 3]
    maps = attention(run)
    maps.plot(tmp_path / "a.png", layer=-2, head=0)
    assert np.array_equal(maps.pattern(-2), run["attn_scores", 2])
    with pytest.raises(SiteError, match="layer -1"):
        maps.pattern(-1)


@pytest.mark.parametrize("chosen", [{}, {"layer": 1}, {"layer": -1, "head": 2}])
def test_each_kind_of_picture(run: FakeRun, tmp_path: Path, chosen: dict):
    attention(run).plot(tmp_path / "new" / "a.png", **chosen)
    assert os.listdir(tmp_path / "new") == ["a.png"]
    with Image.open(tmp_path / "new" / "a.png") as image:
        image.load()
        assert image.format == "PNG" and min(image.size) > 150 and max(image.size) < 2000


def test_titles_say_layer_and_head(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(plot, "attention_layer_png", lambda *args: drawn.append(args))
    monkeypatch.setattr(plot, "attention_head_png", lambda *args: drawn.append(args))
    maps = attention(run, heads=[0, 2])
    maps.plot("a.png", layer=-2)
    maps.plot("a.png", layer=1, head=2)
    assert drawn[0][4] == ["layer 2 head 0", "layer 2 head 2"]
    assert "layer 1 head 2" in drawn[1][4] and np.array_equal(drawn[1][1], run["attn_scores", 1][2])
    assert drawn[1][2] == drawn[1][3] == run.pieces


def test_layers_may_differ_in_their_heads(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    run._values["attn_scores", 2] = run["attn_scores", 2][:1]
    shapes = [(3, None, None), (3, None, None), (1, None, None), (3, None, None)]
    run.model.sites = lambda: [
        SimpleNamespace(name="attn_scores", layer=layer, shape=shape) for layer, shape in enumerate(shapes)
    ]
    drawn = []
    monkeypatch.setattr(plot, "attention_overview_png", lambda *args: drawn.append(args))
    maps = attention(run)
    maps.plot("a.png")
    cells = drawn[0][3]
    assert maps.pattern(2).shape[0] == 1 and cells.shape[:2] == (4, 3)
    assert np.isnan(cells[2, 1:]).all() and not np.isnan(cells[2, 0]).all()


def test_an_overview_of_a_large_model_stays_small(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(plot, "attention_overview_png", lambda *args: drawn.append(args))
    for layer in range(80):
        run._values["attn_scores", layer] = np.broadcast_to(run["attn_scores", 0][:1], (64, 7, 7))
    run.model.n_layer, run.model.n_head = 80, 64
    attention(run).plot("a.png")
    n_layer, n_head, side, _ = drawn[0][3].shape
    assert (n_layer, n_head) == (80, 64) and 20 <= side and side * n_layer < 4000


def test_a_page_of_one_head(run: FakeRun, tmp_path: Path):
    attention(run).html(tmp_path / "a.html", layer=1, head=-1)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "layer 1 head 2" in text and "<script src" not in text and os.listdir(tmp_path) == ["a.html"]


# The default model


def test_the_default_models_patterns_are_causal_and_sum_to_one(model: interp.Model):
    maps = interp.attention(model, "The Eiffel Tower is located in the city of")
    n = len(maps.tokens)
    assert maps.layers == list(range(model.n_layer)) and maps.heads == list(range(model.n_head))
    for layer in maps.layers:
        pattern = maps.pattern(layer)
        assert pattern.shape == (model.n_head, n, n)
        np.testing.assert_allclose(pattern.sum(-1), 1, atol=1e-5)
        assert (pattern[:, np.triu(np.ones((n, n), bool), 1)] == 0).all()


def test_chosen_layers_of_the_default_model_equal_the_whole(model: interp.Model):
    some = interp.attention(model, "one two three", layers=[-1, 3], heads=[1])
    assert some.layers == [3, model.n_layer - 1]
    assert np.array_equal(some.pattern(3)[0], interp.attention(model, "one two three").pattern(3)[1])
