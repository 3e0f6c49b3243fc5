"""Control vectors: made from runs, steering as llama.cpp's own do, in files that llama.cpp reads."""

from __future__ import annotations

import random
import re

import gguf
import numpy as np
import pytest

import interp
import models
import unpatched
from conftest import PROMPT

LAYERS = (1, 2, 3)


@pytest.fixture
def vector(rng) -> interp.ControlVector:
    return interp.ControlVector({layer: rng.normal(size=64) for layer in (3, 1)}, "llama")


def equal(a: interp.ControlVector, b: interp.ControlVector) -> bool:
    same = a.layers == b.layers and a.model_hint == b.model_hint
    return same and all(np.array_equal(a.directions[layer], b.directions[layer]) for layer in a.layers)


# Steering


def test_steering_adds_the_directions_to_the_residual_stream(tiny, vector):
    plain, steered = (tiny.run(PROMPT, capture="l_out", edits=edits) for edits in ((), vector.steer(2.0, layers=1)))
    assert np.array_equal(steered["l_out", 1], plain["l_out", 1] + np.float32(2) * vector.directions[1])
    assert np.array_equal(steered["l_out", 0], plain["l_out", 0])
    last = tiny.run(PROMPT, capture="l_out", edits=vector.steer(-1.0, positions=-1))
    assert np.array_equal(last["l_out", 1][:-1], plain["l_out", 1][:-1])
    assert np.array_equal(last["l_out", 1][-1], plain["l_out", 1][-1] - vector.directions[1])
    assert len(vector.steer()) == 2 and not np.allclose(tiny.run(PROMPT, edits=vector.steer()).logits, plain.logits)


@pytest.mark.parametrize("strength", [1.0, -2.5])
def test_llama_cpp_reads_our_file_and_steers_the_same(tmp_path, vector, strength):
    folder = unpatched.needed()
    path = vector.save(tmp_path / "v.gguf")
    with interp.Model(models.tiny("llama"), n_ctx=256, flash_attn=False, n_threads=1) as model:
        vector.check(model)
        run = model.run(PROMPT, edits=vector.steer(strength))
        plain = model.run(PROMPT)
    reference = unpatched.logits(models.tiny("llama"), run.tokens, folder, tmp_path, False, (path, strength))
    assert np.abs(run.logits - reference).max() < 1e-4
    assert np.abs(plain.logits - reference).max() > 1e-2


def test_wrong_layers_coefficients_and_models_are_refused(tiny, vector, model):
    with pytest.raises(interp.SiteError, match="No direction for layer 2; there are: 1, 3"):
        vector.steer(layers=[1, 2])
    for layers in (1.5, "1", [1.5], [None]):
        with pytest.raises(interp.SiteError):
            vector.steer(layers=layers)
    for coef in (float("nan"), "1", None, True):
        with pytest.raises(interp.EditError, match="finite number"):
            vector.steer(coef)
    vector.check(tiny)
    with pytest.raises(interp.ModelError, match="64 wide, the model 576. It was made for llama"):
        vector.check(model)
    with pytest.raises(interp.ModelError, match="steers layer 4; the model has layers 0 to 3"):
        interp.ControlVector({4: np.ones(64)}).check(tiny)


def test_directions_that_are_none_are_refused():
    for directions, said in (
        ({}, "needs a direction"), ([1.0], "needs a direction"), ({1: [1, 2], 2: [1]}, "different widths: 1, 2"),
        ({1: [[1.0]]}, "shape (1, 1)"), ({1: []}, "shape (0,)"), ({1: [np.inf]}, "not finite"),
        ({1: "x"}, "no array of numbers"),
    ):
        with pytest.raises(interp.EditError, match=re.escape(said)):
            interp.ControlVector(directions)
    for layer, said in ((0, "have no layer 0"), (-1, "from 1 on"), ("l_out", "from 1 on"), (True, "from 1 on")):
        with pytest.raises(interp.SiteError, match=said):
            interp.ControlVector({layer: [1.0]})


# From runs


def test_a_direction_is_the_difference_of_means(tiny):
    positive = [tiny.run(text, capture="l_out") for text in ("good day", "very fine day")]
    negative = [tiny.run("bad day", capture="l_out")]
    last = interp.ControlVector.from_runs(positive, negative)
    assert last.layers == list(LAYERS) and last.n_embd == 64 and last.model_hint == "llama"
    for layer in LAYERS:
        rows = [run["l_out", layer] for run in (*positive, *negative)]
        assert np.allclose(last.directions[layer], (rows[0][-1] + rows[1][-1]) / 2 - rows[2][-1], atol=1e-6)
    mean = interp.ControlVector.from_runs(positive[1], negative[0], layers=2, position="mean")
    assert np.allclose(mean.directions[2], positive[1]["l_out", 2].mean(0) - negative[0]["l_out", 2].mean(0), atol=1e-6)
    first = interp.ControlVector.from_runs(positive[1], positive[0], "resid_post", [3, 1], position=-2, normalize=True)
    assert first.layers == [1, 3] and np.isclose(np.linalg.norm(first.directions[3]), 1.0)


