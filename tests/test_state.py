"""A prefix is computed once, and what continues it is the end of the whole run; its files are refused when they do
not fit."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import interp
import models
import recipes
from interp import FileError, RunError, SiteError, at, files, program, state
from interp.edits import knockout
from recipes import Normal

PREFIX = "The Eiffel Tower is located in the"
REST = " city of Paris, which is"
OPTIONS = {"n_ctx": 256, "kv_type": "f32", "flash_attn": False, "n_threads": 1}


@pytest.fixture(params=["llama", "gpt2", "gemma2", "mixtral"], scope="module")
def each_tiny(request):
    with interp.Model(models.tiny(request.param), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as model:
        yield model


@pytest.fixture
def parts(tiny) -> tuple[list[int], list[int]]:
    return tiny.vocab.tokens(PREFIX, special=False), tiny.vocab.tokens(REST, special=False)


@pytest.fixture(autouse=True)
def no_prefix_stays(request):
    yield
    if "tiny" in request.fixturenames:
        request.getfixturevalue("tiny").prefix(None)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many tokens each decode runs."""
    counts: list[int] = []

    def counted(batch, lib, handle, real=program.Batch.run):
        counts.append(len(batch.token))
        return real(batch, lib, handle)

    monkeypatch.setattr(program.Batch, "run", counted)
    return counts


def close(a, b) -> bool:
    return np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


# // runs that continue a prefix


def test_a_run_that_continues_a_prefix_is_the_tail_of_the_whole(each_tiny):
    first, rest = each_tiny.vocab.tokens(PREFIX, special=False), each_tiny.vocab.tokens(REST, special=False)
    sites = ("l_out", "z", "attn_scores", "attn_logits")
    whole = each_tiny.run(first + rest, capture=sites)
    n = len(first)
    with each_tiny.prefix(first) as prefix:
        run = each_tiny.run(rest, capture=sites)
        assert prefix.tokens == first and prefix.n_tokens == n and prefix.text == PREFIX
        assert run.tokens == rest and run.n_prefix == n
        assert close(run.logits, whole.logits[n:])
        for site in ("l_out", "z"):
            assert close(run[site], whole[site][:, n:]), site
        for layer in range(each_tiny.n_layer):
            assert run["attn_scores", layer].shape == (each_tiny.n_head, len(rest), n + len(rest))
            assert np.allclose(run["attn_scores", layer], whole["attn_scores", layer][:, n:], atol=1e-5)
        # a text gets no begin token of its own
        assert each_tiny.run(REST).tokens == rest
    assert each_tiny.n_prefix == 0
    again = each_tiny.run(first + rest, capture=sites)
    assert np.array_equal(again.logits, whole.logits) and again.n_prefix == 0


def test_positions_count_from_the_end_of_the_prefix(tiny, parts, rng):
    first, rest = parts
    direction, n = rng.normal(size=tiny.n_embd).astype(np.float32), len(first)
    for chosen in ([0], [-1, 1], "last", None):
        moved = "last" if chosen == "last" else range(n, n + len(rest)) if chosen is None else [
            n + p if p >= 0 else p for p in chosen
        ]  # fmt: skip
        edits = [interp.add(at("l_out", 1, positions=chosen), direction)]
        whole = tiny.run(first + rest, capture="l_out", edits=[interp.add(at("l_out", 1, positions=moved), direction)])
        with tiny.prefix(first):
            run = tiny.run(rest, capture=[at("l_out", 2, positions=chosen), "l_out-3"], edits=edits)
        kept = whole["l_out", 2][n:] if chosen is None else whole["l_out", 2][[-1] if chosen == "last" else sorted(
            p % (n + len(rest)) for p in moved
        )]  # fmt: skip
        assert close(run.logits, whole.logits[n:]), chosen
        assert close(run["l_out", 2], kept), chosen
        assert run.positions("l_out", 3) == list(range(len(rest)))
        if chosen == [-1, 1]:
            assert run.positions("l_out", 2) == [1, len(rest) - 1]
    with tiny.prefix(first):
        with pytest.raises(SiteError, match=f"Position {len(rest)} is out of range: the prompt has {len(rest)}"):
            tiny.run(rest, capture=at("l_out", 1, positions=len(rest)))


