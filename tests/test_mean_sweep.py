"""Sweeps of several prompts: their mean is numpy's of the single sweeps, and the interval a bootstrap's by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

import interp
from interp.mean_sweep import bootstrap, in_common
from test_plot import page

NAMES = [("Mary", "John"), ("John", "Mary"), ("Tom", "James"), ("James", "Tom")]
CLEAN = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in NAMES]
CORRUPTED = [f"When {a} and {b} went to the store, {a} gave a drink to" for a, b in NAMES]
METRICS = [interp.logit_diff(f" {a}", f" {b}") for a, b in NAMES]
METRIC = METRICS[0]
LONGER = ("Then Mary and John went to the very old store, John gave a drink to",
          "Then Mary and John went to the very old store, Mary gave a drink to")  # fmt: skip


def sweeps(model, sweep, *prompts, metrics=METRICS, **given) -> list:
    return [sweep(model, *row, metric=metric, **given) for row, metric in zip(zip(*prompts), metrics)]


def is_mean_of(mean: interp.MeanSweep, singles: list) -> bool:
    """Whether every number is numpy's over the single results."""
    assert mean.complete and mean.n_given == len(mean.results) == len(singles)
    assert np.array_equal(mean.each, [single.values for single in singles], equal_nan=True)
    effects = np.mean([single.effects for single in singles], axis=0)
    assert np.allclose(mean.effects, effects, atol=1e-12, equal_nan=True)
    assert mean.baseline == pytest.approx(np.mean([single.baseline for single in singles]), abs=1e-12)
    return np.array_equal(mean.values, np.mean([single.values for single in singles], axis=0), equal_nan=True)


# the mean


def test_the_mean_of_patch_sweeps_is_numpys(tiny):
    assert len({len(tiny.tokens(text)) for text in CLEAN + CORRUPTED}) == 1
    for given in ({}, {"site": "z", "per_head": True, "layers": [1, 3]}, {"direction": "noise", "positions": [-1, 9]}):
        mean = interp.patch_sweep(tiny, CLEAN, CORRUPTED, metric=METRICS, **given)
        singles = sweeps(tiny, interp.patch_sweep, CLEAN, CORRUPTED, **given)
        assert is_mean_of(mean, singles)
        assert np.array_equal(mean.normalized, np.mean([single.normalized for single in singles], axis=0))
        assert mean.clean == np.mean([single.clean for single in singles])
        assert (mean.layers, mean.positions, mean.heads) == (
            singles[0].layers, None if singles[0].heads else singles[0].positions, singles[0].heads,
        )


def test_the_mean_of_every_other_sweep_is_numpys(tiny):
    paths = {"receivers": (2, 1, "q"), "sender": [(0, 1), (1, 2)]}
    assert is_mean_of(
        interp.path_patch(tiny, CLEAN, CORRUPTED, metric=METRICS, **paths),
        sweeps(tiny, interp.path_patch, CLEAN, CORRUPTED, **paths),
    )
    for given in ({}, {"site": "mlp_out", "layers": [0, 2]}):
        made = interp.ablation_sweep(tiny, CLEAN, METRICS, **given)
        assert is_mean_of(made, sweeps(tiny, interp.ablation_sweep, CLEAN, **given))
    keys = {"names": [1, 3], "last but one": -2}
    assert is_mean_of(
        interp.knockout_sweep(tiny, CLEAN, METRICS, keys=keys), sweeps(tiny, interp.knockout_sweep, CLEAN, keys=keys)
    )


def test_keys_may_differ_from_prompt_to_prompt(tiny):
    texts, keys = [CLEAN[0], LONGER[0]], [{"name": 1, "place": [8]}, {"name": 1, "place": [8, 9, 10]}]
    mean = interp.knockout_sweep(tiny, texts, METRIC, keys=keys, window=1)
    singles = [interp.knockout_sweep(tiny, *row[:1], METRIC, keys=row[1], window=1) for row in zip(texts, keys)]
    assert is_mean_of(mean, singles)
    assert mean._names() == ["name, 1: Mary", "place"] and "position … (␣to)" in mean._title()


