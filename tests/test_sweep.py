"""Sweeps: each cell is what a run of its own gives, bit for bit, however few runs were made."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from PIL import Image

import interp
import models
from interp.cells import Plain
from interp.metrics import LogitDiff
from test_plot import page

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
FIRST = 9  # the first position at which they differ

METRIC = interp.logit_diff(" Mary", " John")


@pytest.fixture(scope="module")
def metric() -> LogitDiff:
    return METRIC


#: one run for each cell; the batched method has tests of its own
patch_sweep = functools.partial(interp.patch_sweep, method="serial")


@pytest.fixture
def counted(monkeypatch):
    """Counts the runs that a model makes."""
    calls = []
    # what earlier tests found out about a model would spare a run
    monkeypatch.setattr(interp.Model, "_exact_starts", property(lambda model: {}), raising=False)
    for name in ("run", "resume"):
        real = getattr(interp.Model, name)

        def call(*args, _real=real, _name=name, **kwargs):
            calls.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(interp.Model, name, call)
    return calls


def by_hand(model, into: str, source: interp.Run, site: str, layer: int, **where) -> float:
    """One cell as a user would write it."""
    return METRIC(model.run(into, edits=interp.patch(site, layer, source, **where), logits="last"))


# values


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("flash", [False, True])
def test_every_cell_is_a_run_of_its_own_bit_for_bit(arch, flash):
    with interp.Model(models.tiny(arch), n_ctx=256, flash_attn=flash, n_threads=1) as model:
        for site in ("resid_pre", "l_out", "resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v"):
            source = model.run(CLEAN, capture=site, logits="last")
            places = [4, FIRST, 11, 13]
            sweep = patch_sweep(model, CLEAN, CORRUPTED, site, METRIC, positions=places)
            expected = [
                [by_hand(model, CORRUPTED, source, site, layer, positions=p) for p in places]
                for layer in range(model.n_layer)
            ]
            assert np.array_equal(sweep.values, expected), site
            assert sweep.values.dtype == np.float64 and sweep.positions == places
            if site in ("z", "q", "k", "v"):
                heads = patch_sweep(model, CLEAN, CORRUPTED, site, METRIC, per_head=True)
                expected = [
                    [by_hand(model, CORRUPTED, source, site, layer, heads=h) for h in heads.heads]
                    for layer in range(model.n_layer)
                ]
                assert np.array_equal(heads.values, expected), site
                assert heads.heads == list(range(model.n_head if site in "zq" else model.n_head_kv))


def test_on_the_default_model_the_name_moves_from_its_token_to_the_last(model, metric, counted):
    layers = [1, 20, -1]
    sweep = patch_sweep(model, CLEAN, CORRUPTED, "l_out", metric, layers=layers, positions=[3, FIRST, -1])
    # 3 lies before the first difference; of the last layer only the last position is seen
    assert (counted.count("run"), counted.count("resume")) == (1 + 1, 2 + 4), "the second plain run is not counted here"
    source = model.run(CLEAN, capture="l_out", logits="last")
    assert sweep.layers == [1, 20, 29]
    expected = [
        [by_hand(model, CORRUPTED, source, "l_out", layer, positions=p) for p in sweep.positions]
        for layer in sweep.layers
    ]
    assert np.array_equal(sweep.values, expected)
    assert sweep.clean > 5 and sweep.corrupted < -4
    assert sweep.normalized[0, 1] > 0.9 and abs(sweep.normalized[0, 2]) < 0.1 and abs(sweep.normalized[2, 1]) < 0.1
    assert sweep.values[2, 2] == sweep.clean, "after the last layer only the last position counts, and it is all"
    assert sweep.top(1)[0].layer == 29 or sweep.top(1)[0].position == FIRST
    heads = patch_sweep(model, CLEAN, CORRUPTED, "z", metric, per_head=True, layers=23)
    assert heads.values.shape == (1, 9) and heads.top(1)[0].head == 3


def test_patching_all_of_what_enters_the_first_layer_gives_the_clean_run(tiny, metric):
    clean = tiny.run(CLEAN, capture="resid_pre", logits="last")
    sweep = patch_sweep(tiny, CLEAN, CORRUPTED, "resid_pre", metric)
    assert by_hand(tiny, CORRUPTED, clean, "resid_pre", 0) == sweep.clean
    # the prompts differ in one token: its embedding is all that the runs differ in
    assert sweep.values[0, FIRST] == sweep.clean
    last = patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric, layers=-1)
    assert last.values[0, -1] == last.clean and np.all(last.values[0, :-1] == last.corrupted)


def test_noising_is_denoising_with_the_prompts_exchanged(tiny, metric):
    noise = patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric, direction="noise")
    exchanged = patch_sweep(tiny, CORRUPTED, CLEAN, "l_out", metric)
    assert np.array_equal(noise.values, exchanged.values)
    assert (noise.clean, noise.corrupted) == (exchanged.corrupted, exchanged.clean)
    assert noise.baseline == noise.clean and np.all(noise.effects[:, :FIRST] == 0)
    assert np.allclose(noise.normalized, 1 - exchanged.normalized)
    assert noise.pieces[FIRST] == " John" and exchanged.pieces[FIRST] == " John"


def test_what_changes_nothing_is_not_run_and_is_the_plain_run_to_the_bit(tiny, metric, counted):
    sweep = patch_sweep(tiny, CLEAN, CORRUPTED, "mlp_out", metric)
    n = len(sweep.positions)
    # two plain runs, two checks that runs may start in the middle, layer 0 in whole runs, the others from their layer
    whole, resumed = counted.count("run"), counted.count("resume")
    assert (whole, resumed) == (1 + n - FIRST, 2 + 3 * (n - FIRST)), "the second plain run is not counted here"
    source = tiny.run(CLEAN, capture="mlp_out", logits="last")
    for position in (0, FIRST - 1):
        value = by_hand(tiny, CORRUPTED, source, "mlp_out", 2, positions=position)
        assert value == sweep.corrupted == sweep.values[2, position]


def test_where_runs_cannot_start_in_the_middle_whole_runs_give_the_same(tiny, metric, monkeypatch):
    quick = patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric)
    monkeypatch.setattr(Plain, "can_start", False)
    assert np.array_equal(patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric).values, quick.values)


def test_only_chosen_positions_of_a_head_are_patched(tiny, metric):
    sweep = patch_sweep(tiny, CLEAN, CORRUPTED, "z", metric, per_head=True, layers=[2], positions=[-1, FIRST])
    source = tiny.run(CLEAN, capture="z", logits="last")
    expected = [by_hand(tiny, CORRUPTED, source, "z", 2, heads=h, positions=[FIRST, 13]) for h in range(4)]
    assert sweep.values.tolist() == [expected]


def test_one_layer_may_be_named_in_the_site(tiny, metric):
    for name in ("l_out-2", "blocks.2.hook_resid_post"):
        sweep = patch_sweep(tiny, CLEAN, CORRUPTED, name, metric)
        assert sweep.layers == [2] and sweep.values.shape == (1, 14)


# metrics


def test_metrics_read_the_last_position(tiny):
    whole, last = tiny.run(CLEAN), tiny.run(CLEAN, logits="last")
    mary, john = (tiny.tokens(" " + name)[-1] for name in ("Mary", "John"))
    logits = whole.logits[-1].astype(np.float64)
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert METRIC(whole) == logits[mary] - logits[john]
    assert interp.logit_diff(" Mary", john)(whole) == interp.logit_diff(mary, john)(whole) == METRIC(whole)
    assert interp.probability(" Mary")(whole) == pytest.approx(probs[mary], rel=1e-12)
    other = tiny.run(CORRUPTED)
    theirs = np.exp(other.logits[-1].astype(np.float64))
    expected = float((probs * np.log(probs / (theirs / theirs.sum()))).sum())
    assert interp.kl_divergence(whole)(whole) == 0
    assert interp.kl_divergence(whole)(other) == pytest.approx(expected, abs=1e-9) and expected > 0
    for metric in (METRIC, interp.probability(mary), interp.kl_divergence(whole)):
        assert metric(last) == pytest.approx(metric(whole), abs=1e-4)
        assert isinstance(metric(last), float) and metric.name


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda run: interp.logit_diff(" Mary", " Mary")(run), "itself"),
        (lambda run: interp.logit_diff("antidisestablishmentarianism", "a")(run), "tokens, not one"),
        (lambda run: interp.probability(10**9)(run), "not in the vocabulary"),
        (lambda run: interp.probability(1.5)(run), "text or as its id"),
        (lambda run: interp.probability("Mary")(run.model.run(CLEAN, stop_after=1)), "no logits"),
        (lambda run: interp.kl_divergence("Mary"), "needs a run"),
    ],
)
def test_what_cannot_be_measured_is_said(tiny, make, says):
    with pytest.raises(interp.RunError, match=says):
        make(tiny.run(CLEAN, logits="last"))


def test_a_run_from_a_file_is_measured_by_token_ids(tiny, tmp_path):
    run = tiny.run(CLEAN)
    loaded = interp.Run.load(run.save(tmp_path / "run.npz"))
    assert interp.logit_diff(5, 6)(loaded) == interp.logit_diff(5, 6)(run)
    with pytest.raises(interp.RunError, match="give its id"):
        METRIC(loaded)


# what cannot be done


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"metric": None}, interp.RunError, "interp.logit_diff"),
        ({"metric": 5}, interp.RunError, "no function"),
        ({"metric": lambda run: np.nan}, interp.RunError, "nan for the patched prompt"),
        ({"metric": lambda run: run.logits[-1]}, interp.RunError, "array of shape"),
        ({"metric": lambda run: "high"}, interp.RunError, "'high'"),
        ({"metric": lambda run: None}, interp.RunError, "None"),
        ({"clean": CLEAN + " the"}, interp.RunError, "15 tokens and the corrupted one 14.* ' to' ' the'"),
        ({"clean": CORRUPTED}, interp.RunError, "are the same"),
        ({"clean": ""}, interp.RunError, "empty"),
        ({"corrupted": [1, 10**9]}, interp.RunError, "does not exist"),
        ({"site": "l_uot"}, interp.SiteError, "l_out"),
        ({"site": "attn_scores"}, interp.SiteError, "first axis"),
        ({"site": "final_norm"}, interp.SiteError, "outside of the layers"),
        ({"per_head": True}, interp.SiteError, "no heads"),
        ({"layers": 4}, interp.SiteError, "0 to 3"),
        ({"layers": []}, interp.SiteError, "empty"),
        ({"site": "l_out-2", "layers": 1}, interp.SiteError, "names layer 2"),
        ({"positions": 14}, interp.SiteError, "0 to 13"),
        ({"positions": "last"}, interp.SiteError, "-1"),
        ({"positions": [1.5]}, interp.SiteError, "integer"),
        ({"direction": "up"}, interp.RunError, "noise"),
    ],
)
def test_what_cannot_be_swept_is_said_and_the_model_lives(tiny, metric, given, error, says):
    before = tiny.run(CLEAN).logits
    arguments = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": metric, **given}
    with pytest.raises(error, match=says):
        patch_sweep(tiny, **arguments)
    assert np.array_equal(tiny.run(CLEAN).logits, before)


def test_a_metric_that_fails_in_the_middle_says_where(tiny):
    results = iter([1.0, 2.0, 3.0, float("inf")])
    with pytest.raises(interp.RunError, match="inf for layer 0, position 10"):
        patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", lambda run: next(results))


def test_ctrl_c_returns_the_finished_part_and_the_model_works(tiny, metric, tmp_path):
    whole = patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric)
    calls = []

    def interrupted(run):
        calls.append(run)
        if len(calls) == 2 + 7:  # in the second layer, after two plain runs and five cells of the first
            raise KeyboardInterrupt
        return metric(run)

    part = patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", interrupted, progress=False)
    assert not part.complete and whole.complete
    done = ~np.isnan(part.values)
    assert np.array_equal(part.values[done], whole.values[done])
    # what needs no run is there at once
    assert done[:, :FIRST].all() and done[0].all() and done[1].sum() == FIRST + 1
    assert not done[2:-1, FIRST:].any() and done[-1].sum() == 13
    assert "interrupted" in part._title() and len(part.top(100)) == done.sum()
    part.plot(tmp_path / "part.png")
    part.html(tmp_path / "part.html")
    assert np.array_equal(patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric).values, whole.values)

    def at_once(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", at_once)


# what comes back


@pytest.fixture(scope="module")
def sweep(tiny) -> interp.Sweep:
    return patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", METRIC)


@pytest.fixture(scope="module")
def by_head(tiny) -> interp.Sweep:
    return patch_sweep(tiny, CLEAN, CORRUPTED, "z", METRIC, per_head=True)


def test_the_largest_effects(sweep, by_head):
    top = sweep.top(3)
    sizes = [abs(cell.effect) for cell in top]
    assert len(top) == 3 and sizes[0] == np.abs(sweep.effects).max() and sizes == sorted(sizes, reverse=True)
    assert top[0].value == sweep.values[top[0].layer, top[0].position] and top[0].head is None
    assert top[0].piece == sweep.pieces[top[0].position]
    assert by_head.top(1)[0].position is None and by_head.top(1)[0].head in range(4)
    with pytest.raises(interp.RunError, match="at least 1"):
        sweep.top(0)


def test_the_table_is_printed(sweep, by_head, capsys):
    sweep.print(k=60)
    text = capsys.readouterr().out
    assert "John→Mary" in text and "patching l_out, clean into corrupted" in text
    assert "logit difference ␣Mary − ␣John" in text
    by_head.print()
    assert "head" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("kind", ["sweep", "by_head"])
def test_a_saved_sweep_comes_back(request, tmp_path, suffix, kind):
    saved = request.getfixturevalue(kind)
    loaded = interp.Sweep.load(saved.save(tmp_path / f"sweep.{suffix}"))
    assert np.array_equal(loaded.values, saved.values) and loaded.values.dtype == np.float64
    for name in vars(saved):
        assert name == "values" or getattr(loaded, name) == getattr(saved, name), name


def test_another_file_is_no_sweep(tiny, sweep, tmp_path):
    path = tiny.run(CLEAN).save(tmp_path / "run.npz")
    with pytest.raises(interp.FileError, match="no sweep"):
        interp.Sweep.load(path)
    with pytest.raises(interp.FileError, match="no run"):
        interp.Run.load(sweep.save(tmp_path / "sweep.npz"))


@pytest.mark.parametrize("kind", ["sweep", "by_head"])
def test_pictures_hold_every_cell(request, tmp_path, kind):
    shown = request.getfixturevalue(kind)
    (tmp_path / "png").mkdir()
    shown.plot(tmp_path / "png" / "a.png")
    with Image.open(tmp_path / "png" / "a.png") as image:
        assert min(image.size) > 150
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
        assert len(colours) > 50
    shown.html(tmp_path / "html" / "a.html")
    trace, layout = page(tmp_path / "html" / "a.html")
    assert np.shape(trace["hovertext"]) == shown.values.shape
    best = shown.top(1)[0]
    column = best.position if best.head is None else best.head
    text = trace["hovertext"][best.layer][column]
    assert f"layer {best.layer}" in text and f"{best.value:.4f}" in text and f"{best.normalized:.3f}" in text
    assert trace["zmin"] == -trace["zmax"]
    if kind == "sweep":
        assert "␣John→Mary  9" in layout["xaxis"]["ticktext"]


def test_long_prompts_are_cut_around_the_token_that_differs(tiny):
    words = " the store" * 40
    long = [f"Once{words} {name} went{words}" for name in ("Mary", "John")]
    made = patch_sweep(tiny, *long, "l_out", METRIC, layers=-1)
    lines = made._lines(60)
    assert all(len(line) < 90 for line in lines) and "Mary went" in lines[0] and "John went" in lines[1]
    assert re.match(r"clean: … .*…? \(", lines[0])