def test_a_patch_with_rows_goes_to_the_new_tokens(tiny, parts):
    first, rest = parts
    n = len(first)
    other = tiny.run(first + rest[::-1], capture=("l_out", "attn_scores"))
    for site, row_axis in (("l_out", 0), ("attn_scores", 1)):
        rows = np.take(other[site, 1], range(n, n + len(rest)), axis=row_axis)
        edit = interp.replace(at(site, 1, positions=range(n, n + len(rest))), rows)
        whole = tiny.run(first + rest, edits=edit)
        with tiny.prefix(first):
            assert close(tiny.run(rest, edits=interp.replace(at(site, 1), rows)).logits, whole.logits[n:]), site
            edit = interp.replace(at(site, 1, positions=1), np.take(rows, [1], row_axis))
            once = tiny.run(rest, capture=site, edits=edit)
            assert np.allclose(np.take(once[site, 1], 1, row_axis), np.take(rows, 1, row_axis), atol=1e-6), site


def test_edges_between_new_tokens_can_be_cut(tiny, parts):
    first, rest = parts
    n = len(first)
    whole = tiny.run(first + rest, edits=knockout(1, [n + 2], [n, n + 1]))
    with tiny.prefix(first):
        run = tiny.run(rest, capture="attn_scores", edits=knockout(1, [2], [0, 1]))
        assert close(run.logits, whole.logits[n:])
        assert not run["attn_scores", 1][:, 2, n : n + 2].any() and run["attn_scores", 1][:, 2, :n].all()
        tiny.run(rest, edits=knockout(1, [0], [0]))  # it still sees the prefix
    with pytest.raises(interp.EditError, match="no key"):
        tiny.run(rest, edits=knockout(1, [0], [0]))


def test_a_generation_continues_the_prefix(tiny, parts):
    first, rest = parts
    whole = tiny.generate(first + rest, 6, capture="l_out")
    with tiny.prefix(first):
        made = tiny.generate(rest, 6, capture="l_out")
        stream = tiny.stream(rest, 6)
        assert "".join(stream) == made.text == whole.text
        assert made.tokens == whole.tokens and made.run.tokens == whole.run.tokens[len(first) :]
        assert close(made.run["l_out"], whole.run["l_out"][:, len(first) :])
        later = interp.scale(at("l_out", 2, positions="generated"), 0.0)
        edited = tiny.generate(rest, 3, capture="l_out", edits=later).run["l_out", 2]
        assert edited[: len(rest)].any(1).all() and not edited[len(rest) :].any()


def test_stopping_early_and_unembedding_work_under_a_prefix(tiny, parts):
    first, rest = parts
    plain = tiny.run(rest, capture="l_out")
    with tiny.prefix(first):
        run = tiny.run(rest, capture="l_out")
        stopped = tiny.run(rest, capture="l_out", stop_after=1)
        assert np.array_equal(stopped["l_out", 1], run["l_out", 1]) and stopped.logits is None
        assert np.array_equal(tiny.unembed(run["l_out", -1]), run.logits)
        assert np.array_equal(tiny.unembed(plain["l_out", -1]), plain.logits)
        many = np.tile(plain["l_out", -1], (60, 1))  # more rows than the context has room for
        assert np.array_equal(tiny.unembed(many)[-len(rest) :], plain.logits)
        assert np.array_equal(tiny.run(rest).logits, run.logits)
        with pytest.raises(RunError, match=r"prefix is in force.*End it first: model.prefix\(None\)"):
            tiny.resume(run["l_out", 1], 2, rest)
    assert np.array_equal(tiny.resume(plain["l_out", 1], 2, rest).logits, plain.logits)


def test_a_lens_reads_a_run_under_a_prefix(tiny, parts):
    first, rest = parts
    with tiny.prefix(first):
        lens = interp.logit_lens(tiny, rest)
        assert np.array_equal(lens.logits(-1), tiny.run(rest, capture="l_out").logits)


# // computed once


def test_the_prefix_is_not_decoded_again(tiny, parts, decoded):
    first, rest = parts
    prefix = tiny.prefix(first)
    assert len(first) in decoded
    decoded.clear()
    for _ in range(3):
        tiny.run(rest)
        tiny.run(rest, edits=interp.scale("l_out-0", 2.0))
        tiny.unembed(np.zeros((2, 64)))
    assert sum(decoded) == 6 * len(rest) + 3 * 2
    decoded.clear()
    tiny.generate(rest, 4)
    assert decoded == [len(rest), 1, 1, 1]
    prefix.close()


