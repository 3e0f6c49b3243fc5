"""Statistics over a corpus: each number against numpy on the captured activations of the same chunks."""

from __future__ import annotations

import os

import numpy as np
import pytest
from rich.console import Console

import interp
from ci import sanitize
from interp import corpus as corpora

BEFORE, AFTER = 15, 4

WORDS = "the cat sat on a mat while seven small birds sang of rain and the sea was calm under a pale moon".split()


def text_of(n_words: int, seed: int = 0) -> str:
    """Words in lines, so that there is something to cut at."""
    drawn = np.random.default_rng(seed).choice(WORDS, n_words)
    return "\n".join(" ".join(drawn[i : i + 9]) + "." for i in range(0, n_words, 9))


def chunks_of(model, documents, chunk: int) -> list[tuple[int, int, list[int]]]:
    """(document, tokens before, tokens) of each chunk; the models here want no begin token."""
    found = []
    for document, tokens in enumerate(documents):
        tokens = model.tokens(tokens) if isinstance(tokens, str) else tokens
        found += [(document, i, tokens[i : i + chunk]) for i in range(0, len(tokens), chunk)]
    return found


def captured(model, chunks, site: str, layer: int, edits=(), skip: int = 0) -> np.ndarray:
    at = interp.at(site, layers=layer)
    runs = [model.run(tokens, capture=at, edits=edits, logits=None) for _, _, tokens in chunks]
    return np.concatenate([run[site, layer][skip:] for run in runs])


