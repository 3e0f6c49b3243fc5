"""Runs of small models with everything attached that can be: on a device in a test, on the CPU in a child process.

    python accelerator_cases.py MODEL FLASH_ATTN OUT.npz

computes all of `CASES` on the CPU and writes their values.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import interp
import models
import recipes
from recipes import RECIPES

#: a device that is emulated takes a second for a head of 49,152 tokens
N_VOCAB = 512
TOKENS = [504, 91, 392, 314, 281]
READ = ("resid_post", "z", "attn_scores", "q", "mlp_out")
N_EMBD = 64

Edits = Callable[[interp.Model], list]


def _direction() -> np.ndarray:
    return np.random.default_rng(0).normal(size=N_EMBD).astype(np.float32)


def _matrix() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(N_EMBD, N_EMBD)).astype(np.float32) / np.sqrt(N_EMBD)


def _dictionary(x: interp.Tensor) -> interp.Tensor:
    """What a sparse autoencoder does, on the device that the layer is on."""
    return x + (x.rms_norm() @ _matrix()).relu() @ _matrix().T


def _everything(x: interp.Tensor) -> interp.Tensor:
    """Every operation that an edit can be written in; the sum is small beside x, so that no noise is amplified."""
    y = x.norm() + x.sigmoid() * x.tanh() - (abs(x) + 1.0).log() / (x**2 + 1.0).sqrt()
    y = y + x.gelu().clamp(-2.0, 2.0) + x.silu().softmax() * _direction() + (x - x.mean()).step() - (-abs(x)).exp()
    y = y[1:].concat(y[:1], axis=0) + x.sum().expand(*x.shape) * 1e-3 + x.filled(0.5)
    return x + y.reshape(x.shape[0], 4, 16).transpose(0, 2, 1).reshape(*x.shape) * 0.2


#: name -> the edits of the run
CASES: dict[str, Edits] = {
    "nothing": lambda m: [],
    "zero ablation": lambda m: [interp.ablate([(1, 0), (2, 3)])],
    "mean ablation": lambda m: [interp.ablate([(1, 2)], mode="mean", mean=m.run(TOKENS[::-1], capture="z"))],
    "one head kept": lambda m: [interp.keep_only(1, 2)],
    "steering": lambda m: [interp.steer("l_out", 1, _direction(), 4.0, positions=[1, -1])],
    "direction projected out": lambda m: [interp.project_out("l_out", [0, 1], _direction())],
    "patch of a position": lambda m: [interp.patch("l_out", 1, m.run(TOKENS[::-1], capture="l_out"), positions=-1)],
    "edges knocked out": lambda m: [interp.knockout([0, 1], queries=-1, keys=[1, 2])],
    "scores scaled": lambda m: [interp.scale(interp.at("attn_scores", layers=1, heads=1), 0.5)],
    "rows added to": lambda m: [interp.add(interp.at("mlp_out", layers=2, positions=[0, 3]), _direction())],
    "rows replaced": lambda m: [interp.replace(interp.at("l_out", layers=2, positions=2), _direction())],
    "dictionary": lambda m: [interp.edit("l_out-1", _dictionary)],
    "every operation": lambda m: [interp.edit("l_out-1", _everything)],
    "host function": lambda m: [interp.edit_host("l_out-1", lambda a: np.roll(a, 1, axis=0) * 0.5)],
}


def small(arch: str) -> Path:
    """The small random model of an architecture with a small vocabulary."""
    made = RECIPES[arch]()
    for name, tensor in made.tensors.items():
        if tensor.shape[0] == recipes.N_VOCAB:
            made.tensors[name] = replace(tensor, shape=(N_VOCAB, *tensor.shape[1:]))
    return models.random_model(f"small-{arch}", made, N_VOCAB)


def load(path: Path, flash_attn: bool, device: str) -> interp.Model:
    return interp.Model(path, n_ctx=512, flash_attn=flash_attn, n_threads=1, device=device)


def values(model: interp.Model, name: str) -> dict[str, np.ndarray]:
    """All that is read in a case: sites of every layer, and the logits."""
    run = model.run(TOKENS, capture=READ, edits=CASES[name](model))
    return {"logits": run.logits, **{site: run[site] for site in READ}}


def on_cpu(path: Path, flash_attn: bool, out: Path) -> dict[str, dict[str, np.ndarray]]:
    """The values of every case, computed by a child process on the CPU."""
    command = [sys.executable, __file__, str(path), str(int(flash_attn)), str(out)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in CASES}
    with np.load(out) as file:
        for key in file.files:
            name, site = key.split("/")
            found[name][site] = file[key]
    return found


if __name__ == "__main__":
    model = load(Path(sys.argv[1]), sys.argv[2] == "1", "cpu")
    assert {node.backend for node in model.graph(TOKENS)} == {"CPU"}
    np.savez(sys.argv[3], **{f"{n}/{site}": value for n in CASES for site, value in values(model, n).items()})