def test_edits_that_drive_values_to_infinity_leave_the_prefix_right(each_tiny):
    first, rest = each_tiny.vocab.tokens(PREFIX, special=False), each_tiny.vocab.tokens(REST, special=False)
    with each_tiny.prefix(first):
        expected = each_tiny.run(rest, capture="attn_scores")
        for _ in range(2):
            each_tiny.run(rest, edits=[interp.scale("l_out-0", 1e38), interp.edit("l_out-0", lambda x: x * 1e38)])
            with pytest.raises(RunError, match="not finite"):
                each_tiny.generate(rest, edits=interp.edit("l_out-0", lambda x: x * 1e38 * 1e38))
            found = each_tiny.run(rest, capture="attn_scores")
            assert np.array_equal(found.logits, expected.logits)
            assert np.array_equal(found["attn_scores"], expected["attn_scores"])


def test_failed_and_abandoned_runs_leave_the_prefix_right(tiny, parts):
    first, rest = parts
    with tiny.prefix(first):
        expected = tiny.run(rest).logits
        with pytest.raises(interp.EditError):
            tiny.run(rest, edits=interp.edit("l_out-1", lambda x: None))
        for _ in tiny.stream(rest, 5):
            break
        assert np.array_equal(tiny.run(rest).logits, expected)


def test_a_prefix_longer_than_a_sliding_window_keeps_every_key(tmp_path):
    """llama.cpp's states leave out the keys that the window hides, which would shift those that follow."""
    with interp.Model(models.tiny("gemma2"), n_ctx=128, kv_type="f32", flash_attn=False, n_threads=1) as model:
        assert recipes.WINDOW < 30
        first, rest = list(range(100, 130)), list(range(200, 206))
        whole = model.run(first + rest, capture="attn_scores")
        with model.prefix(first):
            for _ in range(2):
                run = model.run(rest, capture="attn_scores")
                assert close(run.logits, whole.logits[30:])
                assert np.allclose(run["attn_scores"], whole["attn_scores"][:, :, 30:], atol=1e-5)
                model.run(rest, edits=interp.scale("l_out-0", 1e38))
            path = model.save_state(tmp_path / "window.safetensors")
        with model.load_state(path):
            run = model.run(rest, capture="attn_scores")
            assert np.allclose(run["attn_scores"], whole["attn_scores"][:, :, 30:], atol=1e-5)


def recurrent():
    """A small random Mamba, whose memory can forget only all of it."""
    n_embd, inner, state_size, kernel, rank = 64, 128, 8, 4, 4
    block = {
        "attn_norm.weight": Normal((n_embd,), 0.1, 1.0), "ssm_in.weight": Normal((2 * inner, n_embd), 1 / 8),
        "ssm_conv1d.weight": Normal((inner, kernel), 0.5), "ssm_conv1d.bias": Normal((inner,), 0.1),
        "ssm_x.weight": Normal((rank + 2 * state_size, inner), 1 / 11), "ssm_dt.weight": Normal((inner, rank), 0.5),
        "ssm_dt.bias": Normal((inner,), 0.1), "ssm_a": Normal((inner, state_size), 0.1, -1.0),
        "ssm_d": Normal((inner,), 0.1, 1.0), "ssm_out.weight": Normal((n_embd, inner), 1 / 11),
    }  # fmt: skip
    tensors = {"token_embd.weight": Normal((recipes.N_VOCAB, n_embd), 0.3)}
    tensors |= {"output_norm.weight": Normal((n_embd,), 0.1, 1.0)}
    tensors |= {f"blk.{layer}.{name}": normal for layer in range(3) for name, normal in block.items()}
    metadata = {
        "context_length": 256, "embedding_length": n_embd, "feed_forward_length": 0, "block_count": 3,
        "attention.head_count": 0, "attention.layer_norm_rms_epsilon": 1e-5, "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner, "ssm.state_size": state_size, "ssm.time_step_rank": rank,
    }  # fmt: skip
    made, source = recipes.Tiny("mamba", metadata, tensors), models.default_gguf()
    content = {**made.content(), "vocabulary": models.sha256_of(source)}
    return models.cached("tiny-mamba", content, lambda path: made.write(path, models._vocabulary(source)))