def check(stats, site: str, layer: int, rows: np.ndarray) -> None:
    exact = rows.astype(np.float64)
    close = {"rtol": 1e-5, "atol": 1e-12}
    assert stats.n_tokens == len(rows)
    np.testing.assert_allclose(stats.mean(site, layer), exact.mean(0), rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(stats.var(site, layer), exact.var(0), **close)
    np.testing.assert_allclose(stats.std(site, layer), exact.std(0), **close)
    np.testing.assert_allclose(stats.mean_square(site, layer), (exact**2).mean(0), **close)
    np.testing.assert_allclose(stats.rms(site, layer), np.sqrt((exact**2).mean(0)), **close)
    np.testing.assert_array_equal(stats.min(site, layer), rows.min(0))
    np.testing.assert_array_equal(stats.max(site, layer), rows.max(0))
    small = np.abs(rows) <= np.float32(stats.threshold)
    np.testing.assert_array_equal(stats.sparsity(site, layer), small.mean(0, dtype=np.float64))


def check_top(model, stats, site: str, layer: int, chunks, rows: np.ndarray, channel, skip: int = 0) -> None:
    values = rows[(slice(None), *np.atleast_1d(channel))]
    where = [(number, i) for number, (_, _, tokens) in enumerate(chunks) for i in range(skip, len(tokens))]
    order = np.argsort(-np.abs(values), kind="stable")[: stats.n_top]
    top = stats.top(site, layer, channel)
    assert [t.value for t in top] == values[order].tolist()
    for t, i in zip(top, order):
        number, position = where[i]
        document, first, tokens = chunks[number]
        assert (t.layer, t.channel) == (layer, channel)
        assert (t.document, t.offset, t.position, t.token) == (document, first + position, position, tokens[position])
        assert t.piece == model.pieces([tokens[position]])[0]
        assert list(t.before) == model.pieces(tokens[max(0, position - BEFORE) : position])
        assert list(t.after) == model.pieces(tokens[position + 1 : position + 1 + AFTER])


@pytest.fixture(scope="module")
def documents() -> list:
    return [text_of(60), "", text_of(20, 1), [5, 6, 7], text_of(90, 2)]


def test_every_number_equals_numpy(tiny, documents):
    chunks = chunks_of(tiny, documents, 32)
    stats = interp.stats(tiny, documents, sites=("l_out", "z", "embd"), chunk=32, n_top=7, threshold=0.3)
    assert stats.complete and stats.sites == ["l_out", "kqv_out", "embd"]
    assert stats.layers("l_out") == stats.layers("resid_post") == list(range(tiny.n_layer))
    for site, layer in (("l_out", 0), ("l_out", tiny.n_layer - 1), ("z", 2), ("embd", -1)):
        rows = captured(tiny, chunks, site, layer)
        check(stats, site, layer, rows)
        for channel in ((1, 3), (0, 0)) if site == "z" else (0, 5, 17):
            check_top(tiny, stats, site, layer, chunks, rows, channel)
    assert stats.mean("z", 2).shape == (tiny.n_head, tiny.n_embd // tiny.n_head)
    assert stats.mean("l_out").shape == (tiny.n_layer, tiny.n_embd)
    np.testing.assert_array_equal(stats.mean("l_out", -1), stats.mean("resid_post", tiny.n_layer - 1))
    np.testing.assert_array_equal(stats.mean("resid_pre", 1), stats.mean("l_out", 0))


def test_the_default_model(model):
    text = "A cat is a small animal. " * 12
    stats = interp.stats(model, [text], sites="l_out", layers=(3, 29), chunk=40)
    chunks = chunks_of(model, [text], 40)
    for layer in (3, 29):
        rows = captured(model, chunks, "l_out", layer)
        check(stats, "l_out", layer, rows)
        check_top(model, stats, "l_out", layer, chunks, rows, int(np.abs(rows).max(0).argmax()))
    first = stats.outliers("l_out", 3)[0]
    assert first.ratio > 20 and first.ratio == stats.ratio("l_out", first.layer)[first.channel]


def test_a_mean_far_from_zero_leaves_the_variance_exact(tiny, documents):
    vector = np.zeros(tiny.n_embd, np.float32)
    vector[3], vector[4] = 3000.0, -50000.0
    edits = interp.add(interp.at("l_out", layers=1), vector)
    rows = captured(tiny, chunks_of(tiny, documents, 32), "l_out", 1, edits)
    stats = interp.stats(tiny, documents, layers=1, chunk=32, edits=edits)
    assert abs(rows[:, 4].mean()) > 1000 * rows[:, 4].std()
    check(stats, "l_out", 1, rows)


def test_one_outlier_leaves_the_variance_exact(tiny, documents):
    """The first value of all, as massive activations are: everything else is then small beside it."""
    big = interp.add(interp.at("l_out", layers=1, positions=0), np.full(tiny.n_embd, 1e4, np.float32))
    rows = captured(tiny, chunks_of(tiny, documents, 32), "l_out", 1, big)
    check(interp.stats(tiny, documents, layers=1, chunk=32, edits=[big]), "l_out", 1, rows)


def test_skip_first_leaves_out_the_first_of_each_chunk(tiny, documents):
    chunks = chunks_of(tiny, documents, 32)
    rows = captured(tiny, chunks, "ffn_out", 2, skip=1)
    stats = interp.stats(tiny, documents, sites="ffn_out", layers=2, chunk=32, skip_first=True)
    check(stats, "ffn_out", 2, rows)
    check_top(tiny, stats, "ffn_out", 2, chunks, rows, 9, skip=1)
    with pytest.raises(interp.RunError, match="skip_first leaves one out"):
        interp.stats(tiny, [[5], [6]], skip_first=True)


def test_the_top_of_a_site_is_that_of_all_its_channels(tiny, documents):
    rows = captured(tiny, chunks_of(tiny, documents, 32), "l_out", 3)
    stats = interp.stats(tiny, documents, layers=3, chunk=32, n_top=5)
    top = stats.top("l_out", 3)
    assert [abs(t.value) for t in top] == np.sort(np.abs(rows).ravel())[::-1][:5].tolist()
    assert all(rows[:, t.channel].tolist().count(t.value) for t in top)
    assert len(stats.top("l_out", k=2)) == 2
    with pytest.raises(interp.RunError, match="5 top values were kept"):
        stats.top("l_out", 3, k=6)
    with pytest.raises(interp.SiteError, match="channel 99999 is not there"):
        stats.top("l_out", 3, 99999)


def test_fewer_tokens_than_top_values(tiny):
    stats = interp.stats(tiny, [[5, 6, 7]], layers=0, n_top=10)
    assert [len(stats.top("l_out", 0, 4)), len(stats.top("l_out", 0))] == [3, 10]
    assert len(interp.stats(tiny, [[5]], layers=0, n_top=tiny.n_embd + 1).top("l_out", 0)) == tiny.n_embd


def test_a_file_is_read_in_pieces_that_change_no_token(tiny, tmp_path, monkeypatch):
    path = tmp_path / "corpus.txt"
    text = text_of(900) + "\n\n  indented, é and 日本\n" + "x" * 90 + " end"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(corpora, "_PIECE", 200)
    found = list(corpora.Corpus(tiny.vocab, path, 50).chunks())
    assert sum((part.tokens for part in found), []) == tiny.tokens(text)
    assert {len(part.tokens) for part in found[:-1]} == {50}
    assert [part.first for part in found] == list(range(0, 50 * len(found), 50))
    stats = interp.stats(tiny, str(path), layers=0, chunk=50, max_tokens=120)
    assert stats.n_tokens == 120 and stats.complete and stats.info["corpus"] == "corpus.txt"
    whole = interp.stats(tiny, [tiny.tokens(text)[:120]], layers=0, chunk=50)
    np.testing.assert_array_equal(stats.mean("l_out", 0), whole.mean("l_out", 0))
    assert stats.top("l_out", 0, 3) == whole.top("l_out", 0, 3)


def test_a_begin_token_stands_before_every_chunk(tiny, monkeypatch):
    monkeypatch.setattr(tiny.vocab, "add_bos", True)
    monkeypatch.setattr(tiny.vocab, "bos", 1)
    documents = [[1, *range(10, 30)], list(range(40, 45))]
    found = list(corpora.Corpus(tiny.vocab, documents, 8).chunks())
    assert [part.tokens for part in found[:2]] == [[1, *range(10, 17)], [1, *range(17, 24)]]
    stats = interp.stats(tiny, documents, layers=0, chunk=8, n_top=40)
    tops = stats.top("l_out", 0, 0)
    assert sorted((t.document, t.offset, t.token) for t in tops if t.token != 1) == [
        *((0, i, 10 + i) for i in range(20)), *((1, i, 40 + i) for i in range(5)),
    ]
    assert {(t.offset, t.position) for t in tops if t.token == 1} == {(-1, 0)}


def test_chunks_longer_than_the_librarys_own_batches():
    """A context of more than 512 tokens runs in parts, and an edit may be in effect in the second one only."""
    with interp.Model(tiny_path(), n_ctx=700, kv_type="f32", flash_attn=False, n_threads=1) as longer:
        tokens = np.random.default_rng(3).integers(100, 40000, 650).tolist()
        edits = interp.add(interp.at("l_out", layers=0, positions=600), np.ones(longer.n_embd, np.float32))
        rows = captured(longer, [(0, 0, tokens)], "l_out", 1, edits)
        stats = interp.stats(longer, [tokens], layers=1, chunk=650, edits=edits, n_top=3)
        check(stats, "l_out", 1, rows)
        check_top(longer, stats, "l_out", 1, [(0, 0, tokens)], rows, 2)


def tiny_path():
    import models

    return models.tiny("llama")


def test_the_final_norm_and_the_logits_can_be_measured(tiny, documents):
    chunks = chunks_of(tiny, documents, 32)
    stats = interp.stats(tiny, documents, sites=("final_norm", "l_out", "result_output"), chunk=32, n_top=0)
    check(stats, "final_norm", -1, captured(tiny, chunks, "result_norm", -1))
    logits = np.concatenate([tiny.run(tokens).logits for _, _, tokens in chunks])
    np.testing.assert_array_equal(stats.max("result_output"), logits.max(0))


def test_no_top_values(tiny, documents):
    stats = interp.stats(tiny, documents, layers=1, chunk=32, n_top=0)
    assert np.isfinite(stats.mean("l_out", 1)).all() and stats.top
    with pytest.raises(interp.RunError, match="n_top=1"):
        stats.top("l_out", 1, k=1)
    stats.print(console=Console(file=open(os.devnull, "w")))


def test_infinities_stay_where_they_are(tiny, documents):
    vector = np.zeros(tiny.n_embd, np.float32)
    vector[3] = np.inf
    last = tiny.n_layer - 1  # nothing after it is computed, so only its own channel is hit
    edits = interp.add(interp.at("l_out", layers=last), vector)
    stats = interp.stats(tiny, documents, layers=last, chunk=32, edits=edits, n_top=2)
    assert stats.mean("l_out", last)[3] == stats.max("l_out", last)[3] == np.inf
    assert np.isnan(stats.var("l_out", last)[3]) and np.isfinite(np.delete(stats.var("l_out", last), 3)).all()
    assert [t.value for t in stats.top("l_out", last, 3)] == [np.inf, np.inf]


def test_a_mean_ablation_takes_them(tiny, documents):
    stats = interp.stats(tiny, documents, sites="z", chunk=32, n_top=0)
    edits = interp.ablate([(2, 1)], mode="mean", mean=stats)
    ablated = tiny.run(documents[0], capture="z", edits=edits)["z", 2][:, 1]
    np.testing.assert_array_equal(ablated, np.tile(np.float32(stats.mean("z", 2)[1]), (len(ablated), 1)))


def test_ctrl_c_keeps_what_was_done(tiny, documents):
    def interrupted():
        yield documents[0]
        raise KeyboardInterrupt

    stats = interp.stats(tiny, interrupted(), layers=2, chunk=32, progress=True)
    assert not stats.complete and "interrupted" in repr(stats)
    check(stats, "l_out", 2, captured(tiny, chunks_of(tiny, documents[:1], 32), "l_out", 2))
    with pytest.raises(KeyboardInterrupt):
        interp.stats(tiny, (document for document in interrupted() if document is not documents[0]))
    assert tiny.run(documents[0], logits="last").logits.shape == (1, tiny.n_vocab)


def test_an_edit_that_fails_says_so(tiny, documents):
    with pytest.raises(interp.EditError, match="ZeroDivisionError"):
        interp.stats(tiny, documents, edits=interp.edit("l_out", lambda x: x * (1 / 0)))
    with pytest.raises(interp.RunError, match="from the start of a chunk"):
        interp.stats(tiny, documents, edits=interp.scale(interp.at("l_out", positions=-1), 2.0))
    with pytest.raises(interp.SiteError, match="is not computed"):
        interp.stats(tiny, documents, layers=1, edits=interp.scale(interp.at("l_out", layers=2), 2.0))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"corpus": []}, interp.RunError, "holds no token"),
        ({"corpus": ["", []]}, interp.RunError, "holds no token"),
        ({"corpus": [1, 2]}, interp.RunError, "One document alone"),
        ({"corpus": 7}, interp.RunError, "path of a text file"),
        ({"corpus": b"bytes"}, interp.RunError, "path of a text file"),
        ({"corpus": "The cat sat"}, interp.FileError, r"does not exist.*\[text\]"),
        ({"corpus": "word " * 2000}, interp.FileError, "cannot be read"),
        ({"corpus": "\0"}, interp.FileError, "cannot be read"),
        ({"sites": interp.at("z", heads=1)}, interp.SiteError, "all heads"),
        ({"sites": interp.at("l_out", positions="last")}, interp.SiteError, "positions"),
        ({"sites": "attn_scores"}, interp.SiteError, "no statistics"),
        ({"sites": "nothing"}, interp.SiteError, "no site 'nothing'"),
        ({"sites": ()}, interp.SiteError, "No sites"),
        ({"layers": 99}, interp.SiteError, "out of range"),
        ({"chunk": 0}, interp.RunError, "chunk=0"),
        ({"chunk": 100_000}, interp.RunError, "at most"),
        ({"n_top": -1}, interp.RunError, "n_top"),
        ({"threshold": float("nan")}, interp.RunError, "threshold"),
        ({"max_tokens": 0}, interp.RunError, "max_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny, given, error, match):
    with pytest.raises(error, match=match):
        interp.stats(tiny, **{"corpus": [[5, 6]], **given})


def test_files_that_are_no_text(tiny, tmp_path):
    (tmp_path / "zeros").write_bytes(b"abc\0def")
    (tmp_path / "latin").write_bytes("déjà".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"")
    for name, error, match in (
        ("zeros", interp.FileError, "zero bytes"), ("latin", interp.FileError, "UTF-8"),
        ("empty", interp.RunError, "no token"), (".", interp.FileError, "folder"),
    ):
        with pytest.raises(error, match=match):
            interp.stats(tiny, tmp_path / name)


def test_saved_and_loaded_is_the_same(tiny, documents, tmp_path):
    stats = interp.stats(tiny, documents, sites=("l_out", "z"), chunk=32, n_top=3)
    path = tmp_path / "stats.safetensors"
    stats.save(path)
    loaded = interp.Stats.load(stats.save(tmp_path / "stats.npz"))
    assert loaded.info == interp.Stats.load(path).info
    assert loaded.info == stats.info and loaded.sites == stats.sites
    for name in ("mean", "var", "mean_square", "min", "max", "sparsity"):
        np.testing.assert_array_equal(getattr(loaded, name)("z", 1), getattr(stats, name)("z", 1))
    assert loaded.top("z", 1, (1, 2)) == stats.top("z", 1, (1, 2))
    assert loaded.outliers("l_out") == stats.outliers("l_out")
    with pytest.raises(interp.FileError, match="safetensors"):
        stats.save(tmp_path / "stats.json")
    whole = path.read_bytes()
    for damaged in (whole[:1000], b"", whole[:-5], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(interp.FileError):
            interp.Stats.load(path)
    tiny.run([5, 6], capture="l_out").save(path)
    with pytest.raises(interp.FileError, match="holds no statistics"):
        interp.Stats.load(path)


def test_tables_and_pictures(tiny, documents, tmp_path):
    stats = interp.stats(tiny, documents, sites=("l_out", "z"), chunk=32)
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as file:
        stats.print("z", k=4, console=Console(file=file))
    lines = (tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()
    first = stats.outliers("z")[0]
    assert lines[0].startswith("z: the 4 largest channels") and len(lines) >= 8
    assert any(line.split()[:2] == [str(first.layer), f"{first.channel[0]}.{first.channel[1]}"] for line in lines)
    stats.plot(tmp_path / "stats.png", "l_out")
    stats.html(tmp_path / "stats.html", "z", k=5)
    assert (tmp_path / "stats.png").read_bytes()[:4] == b"\x89PNG"
    assert "times the median" in (tmp_path / "stats.html").read_text(encoding="utf-8")
    with pytest.raises(interp.SiteError, match="name one"):
        stats.plot(tmp_path / "stats.png")


@pytest.mark.skipif(sanitize.ACTIVE, reason="a sanitizer keeps notes of all memory")
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads the resident memory of Linux")
def test_memory_does_not_grow_with_the_corpus(tiny):
    sizes = []

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def documents():
        for i in range(41):
            if i in (10, 40):
                sizes.append(resident())
            yield np.random.default_rng(i).integers(100, 40000, 64).tolist()

    interp.stats(tiny, documents(), chunk=64)
    assert abs(sizes[1] - sizes[0]) < 3