def test_positions_are_found_where_only_some_were_captured(tiny, tmp_path):
    whole = tiny.run(PROMPT, capture="l_out")
    part = tiny.run(PROMPT, capture=interp.at("l_out", positions=[2, -1]))
    part = interp.Run.load(part.save(tmp_path / "part.safetensors"))
    other = tiny.run("a bad day it was", capture="l_out")
    for position in ("last", -1, 2):
        assert equal(*(interp.ControlVector.from_runs(run, other, position=position) for run in (whole, part)))
    two = interp.ControlVector.from_runs(part, whole, position=2)
    assert not any(direction.any() for direction in two.directions.values())
    with pytest.raises(interp.SiteError, match="Position 1 was not captured"):
        interp.ControlVector.from_runs(part, whole, position=1)


def test_runs_that_give_no_direction_are_refused(tiny):
    run, low = tiny.run(PROMPT, capture=("l_out", "z")), tiny.run(PROMPT, capture="l_out", stop_after=0)
    make = interp.ControlVector.from_runs
    for positive, error, said, options in (
        ([], interp.RunError, "positive", {}),
        ("x", interp.RunError, "positive", {}),
        (None, interp.RunError, "positive", {}),
        (run, interp.SiteError, "give an integer", {"layers": 1.5}),
        (low, interp.SiteError, "from 1 on", {}),
        (low, interp.SiteError, "not in layer 2", {"layers": 2}),
        (run, interp.SiteError, "no layer 0", {"layers": 0}),
        (run, interp.SiteError, "in common", {"site": "ffn_out"}),
        (run, interp.EditError, "a direction comes from", {"site": "z"}),
        (run, interp.SiteError, "Position 99", {"position": 99}),
        (run, interp.SiteError, 'give "last"', {"position": "first"}),
        (run, interp.RunError, "are the same", {"normalize": True}),
    ):
        with pytest.raises(error, match=said):
            make(positive, run, **options)


# Files


def test_gguf_py_reads_our_file(vector, tmp_path):
    path = vector.save(tmp_path / "v.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert {t.name: t.data.shape for t in reader.tensors} == {"direction.1": (64,), "direction.3": (64,)}
    assert equal(interp.ControlVector.load(path), vector) and [p.name for p in tmp_path.iterdir()] == ["v.gguf"]
    bare = interp.ControlVector({5: [1.0, 2.0]})
    assert equal(interp.ControlVector.load(bare.save(path)), bare)


def test_files_of_other_software_are_read_as_llama_cpp_does(tmp_path):
    def write(tensors: dict[str, np.ndarray], arch: str = "controlvector"):
        writer = gguf.GGUFWriter(tmp_path / "v.gguf", arch)
        for name, data in tensors.items():
            writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "v.gguf"

    ones = np.ones(4, np.float32)
    summed = interp.ControlVector.load(write({"direction.2": ones, "direction.2.b": 2 * ones}))
    assert np.array_equal(summed.directions[2], 3 * ones) and summed.model_hint == ""
    for tensors, said in (
        ({"direction.0": ones}, "no direction of a layer from 1 on"), ({"blk.1": ones}, "'blk.1' is no direction"),
        ({}, "no directions"),
        ({"direction.1": ones.astype(np.float16)}, "F16"), ({"direction.1": np.ones((2, 4), np.float32)}, r"\(2, 4\)"),
        ({"direction.1": ones, "direction.2": np.ones(5, np.float32)}, "different widths"),
        ({"direction.1": ones * np.nan}, "not finite"),
    ):
        with pytest.raises(interp.FileError, match=said):
            interp.ControlVector.load(write(tensors))
    with pytest.raises(interp.FileError, match="architecture 'llama', no control vector"):
        interp.ControlVector.load(write({"direction.1": ones}, "llama"))
    with pytest.raises(interp.FileError, match="must end in .gguf"):
        summed.save(tmp_path / "v.bin")
    with pytest.raises(interp.FileError, match="does not exist; create it"):
        summed.save(tmp_path / "missing" / "v.gguf")


def test_a_damaged_control_vector_loads_or_is_a_file_error(vector, tmp_path):
    whole, path = vector.save(tmp_path / "whole.gguf").read_bytes(), tmp_path / "v.gguf"
    draw, refused = random.Random(0), 0
    for trial in range(150):
        content = bytearray(whole)
        if trial % 2:
            content[draw.randrange(320)] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            again = interp.ControlVector.load(path)
        except interp.FileError as err:
            refused += 1
            assert str(path) in str(err)
        else:
            assert again.n_embd and again.layers
    assert refused > 75
