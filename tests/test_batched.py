"""The batched sweep measures what the serial one measures, in few decodes, and leaves the model as it was."""

from __future__ import annotations

import functools
import itertools
import threading

import numpy as np
import pytest

import interp
import models
import recipes
from interp import batched
from interp.cells import Cell, Plain, Rows
from interp.sites import at

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
METRIC = interp.logit_diff(" Mary", " John")

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v")


#: ggml's GELU is a table of halves: an input that another kernel rounds otherwise may fall into the next entry
GELU = ("gpt2", "gemma2", "gemma3", "gptneox", "falcon", "starcoder2")


def bound(model) -> float:
    return 1e-3 if model.arch in GELU else 1e-4

METHODS = ("batched", "serial")


def both(model, site: str, clean=CLEAN, corrupted=CORRUPTED, **options) -> tuple[interp.Sweep, interp.Sweep]:
    return tuple(
        interp.patch_sweep(model, clean, corrupted, site, METRIC, method=method, **options)
        for method in METHODS
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
        many, serial = both(each, site)
        assert np.allclose(many.values, serial.values, atol=bound(each)), site
        assert np.abs(serial.effects).max() > 1e-3, f"{site} moves nothing, so nothing is shown"


def test_every_head_on_every_architecture(each):
    for site in ("z", "q", "k", "v"):
        many, serial = both(each, site, per_head=True)
        assert np.allclose(many.values, serial.values, atol=bound(each)), site


@pytest.mark.cpu_only
def test_the_logits_that_a_metric_reads_are_computed_alone(each, monkeypatch):
    widths = []
    real = batched.run_group

    def counted(*args, **options):
        found = real(*args, **options)
        widths.append(found[0].shape[1])
        return found

    monkeypatch.setattr(batched, "run_group", counted)
    few = interp.patch_sweep(each, CLEAN, CORRUPTED, "attn_out", METRIC, method="batched")
    assert set(widths) == {2}
    all_ = interp.patch_sweep(each, CLEAN, CORRUPTED, "attn_out", lambda run: METRIC(run), method="batched")
    assert widths[-1] == each.n_vocab
    assert np.allclose(few.values, all_.values, atol=2e-5, rtol=2e-5)


def test_the_logits_of_a_quantised_head_are_computed_alone_too(model):
    few, all_ = (
        interp.patch_sweep(model, CLEAN, CORRUPTED, "l_out", metric, layers=[5, 24], method="batched")
        for metric in (METRIC, lambda run: METRIC(run))
    )
    assert np.allclose(few.values, all_.values, atol=1e-4)


def test_ablations_and_knockouts_on_every_architecture(each):
    other = each.run("The Eiffel Tower is located in the city of Paris", capture=("z", "mlp_out"))
    for site, mode in (("z", "zero"), ("z", "mean"), ("mlp_out", "mean"), ("attn_out", "zero")):
        many, serial = (
            interp.ablation_sweep(each, CLEAN, METRIC, site, mode, other, method=method) for method in METHODS
        )
        assert np.allclose(many.values, serial.values, atol=bound(each)), (site, mode)
    keys = {"names": [1, 3], "last but one": -2}
    many, serial = (
        interp.knockout_sweep(each, CLEAN, METRIC, [-1, 12], keys, window=2, method=method) for method in METHODS
    )
    assert np.allclose(many.values, serial.values, atol=bound(each))
    assert np.abs(serial.effects).max() > 1e-3


@pytest.mark.parametrize("receivers", ["logits", [(-1, 1, "q"), (1, 0, "k"), (-1, 0, "v")]])
@pytest.mark.parametrize("freeze_mlp", [False, True])
def test_paths_on_every_architecture(each, receivers, freeze_mlp):
    many, serial = (
        interp.path_patch(
            each, CLEAN, CORRUPTED, None, receivers, METRIC, freeze_mlp=freeze_mlp, method=method, direction="noise"
        )
        for method in METHODS
    )  # fmt: skip
    assert np.allclose(many.values, serial.values, atol=bound(each))
    assert np.abs(serial.effects).max() > 1e-4


def test_ablation_and_paths_of_the_default_model(model):
    """Quantised weights, flash attention, a cache of halves."""
    for sweep in (
        functools.partial(interp.ablation_sweep, model, CLEAN, METRIC, layers=[5, 23]),
        functools.partial(interp.knockout_sweep, model, CLEAN, METRIC, -1, [1], layers=[5, 23]),
        functools.partial(interp.path_patch, model, CLEAN, CORRUPTED, [(20, 3), (23, 3)], metric=METRIC),
        functools.partial(interp.path_patch, model, CLEAN, CORRUPTED, [(20, 3)], (23, 3, "q"), METRIC),
    ):
        # whole sequences beside each other take flash attention's tiled kernel, and what that rounds otherwise moves
        # activations over the steps of their quantisation: flash attention on and off differ by 0.16 here
        assert np.allclose(*(sweep(method=method).values for method in METHODS), atol=0.4)


def test_flash_attention_and_a_half_precision_cache(flash):
    for site, per_head in (("l_out", False), ("attn_out", False), ("z", True)):
        many, serial = both(flash, site, per_head=per_head)
        # keys are rounded to halves, whichever path they take
        assert np.allclose(many.values, serial.values, atol=2e-3), site


def test_the_default_model(model):
    many, serial = both(model, "l_out", layers=[0, 12, 22, 29])
    assert np.allclose(many.values, serial.values, atol=0.05)
    assert many.normalized[1, 9] > 0.9 and many.normalized[3, 13] == 1.0


def test_noising_chosen_positions_and_no_pruning(tiny):
    for options in ({"direction": "noise"}, {"positions": [3, 9, -1]}, {"prune": False}, {"layers": [1, -1]}):
        many, serial = both(tiny, "l_out", **options)
        assert np.allclose(many.values, serial.values, atol=1e-4), options


def test_prompts_that_differ_everywhere(tiny):
    tokens = np.random.default_rng(0).integers(100, 40000, (2, 24)).tolist()
    for site, per_head in (("l_out", False), ("v", False), ("z", True)):
        many, serial = both(tiny, site, *tokens, per_head=per_head)
        assert np.allclose(many.values, serial.values, atol=1e-4), site


def test_more_cells_than_fit_are_run_in_groups(tiny, monkeypatch):
    tokens = np.random.default_rng(1).integers(100, 40000, (2, 20)).tolist()
    whole = interp.patch_sweep(tiny, *tokens, "l_out", METRIC, method="batched")
    counts = []
    real = batched.run_group

    def counted(plain, group, **options):
        counts.append(len(group))
        return real(plain, group, **options)

    monkeypatch.setattr(batched, "run_group", counted)
    monkeypatch.setattr(tiny, "_n_seq_max", 4)
    again = interp.patch_sweep(tiny, *tokens, "l_out", METRIC, method="batched")
    assert max(counts) == 3 and np.allclose(again.values, whole.values, atol=1e-4)
    with interp.Model(models.tiny("llama"), n_ctx=45, kv_type="f32", flash_attn=False, n_threads=1) as small:
        cramped = interp.patch_sweep(small, *tokens, "l_out", METRIC, method="batched")
        assert np.allclose(cramped.values, whole.values, atol=1e-4)


def test_layers_share_a_decode_where_that_is_cheaper(tiny):
    """The partition is the cheapest: against every other one of a small sweep."""
    tokens = tiny.tokens(CLEAN)
    site = tiny._table.find("l_out", 0)[0]
    with Plain(tiny, tokens, (), range(1, 4)) as plain:
        for lengths in ([3, 3, 3], [1, 9, 1], [14, 14, 14]):
            cells = [
                Cell((layer, i), "", layer, 14 - length, (Rows(at("l_out", 0), site, np.zeros((14, 64)), [13]),))
                for layer in range(4) for i, length in enumerate(lengths)
            ]  # fmt: skip

            def cost(groups) -> float:
                head = tiny.n_vocab * tiny.n_embd / ((tiny.n_params - tiny.n_vocab * tiny.n_embd) / tiny.n_layer)
                reading = batched._TOKENS_PER_BYTE * tiny._n_bytes / tiny.n_params
                return sum(
                    (tiny.n_layer - min(cell.layer for cell in group))
                    * (reading + sum(14 - cell.first for cell in group))
                    + head * (reading + len(group))
                    for group in groups
                )

            cuts = range(1, len(cells))
            every = [
                [cells[i:j] for i, j in zip([0, *chosen], [*chosen, len(cells)])]
                for k in range(len(cells)) for chosen in itertools.combinations(cuts, k)
            ]  # fmt: skip
            groups = batched.partition(plain, cells)
            assert [cell for group in groups for cell in group] == cells
            assert cost(groups) == pytest.approx(min(map(cost, every)))


def test_a_sequence_that_cannot_fit_is_refused_before_anything_is_run():
    tokens = np.random.default_rng(1).integers(100, 40000, (2, 20)).tolist()
    with interp.Model(models.tiny("llama"), n_ctx=30, kv_type="f32", flash_attn=False, n_threads=1) as small:
        with pytest.raises(interp.RunError, match="n_ctx=40"):
            interp.patch_sweep(small, *tokens, "l_out", METRIC, method="batched")


def test_no_more_graphs_than_one_for_each_layer(tiny):
    import ctypes as ct

    def built() -> int:
        n_built, n_reused = ct.c_int64(), ct.c_int64()
        tiny._lib.graph_counts(tiny._handle, n_built, n_reused)
        return n_built.value

    for site, per_head in (("mlp_out", False), ("z", True)):
        sweep = functools.partial(interp.patch_sweep, tiny, CLEAN, CORRUPTED, site, METRIC, per_head=per_head)
        sweep()  # whether runs may start in the middle is known now
        before = built()
        sweep()
        assert 2 < built() - before <= 2 + tiny.n_layer, "more than two plain runs and one for each layer"


def test_a_metric_may_run_the_model(tiny):
    plain = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", METRIC, method="batched")

    def metric(run) -> float:
        tiny.run("something else", edits=interp.scale("l_out-1", 0.5))
        return METRIC(run)

    again = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric, method="batched")
    assert np.allclose(again.values, plain.values, atol=1e-6)


