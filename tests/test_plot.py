"""Pictures: readable text, files written whole, and PNG and HTML that hold what they should."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakes import PIECES
from interp import plot
from interp.errors import FileError, SiteError
from interp.plot import base, lens

BLANK = (0xDD, 0xDD, 0xDD)


def pixels(path: Path) -> np.ndarray:
    """The picture as (height, width, 3), after a check that nothing else was left beside it."""
    assert os.listdir(path.parent) == [path.name]
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def share(image: np.ndarray, colour: tuple[int, int, int]) -> float:
    return float((image == colour).all(-1).mean())


def page(path: Path) -> tuple[dict, dict]:
    """The page's heat map and layout, after a check that it needs no network and nothing was left beside it."""
    assert os.listdir(path.parent) == [path.name]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)\s*=", text)
    call = text[text.rindex("Plotly.newPlot(") :]
    traces, end = json.JSONDecoder().raw_decode(call, call.index("["))
    layout, _ = json.JSONDecoder().raw_decode(call, call.index("{", end))
    return traces[0], layout


def causal(n: int, seed: int = 0) -> np.ndarray:
    scores = np.tril(np.random.default_rng(seed).random((n, n), np.float32) + 0.01)
    return scores / scores.sum(-1, keepdims=True)


# Text


@pytest.mark.parametrize(
    ("piece", "shown"),
    [(" Paris", "␣Paris"), ("\n", "↵"), ("\t", "⇥"), ("\r", "␍"), ("", "∅"), ("\x00", "\\x00"), ("\u200b", "\\u200b")],
)
def test_what_a_reader_cannot_see_is_shown_as_a_glyph(piece: str, shown: str):
    assert plot.visible(piece) == shown


def test_long_pieces_are_cut_to_the_width_and_wide_characters_count_twice():
    assert plot.visible("antidisestablishmentarianism", 10) == "antidises…"
    assert plot.visible("antidises.", 10) == "antidises."
    assert plot.visible("漢字仮名交", 6) == "漢字…"
    assert all(plot.columns(plot.visible(p, 6)) <= 6 for p in PIECES)


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8")])
def test_spans(numbers: list[int], text: str):
    assert plot.spans(numbers) == text


def test_characters_without_a_font_are_spelled_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "_MORE_FONTS", ())
    families, missing = base._fonts(["caf\u00e9 \U0001f9ec"])
    assert families == ["DejaVu Sans"] and missing == {"\U0001f9ec"}
    assert base._spelled("a\U0001f9ecb", missing) == "aU+1F9ECb"


def test_another_installed_font_is_used_for_what_the_first_lacks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "_BASE_FONT", "cmr10")
    monkeypatch.setattr(base, "_MORE_FONTS", ("No Such Font", "DejaVu Sans"))
    assert base._fonts(["␣"]) == (["cmr10", "DejaVu Sans"], set())


# Files


def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), plot.written(path, (".png",)) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.png"]


def test_parent_folders_are_made_and_the_file_is_as_readable_as_the_umask_allows(tmp_path: Path):
    path = tmp_path / "b" / "c" / "a.png"
    before = os.umask(0o022)
    try:
        with plot.written(path, (".png",)) as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert path.read_text() == "new" and os.listdir(path.parent) == ["a.png"]
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.png.txt"])
def test_an_unsupported_suffix_is_named_before_anything_is_written(tmp_path: Path, name: str):
    with pytest.raises(FileError, match=r"must end in \.png"), plot.written(tmp_path / "new" / name, (".png",)):
        pytest.fail("nothing should be drawn")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_a_file_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(FileError, match=re.escape(str(path))), plot.written(path, (".png",)):
            pytest.fail("nothing should be drawn")


# Logit lens


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (3, 20), (90, 2)])
def test_a_lens_becomes_a_picture_that_grows_with_it(tmp_path: Path, n_rows: int, n_columns: int):
    # Every odd piece is drawn: markup, formulas, control characters, scripts without a font.
    cells = [[PIECES[(x + y) % len(PIECES)] for x in range(n_columns)] for y in range(n_rows)]
    probs = np.linspace(0, 1, n_rows * n_columns).reshape(n_rows, n_columns)
    inputs = (PIECES * 2)[:n_columns]
    path = tmp_path / "lens.png"
    plot.lens_png(path, cells, probs, [str(y) for y in range(n_rows)], inputs, range(n_columns), "a $title$")
    height, width, _ = pixels(path).shape
    assert 25 * n_rows < height < 25 * n_rows + 300
    assert 60 * n_columns < width < 130 * n_columns + 400


