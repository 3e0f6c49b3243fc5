"""Sweeps of ablations and of attention knockout: each value is what a run of its own gives, bit for bit."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from PIL import Image

import interp
import models
from interp.cells import Plain
from interp.grid import Grid
from test_plot import page

PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "The Eiffel Tower is located in the city of Paris"
METRIC = interp.logit_diff(" Mary", " John")

#: one run for each cell; the batched method has tests of its own
ablation_sweep = functools.partial(interp.ablation_sweep, method="serial")
knockout_sweep = functools.partial(interp.knockout_sweep, method="serial")


def value(model, edits) -> float:
    return METRIC(model.run(PROMPT, edits=edits, logits="last"))


# ablation


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_every_ablation_is_a_run_of_its_own_bit_for_bit(arch):
    with interp.Model(models.tiny(arch), n_ctx=256, n_threads=1) as model:
        other = model.run(OTHER, capture=("z", "mlp_out", "attn_out"))
        for mode, mean in (("zero", None), ("mean", other)):
            sweep = ablation_sweep(model, PROMPT, METRIC, mode=mode, mean=mean)
            expected = [
                [value(model, interp.ablate([(layer, head)], mode=mode, mean=mean)) for head in range(model.n_head)]
                for layer in range(model.n_layer)
            ]
            assert sweep.values.dtype == np.float64 and np.array_equal(sweep.values, expected)
            # an edit has the last layer compute every row, so that its last bits are those of a run with another edit
            assert sweep.baseline == value(model, interp.scale("z", 1.0)) and sweep.complete
            for site in ("mlp_out", "attn_out"):
                sweep = ablation_sweep(model, PROMPT, METRIC, site, mode, mean)
                expected = [
                    value(model, interp.ablate(site=site, layers=layer, mode=mode, mean=mean))
                    for layer in range(model.n_layer)
                ]
                assert np.array_equal(sweep.values, expected) and sweep.heads is None, site
        # without attention's output nothing of its heads is left; biases are
        if arch != "gpt2":
            heads = interp.ablate([(1, head) for head in range(model.n_head)])
            assert value(model, heads) == value(model, interp.ablate(site="attn_out", layers=1))


def test_runs_start_at_the_ablated_layer_and_whole_runs_give_the_same(tiny, monkeypatch):
    quick = ablation_sweep(tiny, PROMPT, METRIC, layers=[-1, 1])
    assert quick.layers == [1, 3] and quick.values.shape == (2, 4)
    monkeypatch.setattr(Plain, "can_start", False)
    assert np.array_equal(ablation_sweep(tiny, PROMPT, METRIC, layers=[1, 3]).values, quick.values)


def test_whole_layers_are_ablated_with_means_of_their_shape(tiny, rng):
    mean = rng.standard_normal((tiny.n_layer, tiny.n_embd)).astype(np.float32)
    both = interp.ablate(site="mlp_out", layers=[1, 2], mode="mean", mean=mean)
    run = tiny.run(PROMPT, capture="mlp_out", edits=both)
    assert np.array_equal(run["mlp_out", 1], np.tile(mean[1], (14, 1)))
    assert np.array_equal(run["mlp_out", 2], np.tile(mean[2], (14, 1)))
    with pytest.raises(interp.EditError, match="shape"):
        tiny.run(PROMPT, edits=interp.ablate(site="mlp_out", layers=1, mode="mean", mean=mean[:, :5]))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"metric": None}, interp.RunError, "ablation_sweep needs a metric"),
        ({"mode": "resample"}, interp.RunError, '"zero" or "mean"'),
        ({"mode": "mean"}, interp.EditError, "needs mean="),
        ({"site": "attn_scores"}, interp.SiteError, "first axis"),
        ({"site": "z_out"}, interp.SiteError, "no site"),
        ({"layers": 4}, interp.SiteError, "0 to 3"),
        ({"metric": lambda run: np.nan}, interp.RunError, "nan for the plain prompt"),
    ],
)
def test_what_cannot_be_ablated_is_said(tiny, given, error, says):
    with pytest.raises(error, match=says):
        ablation_sweep(tiny, **{"prompt": PROMPT, "metric": METRIC, **given})


# knockout


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
def test_every_knockout_is_a_run_of_its_own_bit_for_bit(arch):
    with interp.Model(models.tiny(arch), n_ctx=256, n_threads=1) as model:
        keys = {"name": [1, 3], "last but one": -2}
        sweep = knockout_sweep(model, PROMPT, METRIC, queries=[-1, 12], keys=keys, window=3)
        assert sweep.keys == {"name": [1, 3], "last but one": [12]} and sweep.queries == [12, 13]
        windows = [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]
        expected = [[value(model, interp.knockout(w, [12, 13], k)) for w in windows] for k in ([1, 3], [12])]
        assert np.array_equal(sweep.values, expected)
        assert sweep.baseline == value(model, interp.scale("z", 1.0))
        assert np.allclose(sweep.relative, sweep.values / sweep.baseline - 1)


def test_a_window_of_an_even_number_and_a_list_of_keys(tiny):
    sweep = knockout_sweep(tiny, PROMPT, METRIC, -1, [1, 2], window=2, layers=[1, -1])
    expected = [value(tiny, interp.knockout(w, -1, [1, 2])) for w in ([0, 1], [2, 3])]
    assert sweep.values.tolist() == [expected] and sweep.layers == [1, 3]
    whole = knockout_sweep(tiny, PROMPT, METRIC, -1, [1, 2], window=100)
    assert np.all(whole.values == whole.values[0, 0])


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"keys": None}, interp.RunError, "keys= is missing"),
        ({"keys": {}}, interp.RunError, "keys= is missing"),
        ({"keys": 14}, interp.SiteError, "0 to 13"),
        ({"queries": "last"}, interp.SiteError, "-1"),
        ({"window": 0}, interp.RunError, "at least 1"),
        ({"layers": 7}, interp.SiteError, "0 to 3"),
        ({"keys": list(range(14))}, interp.EditError, "no key to look at"),
    ],
)
def test_what_cannot_be_knocked_out_is_said(tiny, given, error, says):
    with pytest.raises(error, match=says):
        knockout_sweep(tiny, PROMPT, METRIC, **{"queries": -1, "keys": [1], **given})


# what comes back


@pytest.fixture(scope="module")
def made(tiny) -> dict[str, interp.AblationSweep | interp.KnockoutSweep]:
    return {
        "heads": ablation_sweep(tiny, PROMPT, METRIC),
        "layers": ablation_sweep(tiny, PROMPT, METRIC, "mlp_out"),
        "knockout": knockout_sweep(tiny, PROMPT, METRIC, -1, {"Mary": 1, "John": [3, 9]}, window=1),
    }


@pytest.mark.parametrize("kind", ["heads", "layers", "knockout"])
def test_results_are_printed_drawn_and_saved(made, kind, tmp_path, capsys):
    shown = made[kind]
    shown.print()
    text = capsys.readouterr().out
    best = shown.top(1)[0]
    assert f"{best.value:.3f}" in text and "logit difference" in text and f"{shown.baseline:.3f}" in text
    assert abs(best.effect) == np.abs(shown.effects).max()
    shown.plot(tmp_path / "png" / "a.png")
    with Image.open(tmp_path / "png" / "a.png") as image:
        assert min(image.size) > 150
    shown.html(tmp_path / "html" / "a.html")
    trace, _ = page(tmp_path / "html" / "a.html")
    assert np.shape(trace["hovertext"]) == (shown.values.shape if kind == "heads" else shown.values.shape[-1:])
    loaded = type(shown).load(shown.save(tmp_path / "a.safetensors"))
    assert np.array_equal(loaded.values, shown.values) and loaded.top(3) == shown.top(3)
    assert repr(loaded) == repr(shown) and loaded.complete
    with pytest.raises(interp.FileError, match="holds no sweep"):
        interp.Sweep.load(tmp_path / "a.safetensors")


def test_ctrl_c_returns_the_finished_part_and_the_model_works(tiny, made, tmp_path):
    calls = []

    def interrupted(run):
        calls.append(run)
        if len(calls) == 1 + 7:
            raise KeyboardInterrupt
        return METRIC(run)

    part = ablation_sweep(tiny, PROMPT, interrupted, progress=False)
    done = ~np.isnan(part.values)
    assert not part.complete and done.sum() == 6 and np.array_equal(part.values[done], made["heads"].values[done])
    part.plot(tmp_path / "part.png")
    calls.clear()
    part = knockout_sweep(tiny, PROMPT, interrupted, -1, {"Mary": 1, "John": [3, 9]}, window=1)
    done = ~np.isnan(part.values)
    assert not part.complete and np.array_equal(part.values[done], made["knockout"].values[done])
    assert "interrupted" in repr(part)
    part.plot(tmp_path / "part.png")
    part.html(tmp_path / "part.html")


def test_every_kind_of_result_says_all_that_a_grid_asks_of_it():
    assert len(Grid.kinds) == 7 and not any(kind.__abstractmethods__ for kind in Grid.kinds.values())
    with pytest.raises(TypeError, match="abstract"):
        Grid(values=np.zeros(1), metric="", model="", layers=[0], complete=True)
