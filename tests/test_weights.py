"""Weights as arrays: of the model's memory, and of its file where kernels have rearranged them."""

from __future__ import annotations

import ctypes as ct
import random
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

import gguf_fuzz
import interp
from interp import native, weights
from recipes import RECIPES


def test_weights_are_those_of_the_file(tiny):
    recipe = RECIPES["llama"]()
    assert len(recipe.tensors) > 30
    for name, normal in recipe.tensors.items():
        found = tiny.weight(name)
        assert found.dtype == np.float32 and np.array_equal(found, normal.draw(recipe.seed, name)), name


def test_quantised_weights_are_the_same_repacked_or_not(model):
    name = "blk.3.attn_output.weight"
    with interp.Model(n_ctx=64, n_threads=1, repack=False) as plain:
        run = plain.run("The Eiffel Tower", capture="embd")
        embedding = plain.weight("token_embd.weight")
        assert embedding.shape == (plain.n_vocab, plain.n_embd)
        assert np.allclose(run["embd"], embedding[run.tokens], atol=1e-6), "the model dequantises these rows itself"
        assert np.array_equal(model.weight(name), plain.weight(name))


class Repacked:
    """A library for which all weights are repacked: which ones are depends on the processor."""

    weight_read = staticmethod(lambda *_: -1)
    reason = staticmethod(lambda handle, default: "a weight was repacked for speed when the model was loaded")

    def __init__(self, lib):
        self.weight_info = lib.weight_info


#: that rows of the small models have blocks of; Q8_1 is for activations only, and no file has it
KINDS = [*gguf_fuzz.QUANTISED, GGMLQuantizationType.F16, GGMLQuantizationType.BF16, GGMLQuantizationType.F32]
KINDS.remove(GGMLQuantizationType.Q8_1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_repacked_weight_is_read_from_the_file(tmp_path, kind):
    file, path = gguf_fuzz.whole("olmoe").copy(), tmp_path / "model.gguf"
    if kind != GGMLQuantizationType.F32:
        gguf_fuzz.quantise(random.Random(0), file, kind, lambda tensor: len(tensor.dims) > 1)
    path.write_bytes(file.pack())
    with interp.Model(path, n_ctx=16, n_threads=1, repack=False) as plain:
        for name in ("token_embd.weight", "blk.1.ffn_down_exps.weight", "blk.0.attn_norm.weight"):
            with plain._locked() as handle:
                found = weights.read(Repacked(plain._lib), handle, name, plain.n_layer, path)
            # any bits: some are no numbers
            assert np.array_equal(found, plain.weight(name), equal_nan=True), name


class Traits(ct.Structure):
    """``ggml_type_traits``, as far as here."""

    _fields_ = [
        ("name", ct.c_char_p), ("block", ct.c_int64), ("interleave", ct.c_int64), ("size", ct.c_size_t), ("is_quantised", ct.c_bool),
        ("to_float", ct.CFUNCTYPE(None, ct.c_void_p, ct.c_void_p, ct.c_int64)),
    ]  # fmt: skip


#: without the one for activations, and the one that gguf does not dequantise
LARGE = {kind for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 64} - {GGMLQuantizationType.Q8_K, GGMLQuantizationType.Q1_0}


@pytest.mark.parametrize("kind", sorted(LARGE), ids=lambda kind: kind.name)
def test_types_of_large_blocks_are_dequantised_as_the_library_does(kind):
    """Rows of the small models have none of these."""
    base = ct.CDLL(str(next(native.find_library().parent.glob("*ggml-base.*"))))
    base.ggml_get_type_traits.restype = ct.POINTER(Traits)
    traits = base.ggml_get_type_traits(int(kind)).contents
    assert (traits.name.decode().upper(), (traits.block, traits.size)) == (kind.name, GGML_QUANT_SIZES[kind])
    data = np.random.default_rng(0).integers(0, 256, (7, 3 * traits.size), np.uint8)
    wanted = np.empty((7, 3 * traits.block), np.float32)
    traits.to_float(data.ctypes.data, wanted.ctypes.data, wanted.size)
    with np.errstate(all="ignore"):
        assert np.array_equal(gguf.dequantize(data, kind), wanted, equal_nan=True)


def test_a_type_that_gguf_does_not_dequantise_says_how_to_load_it(tmp_path):
    file, path, name = gguf_fuzz.whole("phi3").copy(), tmp_path / "model.gguf", "blk.0.ffn_down.weight"
    gguf_fuzz.quantise(random.Random(0), file, GGMLQuantizationType.Q1_0, lambda tensor: tensor.name == name.encode())
    path.write_bytes(file.pack())
    with interp.Model(path, n_ctx=16, n_threads=1, repack=False) as plain:
        assert plain.weight(name).shape == (64, 128)
        with plain._locked() as handle:
            with pytest.raises(interp.ModelError, match="was repacked.*Q1_0.*repack=False"):
                weights.read(Repacked(plain._lib), handle, name, plain.n_layer, path)


def test_a_model_in_several_files_is_read_as_one(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    wanted = {f"blk.{i}.w.weight": np.arange(12, dtype=np.float32).reshape(3, 4) + i for i in range(5)}
    for name, values in wanted.items():
        writer.add_tensor(name, values)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        write()
    first, *others = sorted(tmp_path.glob("m-*.gguf"))
    assert first.name == "m-00001-of-00003.gguf" and len(others) == 2
    info = SimpleNamespace(type=0)
    for name, values in wanted.items():
        weights._from_file(first, name, info, found := np.zeros((3, 4), np.float32))
        assert np.array_equal(found, values), name


def test_a_repacked_weight_whose_file_is_another_says_how_to_load_it(tmp_path, tiny):
    files = {"gone": None, "none": b"GGUF", "short": Path(tiny.path).read_bytes()[:-4096], "other": gguf_fuzz.whole("llama").pack()}
    for name, content in files.items():
        path = tmp_path / f"{name}.gguf"
        if content is not None:
            path.write_bytes(content)
        with tiny._locked() as handle:
            with pytest.raises(interp.ModelError, match=f"was repacked.*cannot read .*{name}.gguf: .*repack=False"):
                for weight in ("token_embd.weight", *RECIPES["llama"]().tensors):
                    weights.read(Repacked(tiny._lib), handle, weight, tiny.n_layer, path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("blk.1.attn_out.weight", "nearest.*blk.1.attn_output.weight"),
        ("output_norm", "output_norm.weight"),
        ("blk.9.attn_q.weight", "layers 0 to 3"),
        ("zzz", "as in the GGUF"),
        ("a\0b", "no weight"),
        (3, "names no weight"),
    ],
)
def test_a_weight_that_is_not_there_is_said(tiny, name, says):
    with pytest.raises(interp.ModelError, match=says):
        tiny.weight(name)