def test_a_prefix_that_a_metric_begins_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "_n_seq_max", 4)  # several decodes

    def metric(run) -> float:
        metric.calls += 1
        if metric.calls == 4:
            tiny.prefix("something else")
        return METRIC(run)

    metric.calls = 0
    try:
        with pytest.raises(interp.RunError, match="prefix"):
            interp.patch_sweep(tiny, CLEAN, CORRUPTED, "l_out", metric, method="batched")
    finally:
        tiny.prefix(None)


def test_graphs_of_a_sweep_are_shown(tiny):
    graphs = []
    tiny.on_graph(graphs.append)
    try:
        interp.patch_sweep(tiny, CLEAN, CORRUPTED, "z", METRIC, per_head=True, layers=[1], method="batched")
    finally:
        tiny.on_graph(None)
    # two plain runs, and a decode whose edit has added nodes
    assert len(graphs) == 3 and any(node.added_by == "patch" for node in graphs[-1].nodes)


def test_another_thread_may_use_the_model_meanwhile(tiny):
    plain = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "z", METRIC, per_head=True, method="batched")
    expected, done, wrong = tiny.run("something else").logits, threading.Event(), []

    def other() -> None:
        while not done.is_set():
            wrong.extend([] if np.array_equal(tiny.run("something else").logits, expected) else [1])

    thread = threading.Thread(target=other)
    thread.start()
    try:
        for _ in range(5):
            again = interp.patch_sweep(tiny, CLEAN, CORRUPTED, "z", METRIC, per_head=True, method="batched")
            assert np.array_equal(again.values, plain.values)
    finally:
        done.set()
        thread.join()
    assert not wrong


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