def test_one_metric_serves_all_and_tokens_serve_as_prompts(tiny):
    mean = interp.patch_sweep(tiny, CLEAN[:2], CORRUPTED[:2], metric=METRIC, layers=1)
    assert is_mean_of(mean, sweeps(tiny, interp.patch_sweep, CLEAN[:2], CORRUPTED[:2], metrics=[METRIC] * 2, layers=1))
    tokens = [[tiny.tokens(text) for text in texts[:2]] for texts in (CLEAN, CORRUPTED)]
    assert np.array_equal(interp.patch_sweep(tiny, *tokens, metric=METRIC, layers=1).each, mean.each)
    single = interp.patch_sweep(tiny, tokens[0][0], tokens[1][0], metric=METRIC, layers=1)
    assert isinstance(single, interp.Sweep) and np.array_equal(single.values, mean.results[0].values)
    assert mean.metric == METRIC.name
    several = interp.patch_sweep(tiny, CLEAN[:2], CORRUPTED[:2], metric=METRICS[:2], layers=1)
    assert several.metric == "logit difference … − …"


def test_words_in_common():
    assert in_common(["a b c", "a x c"]) == "a … c" and in_common(["a", "a"]) == "a"
    assert in_common(["a", "b c"]) == "a, …"


# lengths


def test_pairs_of_different_lengths_are_averaged_over_heads_and_from_the_end(tiny):
    clean, corrupted = [CLEAN[0], LONGER[0]], [CORRUPTED[0], LONGER[1]]
    lengths = [len(tiny.tokens(text)) for text in clean]
    assert lengths[0] < lengths[1]
    heads = interp.patch_sweep(tiny, clean, corrupted, "z", METRIC, per_head=True, layers=2)
    assert heads.heads == [0, 1, 2, 3] and is_mean_of(heads, heads.results)
    given = {"positions": [3, -2, -1], "layers": [0, 2]}
    last = interp.patch_sweep(tiny, clean, corrupted, "l_out", METRIC, **given)
    singles = sweeps(tiny, interp.patch_sweep, clean, corrupted, metrics=[METRIC] * 2, **given)
    assert last.positions == [3, -2, -1] and is_mean_of(last, singles)
    assert [single.positions for single in singles] == [[3, n - 2, n - 1] for n in lengths]
    assert {cell.position for cell in last.top(6)} == {3, -2, -1}
    assert {cell.position: cell.piece for cell in last.top(6)} == {3: " John", -2: " drink", -1: " to"}
    interp.ablation_sweep(tiny, clean, METRIC, layers=0)


@pytest.mark.parametrize("positions", [None, [5, -10], [14]])
def test_columns_that_differ_are_refused_before_anything_runs(tiny, positions, monkeypatch):
    monkeypatch.setattr(tiny, "run", None)
    clean, corrupted = [*CLEAN, LONGER[0]], [*CORRUPTED, LONGER[1]]
    says = r"Pair 4 has 1\d tokens and the first 14.*positions=\[-1\].*per_head=True"
    with pytest.raises(interp.RunError, match=says):
        interp.patch_sweep(tiny, clean, corrupted, "l_out", METRIC, positions=positions)


# the interval