def test_a_recurrent_memory_is_put_back_after_every_run(parts, tmp_path, decoded):
    first, rest = parts
    with interp.Model(recurrent(), **OPTIONS) as model:
        whole, made = model.run(first + rest, capture="l_out"), model.generate(first + rest, 4)
        with model.prefix(first):
            decoded.clear()
            for _ in range(2):
                run = model.run(rest, capture="l_out")
                assert close(run.logits, whole.logits[len(first) :])
                assert model.generate(rest, 4).tokens == made.tokens
                assert np.array_equal(model.unembed(run["l_out", -1]), run.logits)
                model.run(rest, edits=interp.scale("l_out-0", 1e38))
            assert max(decoded) == len(rest)
            # more nodes than the graph was made for
            neutral = interp.edit("l_out-1", lambda x: (x * 2.0 + 1.0) * 0.5 - 0.5)
            assert close(model.run(rest, capture="l_out", edits=[neutral] * 1500).logits, run.logits)
            path = model.save_state(tmp_path / "mamba.safetensors")
        with model.load_state(path):
            assert np.array_equal(model.run(rest).logits, run.logits)


# // its life


def test_a_prefix_ends_however_it_is_ended(tiny, parts):
    first, rest = parts
    expected = tiny.run(rest).logits
    for end in (lambda p: p.close(), lambda p: tiny.prefix(None), lambda p: p.__exit__(None, None, None)):
        prefix = tiny.prefix(first)
        assert prefix.is_in_force and "in force" in repr(prefix)
        end(prefix)
        assert not prefix.is_in_force
        assert np.array_equal(tiny.run(rest).logits, expected)
    with pytest.raises(KeyError), tiny.prefix(first):
        raise KeyError
    assert tiny.n_prefix == 0


def test_a_new_prefix_takes_the_place_of_the_old(tiny, parts):
    first, rest = parts
    old, new = tiny.prefix(rest), tiny.prefix(first)
    old.close()
    assert new.is_in_force and tiny.n_prefix == len(first)
    assert close(tiny.run(rest).logits, tiny_tail(tiny, first, rest))


def tiny_tail(tiny, first, rest):
    tiny.prefix(None)
    return tiny.run(first + rest).logits[len(first) :]


def test_a_prefix_that_leaves_no_room_is_refused(tiny):
    with interp.Model(tiny.path, n_ctx=32, n_threads=1) as model:
        for n in (32, 40):
            with pytest.raises(RunError, match=f"prefix has {n} tokens.*n_ctx={n + 1}"):
                model.prefix([5] * n)
        with model.prefix([5] * 30):
            with pytest.raises(RunError, match="3 tokens after a prefix of 30.*n_ctx=33"):
                model.run([5] * 3)
            assert len(model.generate([5], 9).tokens) == 2
        with pytest.raises(RunError, match="prefix is empty"):
            model.prefix([])
        with pytest.raises(RunError, match="not int"):
            model.prefix(3)


def test_attention_of_a_run_under_a_prefix_is_not_drawn_with_wrong_labels(tiny, parts, tmp_path):
    with tiny.prefix(parts[0]):
        maps = interp.attention(tiny, parts[1])
    with pytest.raises(SiteError, match="continues a prefix"):
        maps.plot(tmp_path / "a.png", layer=0, head=0)


def test_a_run_remembers_the_prefix_in_its_file(tiny, parts, tmp_path):
    first, rest = parts
    with tiny.prefix(first):
        tiny.run(rest, capture="attn_scores").save(tmp_path / "run.safetensors")
    assert interp.Run.load(tmp_path / "run.safetensors").n_prefix == len(first)


# // files


@pytest.fixture
def saved(tiny, parts, tmp_path):
    with tiny.prefix(parts[0]):
        expected = tiny.run(parts[1], capture="attn_scores")
        return tiny.save_state(tmp_path / "prefix.safetensors"), expected


def test_a_second_model_goes_on_where_the_first_one_was(tiny, parts, saved, decoded):
    path, expected = saved
    with interp.Model(tiny.path, **OPTIONS) as model:
        with model.load_state(path) as prefix:
            assert prefix.tokens == parts[0] and prefix.text == PREFIX
            for _ in range(2):
                run = model.run(parts[1], capture="attn_scores")
                assert np.array_equal(run.logits, expected.logits)
                assert np.array_equal(run["attn_scores"], expected["attn_scores"])
                model.run(parts[1], edits=interp.scale("l_out-0", 1e38))
            assert sum(decoded) == 4 * len(parts[1])
        assert model.n_prefix == 0


