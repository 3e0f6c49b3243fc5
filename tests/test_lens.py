"""The logit lens: its numbers against plain softmax, its errors, and the default model's answer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import interp
from fakes import PIECES, FakeModel
from interp import lens as lens_module
from interp import plot
from interp.errors import RunError, SiteError
from interp.lens import logit_lens

TOKENS = [0, 1, 4, 5, 6, 9, 11]


@pytest.fixture
def fake() -> FakeModel:
    return FakeModel()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def printed(table) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


# Numbers


def test_top_tokens_and_probabilities_are_those_of_the_softmax(fake: FakeModel):
    lens = logit_lens(fake, TOKENS, k=6)
    assert lens.layers == [0, 1, 2, 3] and lens.top_ids.shape == lens.top_probs.shape == (4, 7, 6)
    for row, layer in enumerate(lens.layers):
        probs = softmax(lens.logits(layer))
        order = np.argsort(-probs, axis=-1)[:, :6]
        assert (lens.top_ids[row] == order).all()
        np.testing.assert_allclose(lens.top_probs[row], np.take_along_axis(probs, order, -1), rtol=1e-5)


def test_the_last_layer_is_the_run_itself(fake: FakeModel):
    run = fake.run(TOKENS, capture=("l_out",))
    lens = logit_lens(run)
    assert np.array_equal(lens.logits(3), run.logits)
    for position in range(len(TOKENS)):
        assert [p for p, _ in lens.top(-1, position)[:5]] == [p for p, _ in run.top(5, position)]


def test_rank_and_probability_of_one_token(fake: FakeModel):
    lens = logit_lens(fake, TOKENS)
    rank, prob = lens.rank(" Paris"), lens.prob(" Paris")
    assert rank.shape == prob.shape == (4, 7) and rank.dtype.kind == "i"
    for row, layer in enumerate(lens.layers):
        logits = lens.logits(layer)
        assert (rank[row] == (logits > logits[:, 1:2]).sum(-1)).all()
        np.testing.assert_allclose(prob[row], softmax(logits)[:, 1], rtol=1e-5)
    # The best token of every cell has rank 0 there.
    best = int(lens.top_ids[2, 3, 0])
    assert lens.rank(best)[2, 3] == 0 and lens.prob(best)[2, 3] == pytest.approx(lens.top_probs[2, 3, 0], rel=1e-5)


def test_of_equal_logits_the_lower_id_comes_first_in_ranks_and_lists(fake: FakeModel):
    fake.unembed, plain = lambda resid: plain(resid)[:, [*range(7), 2, *range(8, fake.n_vocab)]], fake.unembed
    lens = logit_lens(fake, TOKENS, k=fake.n_vocab)
    assert (lens.rank(7) == lens.rank(2) + 1).all()
    for token in range(fake.n_vocab):
        assert (np.take_along_axis(lens.top_ids, lens.rank(token)[..., None], -1) == token).all()


def test_probabilities_survive_large_and_infinite_logits(fake: FakeModel):
    fake.head *= 1000
    fake.unembed, plain = lambda resid: np.where(np.arange(fake.n_vocab) == 3, -np.inf, plain(resid)), fake.unembed
    lens = logit_lens(fake, TOKENS, k=fake.n_vocab)
    assert np.isfinite(lens.top_probs).all() and (lens.prob(3) == 0).all()
    np.testing.assert_allclose(lens.top_probs.sum(-1), 1, rtol=1e-5)


def test_blocks_of_any_size_give_the_same_lens(fake: FakeModel, monkeypatch: pytest.MonkeyPatch):
    whole = logit_lens(fake, TOKENS)
    monkeypatch.setattr(lens_module, "_ROWS", 3)
    monkeypatch.setattr(lens_module, "_LOGITS", 2 * fake.n_vocab)
    fake.rows.clear()
    parts = logit_lens(fake, TOKENS)
    assert max(fake.rows[1:]) == 3    # the first call is the run's own
    assert np.array_equal(whole.top_ids, parts.top_ids) and np.array_equal(whole.top_probs, parts.top_probs)
    assert np.array_equal(whole.rank(1), parts.rank(1)) and np.array_equal(whole.prob(1), parts.prob(1))


def test_k_is_cut_to_the_vocabulary(fake: FakeModel):
    lens = logit_lens(fake, TOKENS, k=1000)
    assert lens.top_ids.shape[2] == fake.n_vocab and len(lens.top(0)) == fake.n_vocab
    np.testing.assert_allclose(lens.top_probs.sum(-1), 1, rtol=1e-5)


# Choosing


def test_negative_layers_and_positions_count_from_the_end(fake: FakeModel):
    lens = logit_lens(fake, TOKENS)
    assert lens.top(-1, -1) == lens.top(3, 6) and lens.top(-4, -7) == lens.top(0, 0)
    assert np.array_equal(lens.logits(-2), lens.logits(2))


@pytest.mark.parametrize("layer", [4, -5, 99])
def test_a_layer_out_of_range_names_the_range(fake: FakeModel, layer: int):
    lens = logit_lens(fake, TOKENS)
    for call in (lens.logits, lens.top):
        with pytest.raises(SiteError, match=rf"layer {layer} .*0-3"):
            call(layer)


@pytest.mark.parametrize("position", [7, -8])
def test_a_position_out_of_range_names_the_range(fake: FakeModel, position: int):
    lens = logit_lens(fake, TOKENS)
    with pytest.raises(SiteError, match=rf"position {position} .*7 tokens, -7 to 6"):
        lens.top(0, position)


def test_a_bare_word_is_tried_with_a_leading_space(fake: FakeModel):
    lens = logit_lens(fake, TOKENS)
    # "of" alone is no token of this vocabulary, "Paris" is one beside " Paris".
    assert np.array_equal(lens.rank("of"), lens.rank(PIECES.index(" of")))
    assert np.array_equal(lens.rank("Paris"), lens.rank(PIECES.index("Paris")))


def test_a_token_that_every_text_starts_with_is_not_counted(fake: FakeModel):
    fake.tokens, plain = lambda text: [13, *plain(text)], fake.tokens
    assert np.array_equal(logit_lens(fake, TOKENS).rank(" Paris"), logit_lens(fake, TOKENS).rank(1))


def test_a_text_of_several_tokens_shows_them(fake: FakeModel):
    lens = logit_lens(fake, TOKENS)
    with pytest.raises(RunError, match="2 tokens, not one: ' Paris', ' of'"):
        lens.rank(" Paris of")
    for wrong in (20, -1, "", 1.5, None):
        with pytest.raises(RunError):
            lens.prob(wrong)


# What cannot be read


def test_a_site_of_another_width_names_both_widths(fake: FakeModel):
    with pytest.raises(SiteError, match=r"n_embd = 8.*'ffn_up'.*\(7, 16\)"):
        logit_lens(fake, TOKENS, site="ffn_up")
    with pytest.raises(SiteError, match=r"n_embd = 8.*\(3, 7, 7\)"):
        logit_lens(fake, TOKENS, site="attn_scores")


def test_a_run_without_the_site_or_with_fewer_rows_says_how_to_get_them(fake: FakeModel):
    with pytest.raises(SiteError, match="capture"):
        logit_lens(fake.run(TOKENS, capture=("attn_scores",)))
    run = fake.run(TOKENS, capture=("l_out",))
    run._values["l_out", 3] = run["l_out", 3][-1:]
    with pytest.raises(SiteError, match='1 of 7 positions.*logits="all"'):
        logit_lens(run)


def test_prompts_models_and_k_are_checked(fake: FakeModel):
    run = fake.run(TOKENS, capture=("l_out",))
    with pytest.raises(RunError, match="needs a prompt"):
        logit_lens(fake)
    with pytest.raises(RunError, match="takes no prompt"):
        logit_lens(run, "again")
    for k in (0, -3):
        with pytest.raises(RunError, match="at least 1"):
            logit_lens(run, k=k)
    run.model = None
    with pytest.raises(RunError, match="model="):
        logit_lens(run)
    assert logit_lens(run, model=fake).top(0) == logit_lens(fake, TOKENS).top(0)


# Table and pictures


def test_the_table_has_a_row_for_each_layer_and_a_column_for_each_rank(fake: FakeModel):
    lens = logit_lens(fake, TOKENS)
    table = lens.table(position=2, k=4)
    assert table.row_count == 4 and len(table.columns) == 5
    text = printed(table)
    piece, prob = lens.top(1, 2)[0]
    row = next(line for line in text.splitlines() if line.split()[:1] == ["1"])
    assert row.split()[1] == plot.visible(piece, 9) and f"{100 * prob:.1f} %" in row
    assert "position 2" in text and max(map(len, text.splitlines())) <= 100


def test_the_title_ends_with_the_last_eight_tokens_and_shows_that_there_are_more(fake: FakeModel):
    lens = logit_lens(fake, [*TOKENS, *TOKENS])
    for position, first in ((7, 0), (8, 1)):
        words = plot.visible("".join(lens.pieces[first : position + 1]))
        assert lens.table(position).title.plain.endswith(f", after {'…' if first else ''}{words}")


def test_printing_into_a_pipe_has_no_colour_and_cuts_nothing(fake: FakeModel, capsys: pytest.CaptureFixture):
    logit_lens(fake, TOKENS).print()
    out = capsys.readouterr().out
    assert "\x1b" not in out and "…" not in out.replace("antidise…", "") and "10." in out


def test_printing_on_a_narrow_terminal_shows_the_ranks_that_fit(fake: FakeModel):
    out = io.StringIO()
    logit_lens(fake, TOKENS).print(console=Console(file=out, width=80, force_terminal=True, color_system=None))
    assert "4 of 10 ranks fit" in out.getvalue() and out.getvalue().splitlines()[1].split()[-1] == "4."


def test_a_picture_of_a_lens(fake: FakeModel, tmp_path: Path):
    lens = logit_lens(fake, TOKENS)
    lens.plot(tmp_path / "all.png")
    lens.plot(tmp_path / "part.png", positions=[-1, 0], layers=2)
    sizes = [Image.open(tmp_path / name).size for name in ("all.png", "part.png")]
    assert sizes[0][0] > sizes[1][0] > 100 and sizes[0][1] >= sizes[1][1] > 50
    for wrong in ({"positions": [7]}, {"layers": -5}, {"positions": []}):
        with pytest.raises(SiteError):
            lens.plot(tmp_path / "wrong.png", **wrong)
    assert {p.name for p in tmp_path.iterdir()} == {"all.png", "part.png"}


def test_a_long_prompt_shows_its_last_40_positions_and_says_so(fake: FakeModel, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(plot, "lens_png", lambda *args: drawn.append(args))
    lens = logit_lens(fake, TOKENS * 10)
    lens.plot("all.png")
    lens.plot("chosen.png", positions=range(60))
    (_, cells, probs, rows, inputs, positions, title), chosen = drawn
    assert list(positions) == list(range(30, 70)) and "last 40 of 70" in title
    assert np.shape(cells) == probs.shape == (4, 40) and rows == ["0", "1", "2", "3"] and inputs == lens.pieces[30:]
    assert cells[1][0] == lens.top(1, 30)[0][0]
    assert len(chosen[4]) == 60 and "last" not in chosen[6]


def test_a_page_of_a_lens_holds_every_position(fake: FakeModel, tmp_path: Path):
    logit_lens(fake, TOKENS).html(tmp_path / "lens.html")
    text = (tmp_path / "lens.html").read_text(encoding="utf-8")
    assert all(f"layer 3, position {i}" in text for i in range(7)) and "<script src" not in text


# The default model

PROMPT = "The Eiffel Tower is located in the city of"


@pytest.fixture(scope="module")
def run(model: interp.Model) -> interp.Run:
    return model.run(PROMPT, capture=("l_out",))


def test_the_default_models_last_layer_equals_its_logits_bit_for_bit(run: interp.Run):
    assert np.array_equal(interp.logit_lens(run).logits(-1), run.logits)


def test_the_default_model_settles_on_paris_in_its_last_layers(run: interp.Run):
    lens = interp.logit_lens(run)
    assert lens.top(-1)[0][0] == " Paris" and lens.top(-1)[0][1] == pytest.approx(run.top(1)[0][1], rel=1e-4)
    rank = lens.rank(" Paris")[:, -1]
    assert rank[-1] == 0 and (rank[:10] > 100).all()
    assert lens.prob(" Paris")[-1, -1] > 0.3


@pytest.mark.parametrize("site", ["ffn_inp", "resid_post", "attn_out"])
def test_other_sites_and_aliases_of_the_default_model(model: interp.Model, site: str):
    lens = interp.logit_lens(model, PROMPT, site=site, k=3)
    assert lens.layers == list(range(model.n_layer)) and lens.top_ids.shape == (model.n_layer, len(lens.tokens), 3)
    np.testing.assert_allclose(softmax(lens.logits(7))[-1].max(), lens.top(7)[0][1], rtol=1e-4)