def by_hand(values: np.ndarray, level: float, n_resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A percentile bootstrap in plain loops."""
    rng, n = np.random.default_rng(seed), len(values)
    low, high = np.empty(values.shape[1:]), np.empty(values.shape[1:])
    draws = [[int(i) for i in row] for row in rng.integers(n, size=(n_resamples, n))]
    for cell in itertools.product(*map(range, values.shape[1:])):
        means = sorted(sum(float(values[(i, *cell)]) for i in row) / n for row in draws)
        for bounds, share in ((low, (1 - level) / 2), (high, (1 + level) / 2)):
            at = share * (n_resamples - 1)
            k = min(int(at), n_resamples - 2)
            bounds[cell] = means[k] + (at - k) * (means[k + 1] - means[k])
    return low, high


def test_the_interval_is_the_bootstrap_of_a_plain_loop(tiny):
    mean = interp.patch_sweep(tiny, CLEAN, CORRUPTED, metric=METRICS, layers=[1, 2], positions=[9, -1])
    for of in ("effects", "values", "normalized"):
        each = np.array([getattr(result, of) for result in mean.results])
        found = mean.interval(0.9, 200, seed=3, of=of)
        assert np.allclose(found, by_hand(each, 0.9, 200, 3), atol=1e-12)
        assert np.all(found[0] <= each.mean(axis=0)) and np.all(each.mean(axis=0) <= found[1])
    assert np.array_equal(mean.interval(), mean.interval(0.95, seed=0, of="effects"))
    assert not np.array_equal(mean.interval(), mean.interval(seed=1))
    best = mean.top(1)[0]
    where = mean.layers.index(best.layer), mean.positions.index(best.position)
    assert (best.low, best.high) == tuple(bound[where] for bound in mean.interval())
    wide, narrow = mean.interval(0.99), mean.interval(0.5)
    assert np.all(wide[0] <= narrow[0]) and np.all(narrow[1] <= wide[1])


def test_the_interval_covers_the_truth_as_often_as_it_says(rng):
    # 3000 experiments of 40 draws from a skewed distribution whose mean is 1
    low, high = bootstrap(rng.exponential(size=(40, 3000)), 0.9, 1000, 0)
    assert 0.85 < np.mean((low <= 1) & (1 <= high)) < 0.92
    low, high = bootstrap(rng.normal(size=(40, 60, 50)), 0.5, 1000, 0)
    assert low.shape == (60, 50) and 0.46 < np.mean((low <= 0) & (0 <= high)) < 0.53


def test_blocks_and_missing_cells_change_nothing(rng, monkeypatch):
    values = rng.normal(size=(6, 11, 7))
    values[:, 2, 3] = np.nan
    whole = bootstrap(values, 0.95, 300, 0)
    monkeypatch.setattr("interp.mean_sweep._BLOCK", 5)
    assert np.allclose(bootstrap(values, 0.95, 300, 0), whole, atol=1e-12, equal_nan=True)
    assert np.isnan(whole[0][2, 3]) and np.isnan(whole).sum() == 2


def test_one_pair_alone_has_no_interval(tiny, tmp_path, capsys):
    mean = interp.patch_sweep(tiny, CLEAN[:1], CORRUPTED[:1], metric=METRIC, layers=1)
    assert np.isnan(mean.interval()).all() and not mean.excludes_zero.any() and mean.count == "mean of 1 pair"
    assert np.array_equal(mean.values, mean.results[0].values)
    mean.print()
    assert "nan" not in capsys.readouterr().out
    mean.plot(tmp_path / "png" / "a.png")
    mean.html(tmp_path / "html" / "a.html")
    assert "nan" not in str(page(tmp_path / "html" / "a.html"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"level": 0}, "level=0"), ({"level": 1.0}, "below 1"), ({"level": "95"}, "level='95'"),
        ({"n_resamples": 0}, "at least 1"), ({"n_resamples": 1.5}, "integer"), ({"seed": -1}, "seed=-1"),
        ({"of": "clean"}, "effects, values, normalized"),
    ],
)
def test_an_interval_that_cannot_be_is_refused(tiny, given, says):
    mean = interp.patch_sweep(tiny, CLEAN[:2], CORRUPTED[:2], metric=METRIC, layers=1, positions=-1)
    with pytest.raises(interp.RunError, match=says):
        mean.interval(**given)


# what cannot be averaged


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"clean": []}, interp.RunError, "clean is an empty list"),
        ({"clean": [], "corrupted": []}, interp.RunError, "clean is an empty list"),
        ({"clean": CLEAN[:3]}, interp.RunError, "clean has 3 entries and corrupted has 4"),
        ({"clean": CLEAN[0]}, interp.RunError, "corrupted is a list of 4 prompts and clean is one"),
        ({"metric": METRICS[:3]}, interp.RunError, "metric has 3.*One for all may stand alone"),
        ({"metric": []}, interp.RunError, "metric has 0"),
        ({"metric": None}, interp.RunError, "Pair 0.*needs a metric"),
        ({"metric": [*METRICS[:3], 5]}, interp.RunError, r"Pair 3, .*0 \('When James and Tom.*…'\).*no function"),
        ({"metric": [*METRICS[:3], interp.probability("antidisestablishment")]}, interp.RunError, "Pair 3.*not one"),
        ({"clean": [*CLEAN[:2], CLEAN[2] + " the", CLEAN[3]]}, interp.RunError, "Pair 2.*15 tokens and the"),
        ({"clean": [CLEAN[0], CORRUPTED[1], *CLEAN[2:]]}, interp.RunError, "Pair 1.*are the same"),
        ({"clean": [*CLEAN[:3], ""]}, interp.RunError, "Pair 3.*empty"),
        ({"clean": [*CLEAN[:3], [1, 10**9]]}, interp.RunError, "Pair 3, counted from 0: Token 1000000000"),
        ({"clean": [*CLEAN[:3], 5]}, interp.RunError, "clean holds 5 among its prompts"),
        ({"site": "l_uot"}, interp.SiteError, "Pair 0.*l_out"),
        ({"positions": 14}, interp.SiteError, "0 to 13"),
        ({"positions": "last"}, interp.SiteError, "-1"),
    ],
)
def test_what_cannot_be_averaged_is_said_before_the_second_sweep(tiny, given, error, says, monkeypatch):
    runs, run = [], tiny.run
    monkeypatch.setattr(tiny, "run", lambda *args, **rest: runs.append(args) or run(*args, **rest))
    arguments = {"clean": CLEAN, "corrupted": CORRUPTED, "metric": METRICS, "layers": 1, **given}
    with pytest.raises(error, match=says):
        interp.patch_sweep(tiny, **arguments)
    assert runs == []


def test_a_run_that_fails_says_of_which_prompt(tiny):
    values = iter([1.0] * 5 + [np.nan])
    with pytest.raises(interp.RunError, match="Prompt 1, .*nan for the plain prompt"):
        interp.ablation_sweep(tiny, CLEAN, lambda run: next(values), layers=1)
    values = [1.0] * 6
    with pytest.raises(IndexError) as caught:
        interp.ablation_sweep(tiny, CLEAN, lambda run: values.pop(), layers=1)
    assert caught.value.__notes__[0].startswith("Prompt 1, counted from 0 ('When John")
    with pytest.raises(interp.RunError, match="dictionaries of different names"):
        interp.knockout_sweep(tiny, CLEAN[:2], METRIC, keys=[{"a": 1}, {"b": 1}])
    with pytest.raises(interp.RunError, match="prompt has 2 entries and keys has 1"):
        interp.knockout_sweep(tiny, CLEAN[:2], METRIC, keys=[{"a": 1}])


def test_results_of_other_rows_have_no_mean(tiny):
    some = [interp.ablation_sweep(tiny, CLEAN[0], METRIC, layers=layer) for layer in (1, 2)]
    with pytest.raises(interp.RunError, match="Result 1 has other rows"):
        interp.MeanSweep.of(some)
    with pytest.raises(interp.RunError, match="no results"):
        interp.MeanSweep.of([])


# Ctrl-C


def interrupting(after: int):
    calls = []

    def metric(run) -> float:
        calls.append(run)
        if len(calls) > after:
            raise KeyboardInterrupt
        return METRIC(run)

    return metric


def test_ctrl_c_returns_the_finished_prompts(tiny, tmp_path):
    # five calls for each prompt: the plain one and four heads
    whole = interp.ablation_sweep(tiny, CLEAN, METRIC, layers=1)
    for after in (10, 12):
        part = interp.ablation_sweep(tiny, CLEAN, interrupting(after), layers=1)
        assert not part.complete and part.n_given == 4 and len(part.results) == 2
        assert np.allclose(part.each, whole.each[:2], atol=1e-5) and "2 of 4 prompts" in part.count
        assert "(interrupted)" in part._title() and "(interrupted)" not in whole._title()
        loaded = interp.MeanSweep.load(part.save(tmp_path / "part.npz"))
        assert not loaded.complete and loaded.n_given == 4
    first = interp.ablation_sweep(tiny, CLEAN, interrupting(3), layers=1)
    assert not first.complete and len(first.results) == 1
    assert np.allclose(first.values[0, :2], whole.each[0, 0, :2], atol=1e-5) and np.isnan(first.values[0, 2:]).all()
    first.print()
    first.plot(tmp_path / "first.png")
    first.html(tmp_path / "first.html")
    with pytest.raises(KeyboardInterrupt):
        interp.ablation_sweep(tiny, CLEAN, interrupting(0), layers=1)
    assert np.array_equal(interp.ablation_sweep(tiny, CLEAN, METRIC, layers=1).each, whole.each)


def test_one_bar_counts_all_prompts(tiny, monkeypatch):
    bars, steps = [], []

    class Bar:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def add_task(self, label, total):
            bars.append((label, total))

        def advance(self, _task, share=1):
            steps.append(share)

    monkeypatch.setattr("rich.progress.Progress", Bar)
    interp.ablation_sweep(tiny, CLEAN, METRIC, layers=1, progress=True)
    assert bars == [("4 prompts", 4)] and len(steps) == 16 and 4 <= sum(steps) < 4.001
    interp.ablation_sweep(tiny, CLEAN[0], METRIC, layers=1, progress=True)
    assert bars[1:] == [("ablating z", 4)] and steps[16:] == [1] * 4


# what comes back


@pytest.fixture(scope="module")
def made(tiny) -> dict[str, interp.MeanSweep]:
    return {
        "positions": interp.patch_sweep(tiny, CLEAN, CORRUPTED, metric=METRICS),
        "heads": interp.patch_sweep(tiny, CLEAN, CORRUPTED, "z", METRICS, per_head=True),
        "paths": interp.path_patch(tiny, CLEAN, CORRUPTED, metric=METRICS, receivers=(2, 1, "q")),
        "ablation": interp.ablation_sweep(tiny, CLEAN, METRICS),
        "layers": interp.ablation_sweep(tiny, CLEAN, METRICS, "mlp_out"),
        "knockout": interp.knockout_sweep(tiny, CLEAN, METRICS, keys={"first": 1, "second": [3, 9]}, window=1),
    }


KINDS = ["positions", "heads", "paths", "ablation", "layers", "knockout"]


@pytest.mark.parametrize("kind", KINDS)
def test_means_are_printed_drawn_and_saved(made, kind, tmp_path, capsys):
    shown = made[kind]
    shown.print()
    text, best = capsys.readouterr().out, shown.top(1)[0]
    assert f"{best.value:.3f}" in text and f"{best.low:+.3f} … {best.high:+.3f}" in text and "95 % interval" in text
    assert "mean of 4 p" in text and "logit difference … − …" in text
    assert abs(best.effect) == np.nanmax(np.abs(shown.effects))
    assert ("normalized" in text) == (kind in ("positions", "heads"))
    shown.plot(tmp_path / "png" / "a.png")
    with Image.open(tmp_path / "png" / "a.png") as image:
        assert min(image.size) > 150
    shown.html(tmp_path / "html" / "a.html")
    trace, _ = page(tmp_path / "html" / "a.html")
    lines = kind in ("layers", "knockout")
    assert np.shape(trace["hovertext"]) == (shown.values.shape[-1:] if lines else shown.values.shape)
    assert f"95 % {best.low:+.4f} … {best.high:+.4f}" in str(trace["hovertext"]) or kind == "knockout"
    for suffix in ("safetensors", "npz"):
        loaded = interp.MeanSweep.load(shown.save(tmp_path / f"a.{suffix}"))
        assert np.array_equal(loaded.values, shown.values) and np.array_equal(loaded.each, shown.each)
        assert repr(loaded) == repr(shown) and loaded.top(5) == shown.top(5) and loaded.complete
        for ours, theirs in zip(shown.results, loaded.results, strict=True):
            assert type(ours) is type(theirs)
            for name in vars(ours):
                assert name == "values" or getattr(ours, name) == getattr(theirs, name), name
    with pytest.raises(interp.FileError, match="no sweep"):
        interp.Sweep.load(tmp_path / "a.npz")
    with pytest.raises(interp.FileError, match="no mean of sweeps"):
        interp.MeanSweep.load(shown.results[0].save(tmp_path / "single.npz"))


def test_columns_are_labelled_by_what_all_prompts_share(made):
    labels = made["positions"]._columns()
    assert labels[0] == "When" and labels[-1] == "␣to" and labels[1] == labels[3] == labels[9] == ""
    assert made["positions"]._positions() == list(range(14))
    assert made["knockout"]._names() == ["first", "second"] and made["layers"]._names() == [""]


def test_dots_are_where_the_interval_excludes_zero(made, tmp_path, monkeypatch):
    shown, seen = made["positions"], {}
    low, high = shown.interval()
    excluded = (low > 0) | (high < 0)
    assert 0 < excluded.sum() < excluded.size and np.array_equal(shown.excludes_zero, excluded)
    # where nothing changes in any pair the interval is 0 to 0
    assert not excluded[:, 0].any() and np.all(low[:, 0] == 0) and np.all(high[:, 0] == 0)
    monkeypatch.setattr("plotly.graph_objects.Figure.add_scatter", lambda self, **given: seen.update(given))
    shown.html(tmp_path / "a.html")
    assert set(zip(seen["y"], seen["x"])) == set(zip(*map(np.ndarray.tolist, np.nonzero(excluded))))
    monkeypatch.setattr("matplotlib.axes.Axes.scatter", lambda self, x, y, **_: seen.update(x=x, y=y))
    shown.plot(tmp_path / "a.png")
    assert set(zip(seen["y"] - 0.5, seen["x"] - 0.5)) == set(zip(*np.nonzero(excluded)))


def test_lines_are_shaded_by_the_interval_around_their_baseline(made, tmp_path, monkeypatch):
    shown, seen = made["knockout"], []
    monkeypatch.setattr("matplotlib.axes.Axes.fill_between", lambda self, x, low, high, **_: seen.append((low, high)))
    shown.plot(tmp_path / "a.png")
    low, high = shown.interval()
    assert np.allclose(seen, np.stack([low, high], axis=1) + shown.baseline)
