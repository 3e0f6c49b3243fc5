"""What every case runs: the same tokens and sizes for all libraries."""

from __future__ import annotations

import numpy as np

N_PREFILL, N_GENERATE, N_CTX = 256, 64, 512

#: of N_PREFILL tokens each: what a corpus is cut into
N_CHUNKS = 4

#: generation begins after so many tokens
N_BEGIN = 8

#: the layer at which generation is steered
LAYER = 10


def prompt(number: int = 0) -> list[int]:
    return np.random.default_rng(number).integers(100, 40000, N_PREFILL).tolist()


def corpus() -> list[list[int]]:
    return [prompt(number) for number in range(N_CHUNKS)]


def vector(n_embd: int) -> np.ndarray:
    """What is added to the residual stream: ``(n_embd,)``, float32."""
    return np.random.default_rng(1).normal(size=n_embd).astype(np.float32)