def test_a_state_is_legible(saved, tiny, parts):
    with files.opened(saved[0]) as file:
        assert file.format == state.FORMAT and file.names == ["state"] and file["state"].dtype == np.uint8
        assert json.loads(file.texts["tokens"]) == parts[0] and file.texts["text"] == PREFIX
        assert file.texts["architecture"] == "llama" and file.texts["kv_type"] == "f32"
        assert file.texts["file_size"] == str(tiny.path.stat().st_size)


def test_without_a_prefix_there_is_nothing_to_save(tiny, tmp_path):
    with pytest.raises(RunError, match="No prefix is in force.*model.prefix"):
        tiny.save_state(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arch, options, what",
    [
        ("gpt2", {}, "its architecture is llama, here gpt2"),
        ("llama", {"kv_type": "f16"}, "kv_type is f32, here f16"),
        ("llama", {"flash_attn": True}, "flash_attn is off, here on"),
    ],
)
def test_a_state_of_another_model_is_refused(saved, arch, options, what):
    with interp.Model(models.tiny(arch), **OPTIONS | options) as model:
        with pytest.raises(FileError, match=f"{what}.*compute the prefix again"):
            model.load_state(saved[0])
        assert model.n_prefix == 0
        model.run([5, 6])


def test_a_state_of_another_file_or_build_is_refused(saved, tiny, tmp_path, monkeypatch):
    other = tmp_path / "other.gguf"
    shutil.copy(tiny.path, other)
    with other.open("r+b") as file:
        file.seek(-64, 2)
        file.write(b"\1" * 64)
    with interp.Model(other, **OPTIONS) as model, pytest.raises(FileError, match="first and last MiB is"):
        model.load_state(saved[0])
    monkeypatch.setattr(state, "_commit", lambda library: "abc")
    with pytest.raises(FileError, match="another build of llama.cpp: its commit is [0-9a-f]+, here abc"):
        tiny.load_state(saved[0])


def test_a_state_longer_than_the_context_is_refused(saved, parts):
    with interp.Model(models.tiny("llama"), **OPTIONS | {"n_ctx": len(parts[0])}) as model:
        with pytest.raises(RunError, match=f"n_ctx={len(parts[0]) + 1}"):
            model.load_state(saved[0])


def test_files_that_are_no_state_are_refused(saved, tiny, parts, tmp_path):
    whole = saved[0].read_bytes()
    broken = tmp_path / "broken.safetensors"
    expected = tiny.run(parts[1]).logits
    run = tiny.run(parts[1], capture="l_out")
    for content, what in (
        (None, "no such file"), (b"", "empty"), (whole[: len(whole) // 2], "copied whole"),
        (whole[:100], "copied whole"),
        (whole[:-40] + b"\0" * 40, "changed"), (b"GGUF" * 100, "cannot read"),
    ):  # fmt: skip
        broken.unlink(missing_ok=True)
        if content is not None:
            broken.write_bytes(content)
        with pytest.raises(FileError, match=what):
            tiny.load_state(broken)
    run.save(broken)
    with pytest.raises(FileError, match="no state that this package saved"):
        tiny.load_state(broken)
    for path in (tmp_path, "a.npz", 3):
        with pytest.raises(FileError, match="safetensors|no path"):
            tiny.load_state(path)
    assert tiny.n_prefix == 0
    assert np.array_equal(tiny.run(parts[1]).logits, expected)


def test_a_refused_state_leaves_the_prefix_in_force(saved, tiny, parts, tmp_path):
    with tiny.prefix(parts[1]) as prefix:
        with pytest.raises(FileError):
            tiny.load_state(tmp_path / "missing.safetensors")
        assert prefix.is_in_force


def test_nothing_half_written_is_left(saved, tiny, parts, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    with tiny.prefix(parts[0]):
        refused = {"folder.safetensors": "folder", "no/a.safetensors": "does not exist", "a.npz": "must end in"}
        for name, what in refused.items():
            with pytest.raises(FileError, match=what):
                tiny.save_state(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.safetensors", "prefix.safetensors"]
