"""Parts that tiny random models are made of: tensors, blocks, sizes, and the file that holds them."""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np


@dataclass(frozen=True)
class Normal:
    """A tensor of independent normal values. `shape` is numpy's: (outputs, inputs) for a matrix."""

    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    def draw(self, seed: int, name: str) -> np.ndarray:
        """The tensor's values; they depend on its own name only, and not on the other tensors."""
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return (self.mean + self.std * rng.standard_normal(self.shape)).astype(np.float32)


@dataclass
class Tiny:
    """The recipe of a small random model: what llama.cpp's loader reads, besides the vocabulary.

    `metadata` keys are without the architecture's prefix. The vocabulary is the default model's.
    """

    arch: str
    metadata: dict[str, float | bool]
    tensors: dict[str, Normal] = field(default_factory=dict)
    seed: int = 0

    def content(self) -> dict[str, Any]:
        """All that decides the file besides the vocabulary, as plain JSON values."""
        return asdict(self)

    def write(self, path: Path, vocabulary: list[tuple]) -> None:
        """Write the model as a GGUF.

        Args:
            path: the file to write.
            vocabulary: the tokenizer's metadata, as arguments of GGUFWriter.add_key_value.
        """
        writer = gguf.GGUFWriter(path, self.arch)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for key, value in self.metadata.items():
            _add(writer, f"{self.arch}.{key}", value)
        for entry in vocabulary:
            writer.add_key_value(*entry)
        for name, normal in self.tensors.items():
            writer.add_tensor(name, normal.draw(self.seed, name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: float | bool) -> None:
    # bool stands before int because Python's bool is an int.
    kinds = ((bool, writer.add_bool), (int, writer.add_uint32), (float, writer.add_float32))
    next(add for kind, add in kinds if isinstance(value, kind))(key, value)


# Sizes that the tiny models share. Small, and all different, so that no two axes can be mistaken.
N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_VOCAB, N_CTX = 64, 128, 4, 2, 49152, 256

# The sliding window of the models that have one: shorter than the prompts of the tests.
WINDOW = 8


def matrix(n_out: int, n_in: int, gain: float = 1.0) -> Normal:
    # Keeps the size of what passes through: inputs of size 1 give outputs of size `gain`.
    return Normal((n_out, n_in), gain / n_in**0.5)


def norm(n: int) -> Normal:
    return Normal((n,), std=0.1, mean=1.0)


def bias(n: int) -> Normal:
    return Normal((n,), std=0.1)


def embedding(n: int) -> Normal:
    # As a tied head on a normed residual this gives logits of size 0.3 * sqrt(64) = 2.4.
    return Normal((n, N_EMBD), std=0.3)


def sizes(n_layer: int, **more: float | bool) -> dict[str, Any]:
    """Metadata that every architecture has; keywords spell dots as two underscores."""
    common = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": n_layer,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
    }
    return common | {key.replace("__", "."): value for key, value in more.items()}


def attention(d_head: int, n_head_kv: int = N_HEAD_KV) -> dict[str, Normal]:
    """Grouped-query attention without biases. Queries and keys are large enough to make sharp patterns."""
    return {
        "attn_norm.weight": norm(N_EMBD),
        "attn_q.weight": matrix(N_HEAD * d_head, N_EMBD, gain=1.5),
        "attn_k.weight": matrix(n_head_kv * d_head, N_EMBD, gain=1.5),
        "attn_v.weight": matrix(n_head_kv * d_head, N_EMBD),
        "attn_output.weight": matrix(N_EMBD, N_HEAD * d_head),
    }


def fused_attention(d_head: int, n_head_kv: int) -> dict[str, Normal]:
    """The same with one matrix for queries, keys and values."""
    return {
        "attn_norm.weight": norm(N_EMBD),
        "attn_qkv.weight": matrix((N_HEAD + 2 * n_head_kv) * d_head, N_EMBD, gain=1.5),
        "attn_output.weight": matrix(N_EMBD, N_HEAD * d_head),
    }


def plain_mlp() -> dict[str, Normal]:
    return {
        "ffn_norm.weight": norm(N_EMBD),
        "ffn_up.weight": matrix(N_FF, N_EMBD),
        "ffn_down.weight": matrix(N_EMBD, N_FF),
    }


def gated_mlp() -> dict[str, Normal]:
    return plain_mlp() | {"ffn_gate.weight": matrix(N_FF, N_EMBD)}


def experts(n_expert: int, n_ff: int = N_FF) -> dict[str, Normal]:
    """Gated MLPs, the experts on the first axis; the spread is that of one expert's matrix."""
    return {
        "ffn_gate_inp.weight": matrix(n_expert, N_EMBD),
        "ffn_gate_exps.weight": Normal((n_expert, n_ff, N_EMBD), N_EMBD**-0.5),
        "ffn_up_exps.weight": Normal((n_expert, n_ff, N_EMBD), N_EMBD**-0.5),
        "ffn_down_exps.weight": Normal((n_expert, N_EMBD, n_ff), n_ff**-0.5),
    }


def biases(block: dict[str, Normal]) -> dict[str, Normal]:
    """A bias for every matrix and norm of a block."""
    # one value for each row; of experts, for each row of each expert
    return {
        name.replace(".weight", ".bias"): Normal(normal.shape[: max(1, len(normal.shape) - 1)], std=0.1)
        for name, normal in block.items()
    }


def model(n_layer: int, block: dict[str, Normal], **others: Normal) -> dict[str, Normal]:
    """All tensors: `block` once for each layer, then the ones outside the layers, with embedding and norm."""
    blocks = {f"blk.{i}.{name}": normal for i in range(n_layer) for name, normal in block.items()}
    ends = {"token_embd.weight": embedding(N_VOCAB), "output_norm.weight": norm(N_EMBD)}
    return ends | blocks | {name.replace("__", "."): normal for name, normal in others.items()}
