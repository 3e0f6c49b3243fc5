"""Every kind of file that this package reads, with any byte or any value of its description changed: an error, or the same."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gguf_fuzz
import gguf_parts
import interp
from isolation import bits

#: changed files of each kind; LLAMA_INTERP_FILES=3000 makes more
COUNT = int(os.environ.get("LLAMA_INTERP_FILES", "70"))

TOKENS, OTHER = [11, 47, 300, 9], [12, 47, 300, 9]

#: what a value of a description may have become
VALUES = [
    None, True, -1, 0, 1, 7, 2**31, 2**63, 2**64, 10**400, 1.5, float("nan"), float("inf"), "", "x", "-1", "F64", "I8", "BF16", "\0", "\ud83d",
    "all", "[]", "{", "n" * 5000, [], [0], [[]], [-1, 5], [2**40, 2**40], {}, {"x": []}, [[[[]]]],
]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with interp.Model(gguf_fuzz.small_file("llama"), n_ctx=64, n_threads=1) as model:
        yield model


# Changes of bytes, and of the texts that describe the arrays


def changed_bytes(draw: random.Random, content: bytes) -> bytes:
    content, how = bytearray(content), draw.randrange(4)
    # most of a file is numbers, so that most of the damage goes where the descriptions are
    spot = draw.choice([draw.randrange(len(content)), draw.randrange(min(len(content), 3000)), max(0, len(content) - 1 - draw.randrange(2000))])
    if how == 0:
        for _ in range(draw.choice([1, 1, 2, 30])):
            content[max(0, spot - draw.randrange(20))] ^= 1 << draw.randrange(8)
    elif how == 1:
        del content[spot:]
    elif how == 2:
        content[spot : spot + draw.choice([1, 4, 8])] = draw.choice([bytes(8), b"\xff" * 8, draw.randbytes(4), struct.pack("<Q", 2**40)])
    else:
        end = spot + draw.choice([1, 8, 100])
        content[spot:end] = draw.choice([b"", content[spot:end] * 2, draw.randbytes(8)])
    return bytes(content)


def changed_value(draw: random.Random, value):
    """A description with one value changed, removed or doubled, at any depth; texts that hold JSON included."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(sorted(value))
        rest = {key: inner for key, inner in value.items() if key != name}
        how = draw.randrange(8)
        if how == 0:
            return rest
        return {**rest, draw.choice([name, "x", name + "x", ""]) if how == 1 else name: changed_value(draw, value[name])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        i = draw.randrange(len(value))
        how = draw.randrange(6)
        if how == 0:
            return value[:i] + value[i + 1 :]
        return [*value[:i], *[changed_value(draw, value[i])] * (2 if how == 1 else 1), *value[i + 1 :]]
    if isinstance(value, str) and value[:1] in tuple("[{") and draw.random() < 0.9:
        return json.dumps(changed_value(draw, json.loads(value)))
    return draw.choice(VALUES)


def changed_safetensors(draw: random.Random, content: bytes) -> bytes:
    (size,) = struct.unpack_from("<Q", content)
    header = json.dumps(changed_value(draw, json.loads(content[8 : 8 + size]))).encode()
    told = draw.choice([len(header)] * 8 + [0, size, 2**20, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", told) + header + content[8 + size :]


def changed_npz(draw: random.Random, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = draw.choice([draw.choice(names), "metadata.npy" if "metadata.npy" in names else names[0]])
        for name in names:
            data = old.read(name)
            if name == chosen:
                data = _changed_npy(draw, data, name == "metadata.npy")
            new.writestr(draw.choice(["x.npy", name[:-4], name]) if name == chosen and draw.random() < 0.1 else name, data)
    return out.getvalue()


def _changed_npy(draw: random.Random, content: bytes, is_text: bool) -> bytes:
    if is_text and draw.random() < 0.7:
        out = io.BytesIO()
        np.save(out, np.array(json.dumps(changed_value(draw, json.loads(np.load(io.BytesIO(content)).item())))))
        return out.getvalue()
    old, new = draw.choice([
        (b"<f4", b"<f8"), (b"<f4", b"|O "), (b"False", b"True "), (b"(", b"(9999999999999,"), (b"}", b"]"), (b"'shape'", b"'shap_'"),
        (b"NUMPY\x01", b"NUMPY\x03"), (b"(", b"(-1,"), (b"<", b">"), (b"descr", b"[" * 900),
    ])  # fmt: skip
    return content.replace(old, new, 1) if draw.random() < 0.6 else changed_bytes(draw, content)


def changed_gguf(draw: random.Random, content: bytes) -> bytes:
    file = gguf_parts.take_apart(content)
    for _ in range(draw.choice([1, 1, 2])):
        try:
            draw.choice(gguf_fuzz.CHANGES)(draw, file)
        except (IndexError, ValueError, StopIteration):
            continue  # the file has nothing of the kind: `changed` tries another change
    return file.pack()


CHANGES = {".safetensors": changed_safetensors, ".npz": changed_npz, ".gguf": changed_gguf}


def changed(draw: random.Random, path: Path, content: bytes) -> bytes:
    """A file like this one; never this one, which would count as tried and prove nothing."""
    while True:
        change = CHANGES[path.suffix] if path.suffix in CHANGES and draw.random() < 0.6 else changed_bytes
        if (found := change(draw, content)) != content:
            return found


# The files


def writers(model: interp.Model) -> dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]]:
    """By name of file: what writes it, and what reads it."""
    sweep = interp.patch_sweep(model, TOKENS, OTHER, metric=interp.logit_diff(1, 2), layers=[0, 1], progress=False)
    ablation = interp.ablation_sweep(model, TOKENS, metric=interp.logit_diff(1, 2), layers=[0, 1], progress=False)
    run = model.run(TOKENS, capture=("l_out", interp.at("attn_scores", layers=1, heads=[2, 0])))
    stats = interp.stats(model, [TOKENS, OTHER], n_top=2, progress=False)
    vector = interp.ControlVector({1: np.ones(64, np.float32), 3: np.full(64, 0.5, np.float32)})

    def state(path: Path) -> None:
        with model.prefix(TOKENS):
            model.save_state(path)

    def resumed(path: Path):
        with model.load_state(path) as prefix:
            return prefix.tokens, model.run([5, 6]).logits

    found = {"state.safetensors": (state, resumed), "vector.gguf": (vector.save, interp.ControlVector.load)}
    for suffix in (".safetensors", ".npz"):
        found |= {
            "run" + suffix: (run.save, interp.Run.load),
            "stats" + suffix: (stats.save, interp.Stats.load),
            "sweep" + suffix: (sweep.save, interp.Sweep.load),
            "ablation" + suffix: (ablation.save, interp.AblationSweep.load),
            "array" + suffix: (lambda path: interp.save_array(path, run["l_out", 2], site="l_out", layer=2, run=run), interp.load_array),
        }
    return found


NAMES = ["state.safetensors", "vector.gguf"] + [n + s for n in ("run", "stats", "sweep", "ablation", "array") for s in (".safetensors", ".npz")]


@pytest.fixture(scope="module")
def written(model):
    return writers(model)


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_file_is_refused_or_gives_what_was_saved(name, model, written, tmp_path, tried):
    write, read = written[name]
    path = tmp_path / name
    write(path)
    whole, wanted, draw = path.read_bytes(), bits(read(path)), random.Random(name)
    before, refused = bits(model.run(TOKENS).logits), 0
    for trial in range(COUNT):
        path.write_bytes(changed(draw, path, whole))
        try:
            found = bits(read(path))
        except interp.FileError as err:
            assert str(path) in str(err)
            refused += 1
        else:
            # a control vector is llama.cpp's kind of file, which has no sums: other numbers are another vector
            assert found == wanted or name == "vector.gguf", f"trial {trial} gave something else"
    tried(f"changed files of {Path(name).suffix}", COUNT)
    assert refused > COUNT / 2
    assert bits(model.run(TOKENS).logits) == before


def foreign(path: Path) -> None:
    arrays = {"a": np.arange(12.0).reshape(3, 4), "b-1": np.ones((2, 2), np.float32)}
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".npy":
        np.save(path, arrays["a"])
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".npy"])
def test_a_changed_file_of_other_software_is_refused_or_an_array(suffix, tmp_path, tried):
    path = tmp_path / f"foreign{suffix}"
    foreign(path)
    whole, draw = path.read_bytes(), random.Random(suffix)
    for _ in range(2 * COUNT):
        path.write_bytes(changed(draw, path, whole))
        try:
            assert isinstance(interp.load_array(path, site=None if suffix == ".npy" else "a"), np.ndarray)
        except interp.FileError as err:
            assert str(path) in str(err)
        with pytest.raises(interp.FileError):
            interp.Run.load(path)
    tried(f"changed files of {suffix}", 2 * COUNT)
