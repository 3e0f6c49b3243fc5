"""Files: runs and arrays survive them, other software reads them, and no file, however damaged, does more than that."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest

import interp
import models
from conftest import PROMPT
from interp import files

SUFFIXES = (".safetensors", ".npz")

both = pytest.mark.parametrize("suffix", SUFFIXES)


@pytest.fixture(scope="module")
def run(tiny) -> interp.Run:
    capture = [
        "l_out", "Qcur-1#0", interp.at("attn_scores", layers=[1, 2], heads=[3, 1], queries=[-1, 0]),
        interp.at("z", layers=2, heads=[0, 2], positions="last"), "final_norm",
    ]
    return tiny.run(PROMPT, capture=capture)


@pytest.fixture
def saved(run, tmp_path) -> dict[str, Path]:
    return {suffix: run.save(tmp_path / f"run{suffix}") for suffix in SUFFIXES}


def same(a: interp.Run, b: interp.Run) -> bool:
    keys = a.keys == b.keys and all(np.array_equal(a._arrays[key], b._arrays[key]) for key in a.keys)
    logits = a.logits is b.logits if a.logits is None or b.logits is None else np.array_equal(a.logits, b.logits)
    told = (a.tokens, a.pieces, a.info, a._parts, a._labels) == (b.tokens, b.pieces, b.info, b._parts, b._labels)
    return keys and logits and told


# What a run holds


def test_a_run_knows_its_axes_heads_and_positions(run, tiny):
    n = len(run.tokens)
    assert run.axes("l_out") == ("n_tokens", "n_embd") and run.axes("z", 2) == ("n_tokens", "n_head", "d_head")
    assert run.heads("l_out", 0) is None and run.positions("l_out", 0) == list(range(n))
    assert run.heads("attn_scores", 1) == [1, 3] and run.positions("attn_scores") == [0, n - 1]
    assert run.heads("z") == [0, 2] and run.positions("z", 2) == [n - 1]
    assert run.positions("resid_pre", 1) == list(range(n)) and run.positions("final_norm") == list(range(n))
    assert run.prompt == PROMPT and tiny.run(run.tokens).prompt is None
    with pytest.raises(interp.SiteError, match="Captured: "):
        run.axes("ffn_out")
    mixed = tiny.run(PROMPT, capture=[interp.at("l_out", layers=0), interp.at("l_out", layers=1, positions=0)])
    with pytest.raises(interp.SiteError, match="name a layer"):
        mixed.positions("l_out")
    assert mixed.positions("l_out", 1) == [0]


def test_positions_of_every_kind_name_the_rows(tiny):
    capture = [interp.at("l_out", positions="generated"), interp.at("z", positions="last")]
    done = tiny.generate(PROMPT, 4, capture=capture)
    run, n = done.run, len(tiny.tokens(PROMPT))
    assert run.positions("l_out", 3) == list(range(n, len(run.tokens))) and len(run["l_out", 3]) == len(run.tokens) - n
    assert run.positions("z") == [n - 1] and run.prompt == PROMPT
    none = tiny.run(PROMPT, capture=interp.at("l_out", layers=1, positions="generated"))
    assert none.positions("l_out") == [] and none["l_out", 1].shape == (0, tiny.n_embd)
    rest = tiny.resume(tiny.run(PROMPT, capture="l_out")["l_out", 1], 2, PROMPT, capture="l_out")
    assert rest.positions("l_out", 2) == list(range(n)) and rest.prompt == PROMPT


# Runs and their files


@both
def test_a_run_survives_its_file(run, saved, suffix, tmp_path):
    again = interp.Run.load(saved[suffix])
    assert same(again, run) and again.model is None
    assert np.array_equal(again["resid_post", -1], run["l_out", -1])
    assert again["Qcur-1#0"].dtype == np.float32 and again.layers("attn_scores") == [1, 2]
    assert again.heads("attn_scores", 1) == [1, 3] and again.prompt == PROMPT
    assert same(interp.Run.load(again.save(tmp_path / f"again{suffix}")), run)


@both
def test_runs_without_logits_captures_or_rows_survive_too(tiny, tmp_path, suffix):
    path = tmp_path / f"run{suffix}"
    for run in (
        tiny.run(PROMPT),
        tiny.run([5], capture="attn_scores", logits="last"),
        tiny.run(PROMPT, capture="l_out", stop_after=1),
        tiny.run("a \0 b\n\"ü中\0", capture=interp.at("attn_scores", queries="generated")),
    ):
        assert same(interp.Run.load(run.save(path)), run)


def test_plain_safetensors_reads_arrays_and_description(run, saved):
    from safetensors import safe_open

    with safe_open(str(saved[".safetensors"]), framework="numpy") as file:
        assert np.array_equal(file.get_tensor("l_out-3#0"), run["l_out", 3])
        assert np.array_equal(file.get_tensor("logits"), run.logits)
        told = file.metadata()
    assert told["arch"] == "llama" and told["prompt"] == PROMPT and told["n_layer"] == "4" and told["n_embd"] == "64"
    assert told["model"].startswith("tiny-llama") and told["format"] == "llama-interp run 1"
    assert re.fullmatch(r"llama-interp \d+\.\d+\.\d+", told["written_by"])
    assert json.loads(told["tokens"]) == run.tokens and json.loads(told["pieces"]) == run.pieces
    site = json.loads(told["sites"])["attn_scores-1#0"]
    assert site["axes"] == ["n_head", "n_query", "n_key"]
    assert site["heads"] == [1, 3] and site["positions"] == [0, len(run.tokens) - 1]
    assert json.loads(told["sites"])["l_out-0#0"]["positions"] == "all"


def test_plain_numpy_reads_arrays_and_description(run, saved):
    with np.load(saved[".npz"]) as file:
        assert np.array_equal(file["l_out-3#0"], run["l_out", 3])
        assert json.loads(file["metadata"].item())["prompt"] == PROMPT


# Writing


def test_a_place_that_cannot_be_written_is_named_with_the_next_step(run, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    for name, said in (
        ("missing/run.npz", "missing does not exist; create it"),
        ("file/run.safetensors", "file is a file, not a folder; choose"),
        ("folder.npz", "a folder has that name; choose"),
        ("run.bin", "must end in .safetensors or .npz"),
        ("run", "must end in"),
        ("n" * 300 + ".npz", "name"),
        ("a\0.npz", "is no path"),
    ):
        with pytest.raises(interp.FileError, match=re.escape(said)):
            run.save(tmp_path / name)
    for wrong in (None, 3, b"run.npz"):
        with pytest.raises(interp.FileError, match="is no path"):
            run.save(wrong)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.npz"]


@both
def test_a_failure_in_writing_keeps_the_old_file(run, saved, suffix, tmp_path, monkeypatch):
    import safetensors.numpy

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = saved[suffix].read_bytes()
    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(interp.FileError, match="No space left on device; free some space"):
        run.save(saved[suffix])
    assert saved[suffix].read_bytes() == before and len(os.listdir(tmp_path)) == 2


@both
@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_file_is_as_readable_as_the_umask_allows(run, tmp_path, suffix):
    before = os.umask(0o027)
    try:
        path = run.save(tmp_path / f"run{suffix}")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


# Damage


@both
def test_a_file_that_is_no_run_is_refused(saved, suffix, tmp_path):
    def refused(content: bytes | None, said: str, name: str = "x") -> None:
        path = tmp_path / f"{name}{suffix}"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(interp.FileError, match=said) as caught:
            interp.Run.load(path)
        assert str(path) in str(caught.value)

    other = saved[SUFFIXES[suffix == ".safetensors"]]
    refused(None, "no such file", "missing")
    refused(b"", "is empty")
    refused(b"no such thing", "copied whole")
    refused(other.read_bytes(), f"begins like an? {re.escape(other.suffix)} file")
    refused(b"GGUF" + bytes(99), "begins like a GGUF file")
    foreign = tmp_path / f"foreign{suffix}"
    with foreign.open("wb") as file:
        if suffix == ".npz":
            np.savez(file, a=np.zeros(3))
        else:
            from safetensors.numpy import save

            file.write(save({"a": np.zeros(3)}))
    refused(None, "holds no run of this package", "foreign")
    for path in (tmp_path, models.default_gguf(), tmp_path / "x.txt"):
        with pytest.raises(interp.FileError):
            interp.Run.load(path)


@both
def test_a_damaged_file_gives_the_same_run_or_a_file_error(run, saved, suffix, tmp_path):
    whole, path = saved[suffix].read_bytes(), tmp_path / f"damaged{suffix}"
    draw, refused = random.Random(0), 0
    # most of a file is numbers, so that half of the damage goes where the descriptions are
    edges = [0, len(whole) - 4000] if suffix == ".npz" else [0, 0]
    for trial in range(240):
        content = bytearray(whole)
        if trial % 3 == 0:
            del content[draw.randrange(len(content)) :]
        elif trial % 3 == 1:
            for _ in range(draw.choice([1, 1, 2, 30])):
                start = draw.choice([*edges, None])
                spot = draw.randrange(len(content)) if start is None else start + draw.randrange(4000)
                content[spot] ^= 1 << draw.randrange(8)
        else:
            a, b = sorted(draw.randrange(len(content)) for _ in "ab")
            content[a:b] = draw.choice([b"", bytes(b - a), draw.randbytes(min(b - a, 64)), content[a:b] * 2])
        path.write_bytes(content)
        try:
            again = interp.Run.load(path)
        except interp.FileError as err:
            refused += 1
            assert str(path) in str(err)
        else:
            assert same(again, run), f"trial {trial} gave another run"
    assert refused > 200


def test_descriptions_that_do_not_fit_the_arrays_are_refused(run, tmp_path):
    path = tmp_path / "x.npz"
    texts = run._texts()
    sites = json.loads(texts["sites"])
    arrays = {str(key): array for key, array in run._arrays.items()}
    first = next(iter(sites))
    for wrong in (
        {**texts, "tokens": "[1]"}, {**texts, "tokens": "7"}, {**texts, "tokens": "[[]]"}, {**texts, "n_layer": "x"},
        {**texts, "sites": "{"}, {**texts, "sites": "[]"}, {k: v for k, v in texts.items() if k != "pieces"},
        *({**texts, "sites": json.dumps({**sites, first: {**sites[first], **change}})} for change in (
            {"axes": ["n_tokens"]}, {"positions": [0]}, {"heads": [0]},
            {"key": ["none", 0, 0]}, {"key": 3}, {"names": [1]},
        )),
    ):
        files.write_arrays(path, arrays, wrong)
        with pytest.raises(interp.FileError, match="cannot read"):
            interp.Run.load(path)


# One array


@both
def test_one_array_of_a_run_is_chosen_by_site_and_layer(run, saved, suffix):
    path = saved[suffix]
    for site, layer in (
        ("l_out", 2), ("resid_post", -1), ("blocks.2.hook_resid_pre", None), ("Qcur-1#0", None), ("z", None),
    ):
        wanted = run[site] if layer is None else run[site, layer]
        found = interp.load_array(path, site=site, layer=layer)
        assert np.array_equal(found, wanted if wanted.ndim == found.ndim else wanted[0]), site
    assert np.array_equal(interp.load_array(path, site="logits"), run.logits)
    assert interp.load_array(path, site="l_out", layer=0, shape=(-1, 64)).shape == run["l_out", 0].shape
    held = "Qcur#0 in layer 1; attn_scores in layers 1-2; kqv_out in layer 2; l_out in layers 0-3; result_norm"
    for choice, said in (
        ({}, "say which"),
        ({"site": "l_out"}, "say which layer of 'l_out'"),
        ({"site": "l_out", "layer": 9}, "'l_out' in layer 9 is not among them"),
        ({"site": "l_ou"}, "'l_ou' is not among them"),
        ({"layer": 7}, "which array in layer 7 is not among them"),
    ):
        with pytest.raises(interp.FileError, match=re.escape(said)) as caught:
            interp.load_array(path, **choice)
        assert held in str(caught.value)
    with pytest.raises(interp.FileError, match=r"shape \(10, 64\), not \(9, 64\)"):
        interp.load_array(path, site="l_out", layer=0, shape=(9, 64))


@both
def test_an_array_survives_its_file_alone(run, tmp_path, suffix):
    path = tmp_path / f"one{suffix}"
    mean = run["l_out"].mean(0, dtype=np.float64)
    assert interp.save_array(path, mean, site="l_out", layer=2, axes=("n_tokens", "n_embd")) == path
    assert np.array_equal(interp.load_array(path), mean.astype(np.float32))
    assert np.array_equal(interp.load_array(path, site="l_out", layer=2), mean.astype(np.float32))
    interp.save_array(path, run["z", 2] * 2, site="z", layer=2, run=run)
    again = interp.Run.load(path)
    assert again.heads("z") == [0, 2] and again.positions("z") == [len(run.tokens) - 1] and again.tokens == run.tokens
    interp.save_array(path, mean[:1], site="mine", layer=-1, axes=("n_tokens", "n_embd"), positions=4, run=run)
    assert interp.Run.load(path).positions("mine") == [4]
    assert np.array_equal(interp.load_array(path, site="mine"), mean[:1].astype("f4"))
    interp.save_array(path, run["l_out", -1], site="resid_post", layer=-1, run=run)
    assert interp.Run.load(path).layers("l_out") == [3]
    for wrong, said in (
        ({"axes": ("n_tokens",)}, "axes"), ({}, "what does each axis"),
        ({"axes": ("a", "b"), "positions": [0]}, "positions"),
        ({"axes": ("n_tokens", "n_embd"), "positions": "x"}, "give integers"), ({"layer": None}, "layer=None"),
    ):
        with pytest.raises(interp.SiteError, match=said):
            interp.save_array(path, mean, **{"site": "l_out", "layer": 2, **wrong})


def test_arrays_of_other_software_are_read(tmp_path, rng):
    from safetensors.numpy import save_file

    a, b = rng.normal(size=(3, 4)), rng.normal(size=5).astype(np.float32)
    np.save(tmp_path / "a.npy", a)
    assert np.array_equal(interp.load_array(tmp_path / "a.npy", shape=(-1, 4)), a)
    np.savez(tmp_path / "a.npz", a=a)
    assert np.array_equal(interp.load_array(tmp_path / "a.npz"), a)
    save_file({"h-0": a, "h-1": b}, tmp_path / "ab.safetensors")
    assert np.array_equal(interp.load_array(tmp_path / "ab.safetensors", site="h", layer=1), b)
    with pytest.raises(interp.FileError, match="holds h-0, h-1; say which"):
        interp.load_array(tmp_path / "ab.safetensors")
    np.save(tmp_path / "object.npy", np.array([{}]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-3])
    for name in ("object.npy", "cut.npy"):
        with pytest.raises(interp.FileError, match="cannot read"):
            interp.load_array(tmp_path / name)
    with pytest.raises(interp.FileError, match="without a name"):
        interp.load_array(tmp_path / "a.npy", site="a")


def test_a_dump_without_a_header_needs_its_shape(tmp_path, run):
    path, wanted = tmp_path / "l_out-2.bin", run["l_out", 2]
    wanted.astype("<f4").tofile(path)
    for shape in ((10, 64), (-1, 64), (10, -1)):
        assert np.array_equal(interp.load_array(path, shape=shape), wanted)
    for shape, said in (
        (None, "give shape=(n_tokens, n_embd)"),
        ((9, 64), "holds 640 float32, which is not (9, 64). With 64 as the last length it is (10, 64)"),
        ((-1, 576), "No number of rows of 576 fits. Shapes that would: (10, 64), (5, 128), (2, 320), (1, 640)"),
        ((-1, 0), "holds 640 float32"),
        ((-1, -1), "one of them may be -1"),
        ("x", "give the length of every axis"),
        ((), "give the length of every axis"),
    ):
        with pytest.raises(interp.FileError, match=re.escape(said)):
            interp.load_array(path, shape=shape)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(interp.FileError, match="2559 bytes are no whole number of float32"):
        interp.load_array(path, shape=(-1, 64))
    for wrong in (tmp_path, tmp_path / "missing.bin"):
        with pytest.raises(interp.FileError, match="cannot read"):
            interp.load_array(wrong, shape=(-1, 64))