def test_likely_cells_are_darker_and_the_last_layer_is_at_the_top(tmp_path: Path):
    path = tmp_path / "lens.png"
    probs = np.array([[0.0], [0.0], [0.0], [1.0]])
    plot.lens_png(path, [[""]] * 4, probs, list("0123"), ["x"], [0], "")
    image = pixels(path).astype(int)
    dark = np.argwhere((image == (8, 48, 107)).all(-1) & (np.arange(image.shape[1]) < image.shape[1] // 2))
    assert len(dark) > 500 and dark[:, 0].max() < image.shape[0] / 2


def test_a_lens_page_lists_each_cells_tokens_and_works_offline(tmp_path: Path):
    path = tmp_path / "lens.html"
    top = [[[(" Paris", 0.75), ("<b>", 0.125)], [("\n", 0.5), ("a", 0.25)]]] * 2
    plot.lens_html(path, top, ["0", "29"], ["The", " <br>"], "a <title>")
    heat, layout = page(path)
    assert heat["z"] == [[0.75, 0.5]] * 2
    assert heat["text"] == [["␣Paris", "↵"]] * 2
    # A token's own tags must not act as tags.
    assert heat["hovertext"][1] == [
        "layer 29, position 0, after 'The'<br> 75.0 %  ' Paris'<br> 12.5 %  '&lt;b&gt;'",
        "layer 29, position 1, after ' &lt;br&gt;'<br> 50.0 %  '\\n'<br> 25.0 %  'a'",
    ]
    assert layout["yaxis"]["ticktext"] == ["0", "29"] and layout["title"]["text"] == "a &lt;title&gt;"
    assert layout["xaxis"]["ticktext"] == ["The<br>0", "␣&lt;br&gt;<br>1"]


def test_a_page_of_many_cells_lists_fewer_tokens_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lens, "_LISTED", 100)
    path = tmp_path / "lens.html"
    plot.lens_html(path, [[[("x", 0.1)] * 10] * 5] * 4, list("0123"), ["y"] * 5, "long")
    heat, layout = page(path)
    assert {text.count("%") for row in heat["hovertext"] for text in row} == {5}
    assert "5 likeliest" in layout["title"]["text"]


# Attention


def test_only_what_a_causal_model_cannot_see_is_blank():
    assert (plot.unreachable(causal(4)) == np.triu(np.ones((4, 4), bool), 1)).all()
    assert not plot.unreachable(np.full((4, 4), 0.25)).any()
    # Queries that end the prompt: the last one sees every key.
    assert plot.unreachable(np.zeros((2, 4))).tolist() == [[False, False, False, True], [False] * 4]


def test_a_thumbnail_keeps_the_brightest_weight_of_each_block():
    pattern = np.tril(np.full((300, 300), 0.001))
    pattern[200, 77] = 0.9
    small = plot.thumbnail(pattern, 30)
    assert small.shape == (30, 30) and np.argwhere(small == 0.9).tolist() == [[20, 7]]
    assert np.isnan(small[0, 20]) and small[29, 0] == 0.001


def test_a_thumbnail_of_few_tokens_repeats_them():
    small = plot.thumbnail(np.array([[1.0, 0.0], [0.25, 0.75]]), 8)
    assert small[:4, :4].tolist() == [[1.0] * 4] * 4 and np.isnan(small[:4, 4:]).all() and (small[4:, :4] == 0.25).all()


@pytest.mark.parametrize("n", [1, 12, 60, 400])
def test_one_head_becomes_a_picture_with_its_blank_half(tmp_path: Path, n: int):
    path, names = tmp_path / "head.png", (PIECES * 20)[:n]
    plot.attention_head_png(path, causal(n), names, names, "one head")
    image = pixels(path)
    assert all(300 < side < 2400 for side in image.shape[:2])
    assert share(image, BLANK) < 0.01 if n == 1 else share(image, BLANK) > 0.2


@pytest.mark.parametrize(("n_head", "n"), [(1, 3), (9, 10), (12, 200)])
def test_a_layers_heads_become_a_grid(tmp_path: Path, n_head: int, n: int):
    path, names = tmp_path / "layer.png", (PIECES * 20)[:n]
    patterns = np.stack([causal(n, seed) for seed in range(n_head)])
    titles = [f"layer 3 head {h}" for h in range(n_head)]
    plot.attention_layer_png(path, patterns, names, names, titles, "a layer")
    image = pixels(path)
    assert all(200 < side < 2400 for side in image.shape[:2]) and share(image, BLANK) > 0.03


@pytest.mark.parametrize(("n_layer", "n_head", "side"), [(1, 1, 64), (30, 9, 64), (80, 64, 14)])
def test_every_layer_and_head_fit_one_picture(tmp_path: Path, n_layer: int, n_head: int, side: int):
    path = tmp_path / "all.png"
    cells = np.broadcast_to(plot.thumbnail(causal(7), side), (n_layer, n_head, side, side))
    plot.attention_overview_png(path, range(n_layer), range(n_head), cells, "overview")
    image = pixels(path)
    height, width, _ = image.shape
    assert n_layer * side < height < 4400 and n_head * side < width < 4400
    assert n_layer == 1 or share(image, BLANK) > 0.2


def test_an_attention_page_names_queries_keys_and_weights(tmp_path: Path):
    path = tmp_path / "head.html"
    plot.attention_html(path, causal(3), ["The", "<b>", "The"], ["The", "<b>", "The"], "one head")
    heat, layout = page(path)
    assert heat["x"] == heat["y"] == ["0 The", "1 &lt;b&gt;", "2 The"]
    assert all(part in heat["hovertemplate"] for part in ("query %{y}", "key %{x}", "weight %{z"))
    np.testing.assert_allclose(heat["z"][2], causal(3)[2], atol=1e-5)
    # The blank half has no weight under the pointer.
    assert heat["z"][0][1:] == [None, None]
    assert layout["yaxis"]["autorange"] == "reversed"


def test_a_number_that_is_none_is_named():
    with pytest.raises(SiteError, match="a layer is a whole number, not 'x'"):
        plot.whole("x", "layer")
