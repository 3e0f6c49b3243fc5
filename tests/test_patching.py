"""Ablation, patching, steering, knockout and edits on the host: each does what it says, there and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
from conftest import PROMPT
from interp import at

OTHER = "The Colosseum is located in the city of"  # as many tokens as PROMPT


@pytest.fixture(scope="module")
def plain(tiny) -> interp.Run:
    return tiny.run(PROMPT, capture=("l_out", "z", "q", "mlp_out", "attn_out", "attn_scores"))


@pytest.fixture(scope="module")
def other(tiny) -> interp.Run:
    return tiny.run(OTHER, capture=("l_out", "z", "mlp_out", "attn_scores"))


@pytest.fixture
def direction(tiny, rng) -> np.ndarray:
    return rng.normal(size=tiny.n_embd).astype(np.float32)


def test_the_prompts_are_of_one_length(plain, other):
    assert len(plain.tokens) == len(other.tokens)


# ablation


def test_zero_ablation_takes_out_the_heads_named_and_no_other(tiny, plain):
    run = tiny.run(PROMPT, capture="z", edits=interp.ablate([(1, 0), (1, -1), (2, 2)]))
    assert not run["z", 1][:, [0, 3]].any() and not run["z", 2][:, 2].any()
    assert np.array_equal(run["z", 1][:, [1, 2]], plain["z", 1][:, [1, 2]])
    assert np.array_equal(run["z", 0], plain["z", 0])
    assert not np.allclose(run.logits, plain.logits, atol=1e-3)


def test_ablating_no_head_changes_no_bit(tiny, plain):
    assert np.array_equal(tiny.run(PROMPT, edits=interp.ablate([])).logits, plain.logits)


def test_ablation_at_the_scores_equals_ablation_at_z(tiny):
    by_z, by_scores = (tiny.run(PROMPT, edits=interp.ablate([(1, 2)], site=site)) for site in ("z", "attn_scores"))
    assert np.allclose(by_z.logits, by_scores.logits, atol=1e-5)


def test_mean_ablation_puts_the_mean_at_every_position(tiny, other):
    means = np.stack([other["z", layer].mean(axis=0) for layer in range(tiny.n_layer)])
    for given in (other, means, means[1]):
        run = tiny.run(PROMPT, capture="z", edits=interp.ablate([(1, 2)], mode="mean", mean=given))
        assert np.allclose(run["z", 1][:, 2], means[1, 2], atol=1e-6)
    generation = tiny.generate(PROMPT, max_tokens=3, capture="z", edits=interp.ablate([(1, 2)], mode="mean", mean=means))
    assert np.allclose(generation.run["z", 1][:, 2], means[1, 2], atol=1e-6)


def test_resample_ablation_takes_each_position_from_the_other_run(tiny, plain, other):
    edit = interp.ablate([(1, 2)], mode="resample", source=other)
    run = tiny.run(PROMPT, capture="z", edits=edit)
    assert np.array_equal(run["z", 1][:, 2], other["z", 1][:, 2])
    assert np.array_equal(run["z", 1][:, 1], plain["z", 1][:, 1])


def test_ablation_holds_for_the_prompt_and_for_what_is_generated(tiny):
    everywhere = tiny.generate(PROMPT, max_tokens=4, capture="z", edits=interp.ablate([(1, 2)]))
    assert not everywhere.run["z", 1][:, 2].any()
    n = len(tiny.tokens(PROMPT))
    later = tiny.generate(PROMPT, max_tokens=4, capture="z", edits=interp.ablate([(1, 2)], positions="generated"))
    assert later.run["z", 1][:n, 2].any() and not later.run["z", 1][n:, 2].any()
    one = tiny.run(PROMPT, capture="z", edits=interp.ablate([(1, 2)], positions=[3]))
    assert not one["z", 1][3, 2].any() and one["z", 1][2, 2].any()


def test_keeping_one_head_zeroes_the_others(tiny, plain):
    run = tiny.run(PROMPT, capture="z", edits=interp.keep_only(1, 2))
    assert np.array_equal(run["z", 1][:, 2], plain["z", 1][:, 2])
    assert not run["z", 1][:, [0, 1, 3]].any()
    same = tiny.run(PROMPT, edits=interp.ablate([(1, 0), (1, 1), (1, 3)]))
    assert np.array_equal(run.logits, same.logits)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: interp.ablate([(1, 99)]), interp.SiteError, "heads 0 to 3"),
        (lambda: interp.ablate([(99, 0)]), interp.SiteError, "layers 0 to 3"),
        (lambda: interp.ablate([5]), interp.SiteError, "pairs"),
        (lambda: interp.ablate([(1, 0)], site="l_out"), interp.SiteError, "no heads"),
        (lambda: interp.ablate([(1, 0)], mode="median"), interp.EditError, "resample"),
        (lambda: interp.ablate([(1, 0)], mode="mean"), interp.EditError, "mean="),
        (lambda: interp.ablate([(1, 0)], mode="mean", mean=np.ones((4, 7, 3))), interp.EditError, "shape"),
        (lambda: interp.ablate([(1, 0)], mode="resample"), interp.EditError, "source="),
        (lambda: interp.keep_only(1, 4), interp.SiteError, "heads 0 to 3"),
        (lambda: interp.keep_only(1.5, 4), interp.SiteError, "integer"),
        (lambda: interp.patch("l_out", 1, np.ones((3, 64))), interp.EditError, "positions=[...]"),
        (lambda: interp.patch("l_out", 1, np.ones((3, 65)), positions=[0, 1, 2]), interp.EditError, "65"),
        (lambda: interp.patch("l_out", 1, np.ones((3, 64)), positions=[0], from_positions=[3]), interp.SiteError, "out of range"),
        (lambda: interp.patch("l_out", 1, np.ones((3, 64)), positions=[0, 1, 2], from_positions=[0, 2]), interp.EditError, "2 rows"),
        (lambda: interp.patch("l_out", 1, np.ones((3, 64)), from_positions=[2]), interp.EditError, "say where to"),
        (lambda: interp.steer("l_out", 1, np.ones(65)), interp.EditError, "65"),
        (lambda: interp.steer("l_out", 1, np.ones(64), coef="big"), interp.EditError, "number"),
        (lambda: interp.project_out("l_out", 1, np.zeros(64)), interp.EditError, "zero"),
        (lambda: interp.project_out("l_out", 1, np.ones(65)), interp.EditError, "65"),
        (lambda: interp.knockout(1, queries=3, keys=None), interp.EditError, "ablate"),
        (lambda: interp.knockout(1, queries=None, keys=0), interp.EditError, "query 0"),
        (lambda: interp.knockout(1, queries=99, keys=0), interp.SiteError, "out of range"),
        (lambda: interp.edit_host("l_out-1", 5), interp.EditError, "function"),
        (lambda: interp.edit_host("l_out-1", lambda x: x[:1]), interp.EditError, "shape"),
        (lambda: interp.edit_host("l_out-1", lambda x: 1 / 0), interp.EditError, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_done_is_said_and_the_model_lives(tiny, plain, make, error, says):
    with pytest.raises(error, match=says.replace("[", r"\[").replace(".", r"\.")):
        tiny.run(PROMPT, edits=make())
    assert np.array_equal(tiny.run(PROMPT).logits, plain.logits)


# patching


def test_patching_the_residual_stream_at_the_last_position(tiny, plain, other):
    run = tiny.run(PROMPT, capture="l_out", edits=interp.patch("l_out", 1, other, positions=-1))
    assert np.array_equal(run["l_out", 1][-1], other["l_out", 1][-1])
    assert np.array_equal(run["l_out", 1][:-1], plain["l_out", 1][:-1])


def test_patching_everything_gives_the_other_run(tiny, other):
    run = tiny.run(PROMPT, edits=interp.patch("l_out", 1, other))
    assert np.array_equal(run.logits, other.logits), "layers 2 and 3 see the other run's residual stream only"


@pytest.mark.parametrize("site", ["l_out", "z", "mlp_out", "attn_scores"])
def test_patching_a_run_with_itself_changes_no_bit(tiny, plain, site):
    assert np.array_equal(tiny.run(PROMPT, edits=interp.patch(site, 1, plain)).logits, plain.logits)


def test_patching_moves_positions(tiny, plain, other):
    edit = interp.patch("mlp_out", 2, other, positions=[4, 1], from_positions=[0, -1])
    run = tiny.run(PROMPT, capture="mlp_out", edits=edit)
    assert np.array_equal(run["mlp_out", 2][[4, 1]], other["mlp_out", 2][[0, -1]])
    assert np.array_equal(run["mlp_out", 2][[0, 2, 3]], plain["mlp_out", 2][[0, 2, 3]])


def test_patching_one_head(tiny, plain, other):
    run = tiny.run(PROMPT, capture="z", edits=interp.patch("z", 1, other, heads=2))
    assert np.array_equal(run["z", 1][:, 2], other["z", 1][:, 2])
    assert np.array_equal(run["z", 1][:, [0, 1, 3]], plain["z", 1][:, [0, 1, 3]])


def test_patching_from_a_run_that_holds_only_that_part(tiny, other):
    part = tiny.run(OTHER, capture=at("z", layers=1, heads=2, positions=[3, 5]))
    run = tiny.run(PROMPT, capture="z", edits=interp.patch("z", 1, part, positions=[3, 5], heads=2))
    assert np.array_equal(run["z", 1][[3, 5], 2], other["z", 1][[3, 5], 2])
    with pytest.raises(interp.SiteError, match="position 4"):
        tiny.run(PROMPT, edits=interp.patch("z", 1, part, positions=[4], heads=2))
    with pytest.raises(interp.EditError, match="heads="):
        tiny.run(PROMPT, edits=interp.patch("z", 1, part, positions=[3]))


def test_patching_an_attention_pattern(tiny, plain, other):
    edit = interp.patch("attn_scores", 1, other, heads=0, positions=[-1])
    run = tiny.run(PROMPT, capture="attn_scores", edits=edit)
    assert np.array_equal(run["attn_scores", 1][0, -1], other["attn_scores", 1][0, -1])
    assert np.array_equal(run["attn_scores", 1][1:], plain["attn_scores", 1][1:])


def test_several_patches_at_once_all_count(tiny, plain, other):
    edits = [interp.patch("l_out", 0, other, positions=2), interp.patch("mlp_out", 2, other, positions=3)]
    run = tiny.run(PROMPT, capture=("l_out", "mlp_out"), edits=edits)
    assert np.array_equal(run["l_out", 0][2], other["l_out", 0][2])
    assert np.array_equal(run["mlp_out", 2][3], other["mlp_out", 2][3])


def test_values_for_each_position_survive_a_prompt_of_several_batches(tiny):
    """A prompt of more tokens than a ubatch is computed in pieces, each with rows of its own."""
    with interp.Model(models.tiny("llama"), n_ctx=1200, kv_type="f32", flash_attn=False, n_threads=1) as model:
        tokens = np.random.default_rng(0).integers(100, 40000, 1100).tolist()
        plain = model.run(tokens, capture=at("l_out", layers=1), logits="last")
        edited = model.run(tokens, capture=at("l_out", layers=1), logits="last", edits=interp.patch("l_out", 1, plain))
        assert np.array_equal(plain.logits, edited.logits)
        shifted = interp.add(at("l_out", layers=1), np.arange(1100, dtype=np.float32)[:, None] * np.ones(64, np.float32))
        found = model.run(tokens, capture=at("l_out", layers=1), logits="last", edits=shifted)["l_out", 1]
        assert np.allclose(found - plain["l_out", 1], np.arange(1100)[:, None], atol=1e-3)


def test_values_of_the_prompt_leave_what_is_generated_alone(tiny, plain):
    n = len(plain.tokens)
    edits = interp.scale("l_out-1", np.repeat(np.linspace(0.5, 1.5, n, dtype=np.float32)[:, None], 64, axis=1))
    generation = tiny.generate(PROMPT, max_tokens=4, capture="l_out", edits=edits)
    expected = plain["l_out", 1] * np.linspace(0.5, 1.5, n, dtype=np.float32)[:, None]
    assert np.allclose(generation.run["l_out", 1][:n], expected, atol=1e-5)
    assert len(generation.run["l_out", 1]) == n + 3


# steering and directions


def test_steering_adds_the_direction(tiny, plain, direction):
    edit = interp.steer("resid_post", 1, direction, coef=-2.0, positions=[0, 3])
    found = tiny.run(PROMPT, capture="l_out", edits=edit)["l_out", 1]
    assert np.allclose(found[[0, 3]], plain["l_out", 1][[0, 3]] - 2 * direction, atol=1e-5)
    assert np.array_equal(found[[1, 2]], plain["l_out", 1][[1, 2]])


def test_nothing_is_left_along_a_direction_that_was_projected_out(tiny, plain, direction, rng):
    found = tiny.run(PROMPT, capture="l_out", edits=interp.project_out("l_out", [1, 2], direction))["l_out", 1]
    unit = direction / np.linalg.norm(direction)
    assert np.abs(found @ unit).max() < 1e-5 * np.abs(plain["l_out", 1] @ unit).max() + 1e-5
    assert np.allclose(found, plain["l_out", 1] - np.outer(plain["l_out", 1] @ unit, unit), atol=1e-5)
    plane = rng.normal(size=(2, 64))
    found = tiny.run(PROMPT, capture="l_out", edits=interp.project_out("l_out", 1, plane))["l_out", 1]
    assert np.abs(found @ plane.T).max() < 1e-4


# knockout


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize("flash", [False, True])
def test_a_knocked_out_edge_carries_nothing_and_the_rest_is_renormalised(arch, flash):
    with interp.Model(models.tiny(arch), n_ctx=256, flash_attn=flash, n_threads=1) as model:
        plain = model.run(PROMPT, capture="attn_scores")["attn_scores", 1]
        edit = interp.knockout(1, queries=[-1, 5], keys=[0, 2], heads=[1, 3])
        found = model.run(PROMPT, capture="attn_scores", edits=edit)["attn_scores", 1]
        expected = plain.copy()
        for query in (5, plain.shape[1] - 1):
            for head in (1, 3):
                expected[head, query, [0, 2]] = 0
                expected[head, query] /= expected[head, query].sum()
        assert np.allclose(found, expected, atol=2e-3 if flash else 1e-5)
        assert not found[[1, 3]][:, [5, -1]][..., [0, 2]].any()


def test_a_knockout_holds_for_what_is_generated(tiny):
    n = len(tiny.tokens(PROMPT))
    edit = interp.knockout(2, queries="generated", keys=[1, 4])
    scores = tiny.generate(PROMPT, max_tokens=5, capture="attn_scores", edits=edit).run["attn_scores", 2]
    assert not scores[:, n:, [1, 4]].any() and scores[:, :n, 1].any()
    assert np.allclose(scores.sum(-1), 1.0, atol=1e-5)


# the host


def test_a_function_on_the_host_does_what_an_expression_does(tiny, direction):
    seen = []

    def fn(x: np.ndarray) -> np.ndarray:
        seen.append(x.shape)
        return x + 4.0 * direction

    host = tiny.generate(PROMPT, max_tokens=3, capture="l_out", edits=interp.edit_host(at("l_out", layers=1, positions="generated"), fn))
    graph = tiny.generate(PROMPT, max_tokens=3, capture="l_out", edits=interp.steer("l_out", 1, direction, 4.0, positions="generated"))
    assert np.allclose(host.run["l_out", 1], graph.run["l_out", 1], atol=1e-5) and host.tokens == graph.tokens
    assert seen == [(len(tiny.tokens(PROMPT)), 64), (1, 64), (1, 64)], "called at every step"


def test_two_functions_on_the_host_with_two_threads():
    with interp.Model(models.tiny("llama"), n_ctx=256, n_threads=2) as model:
        plain = model.run(PROMPT, capture="z")["z", 1]
        edits = [interp.edit_host("z-1", lambda x: x * 2), interp.edit_host(at("z", layers=1, heads=0), lambda x: x + 1)]
        found = model.run(PROMPT, capture="z", edits=edits)["z", 1]
        assert np.allclose(found[:, 0], plain[:, 0] * 2 + 1, atol=1e-5) and np.allclose(found[:, 1:], plain[:, 1:] * 2, atol=1e-5)
