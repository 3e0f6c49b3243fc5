"""Recipes of the tiny random models: every tensor and metadata key that llama.cpp's loader demands.

A recipe is entered into `RECIPES` by the decorator `recipe`. It is anything with the two methods of `Tiny`,
`content` and `write`; `models.tiny` makes the file and caches it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
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


RECIPES: dict[str, Callable[[], Tiny]] = {}


def recipe(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
    """Enter a function that makes a recipe into `RECIPES`, under the function's name."""
    RECIPES[make.__name__] = make
    return make


# Sizes that the tiny models share. Small, and all different, so that no two axes can be mistaken.
N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_VOCAB, N_CTX = 64, 128, 4, 2, 49152, 256

# The sliding window of the gemma2 model: shorter than the prompts of the tests.
WINDOW = 8


def _matrix(n_out: int, n_in: int, gain: float = 1.0) -> Normal:
    # Keeps the size of what passes through: inputs of size 1 give outputs of size `gain`.
    return Normal((n_out, n_in), gain / n_in**0.5)


def _norm(n: int) -> Normal:
    return Normal((n,), std=0.1, mean=1.0)


def _bias(n: int) -> Normal:
    return Normal((n,), std=0.1)


def _embedding(n: int) -> Normal:
    # As a tied head on a normed residual this gives logits of size 0.3 * sqrt(64) = 2.4.
    return Normal((n, N_EMBD), std=0.3)


def _sizes(n_layer: int, **more: float | bool) -> dict[str, Any]:
    """Metadata that every architecture has; keywords spell dots as two underscores."""
    common = {
        "context_length": N_CTX,
        "embedding_length": N_EMBD,
        "block_count": n_layer,
        "feed_forward_length": N_FF,
        "attention.head_count": N_HEAD,
    }
    return common | {key.replace("__", "."): value for key, value in more.items()}


def _attention(d_head: int) -> dict[str, Normal]:
    """Grouped-query attention without biases. Queries and keys are large enough to make sharp patterns."""
    return {
        "attn_norm.weight": _norm(N_EMBD),
        "attn_q.weight": _matrix(N_HEAD * d_head, N_EMBD, gain=1.5),
        "attn_k.weight": _matrix(N_HEAD_KV * d_head, N_EMBD, gain=1.5),
        "attn_v.weight": _matrix(N_HEAD_KV * d_head, N_EMBD),
        "attn_output.weight": _matrix(N_EMBD, N_HEAD * d_head),
    }


def _gated_mlp() -> dict[str, Normal]:
    return {
        "ffn_norm.weight": _norm(N_EMBD),
        "ffn_gate.weight": _matrix(N_FF, N_EMBD),
        "ffn_up.weight": _matrix(N_FF, N_EMBD),
        "ffn_down.weight": _matrix(N_EMBD, N_FF),
    }


def _model(n_layer: int, block: dict[str, Normal], **others: Normal) -> dict[str, Normal]:
    """All tensors: `block` once for each layer, then the ones outside the layers, with embedding and norm."""
    blocks = {f"blk.{i}.{name}": normal for i in range(n_layer) for name, normal in block.items()}
    ends = {"token_embd.weight": _embedding(N_VOCAB), "output_norm.weight": _norm(N_EMBD)}
    return ends | blocks | {name.replace("__", "."): normal for name, normal in others.items()}


@recipe
def llama() -> Tiny:
    """Rotary positions, grouped queries, a head of its own."""
    metadata = _sizes(
        n_layer=4,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__dimension_count=16,
    )
    return Tiny("llama", metadata, _model(4, _attention(16) | _gated_mlp(), output__weight=_embedding(N_VOCAB)))


@recipe
def gpt2() -> Tiny:
    """LayerNorm, biases everywhere, fused QKV, learned positions, GELU, a tied head."""
    block = {
        "attn_norm.weight": _norm(N_EMBD),
        "attn_norm.bias": _bias(N_EMBD),
        "attn_qkv.weight": _matrix(3 * N_EMBD, N_EMBD, gain=1.5),
        "attn_qkv.bias": _bias(3 * N_EMBD),
        "attn_output.weight": _matrix(N_EMBD, N_EMBD),
        "attn_output.bias": _bias(N_EMBD),
        "ffn_norm.weight": _norm(N_EMBD),
        "ffn_norm.bias": _bias(N_EMBD),
        "ffn_up.weight": _matrix(N_FF, N_EMBD),
        "ffn_up.bias": _bias(N_FF),
        "ffn_down.weight": _matrix(N_EMBD, N_FF),
        "ffn_down.bias": _bias(N_EMBD),
    }
    tensors = _model(3, block, output_norm__bias=_bias(N_EMBD), position_embd__weight=_embedding(N_CTX))
    return Tiny("gpt2", _sizes(n_layer=3, attention__layer_norm_epsilon=1e-5), tensors)


@recipe
def qwen3() -> Tiny:
    """Norms on queries and keys; heads wider than n_embd / n_head; a tied head."""
    metadata = _sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__key_length=32,
        attention__value_length=32,
        rope__freq_base=1e6,
    )
    norms = {"attn_q_norm.weight": _norm(32), "attn_k_norm.weight": _norm(32)}
    return Tiny("qwen3", metadata, _model(3, _attention(32) | norms | _gated_mlp()))


@recipe
def gemma2() -> Tiny:
    """A sliding window in the even layers (the loader's default), more norms, soft-caps low enough to bite."""
    metadata = _sizes(
        n_layer=4,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__key_length=32,
        attention__value_length=32,
        attention__sliding_window=WINDOW,
        attn_logit_softcapping=4.0,
        final_logit_softcapping=5.0,
    )
    norms = {"post_attention_norm.weight": _norm(N_EMBD), "post_ffw_norm.weight": _norm(N_EMBD)}
    return Tiny("gemma2", metadata, _model(4, _attention(32) | norms | _gated_mlp()))


@recipe
def mixtral() -> Tiny:
    """llama with four experts, two of them used for each token."""
    metadata = _sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__dimension_count=16,
        expert_count=4,
        expert_used_count=2,
    )
    # Three axes with the experts first; the spread is that of one expert's matrix.
    experts = {
        "ffn_norm.weight": _norm(N_EMBD),
        "ffn_gate_inp.weight": _matrix(4, N_EMBD),
        "ffn_gate_exps.weight": Normal((4, N_FF, N_EMBD), N_EMBD**-0.5),
        "ffn_up_exps.weight": Normal((4, N_FF, N_EMBD), N_EMBD**-0.5),
        "ffn_down_exps.weight": Normal((4, N_EMBD, N_FF), N_FF**-0.5),
    }
    return Tiny("llama", metadata, _model(3, _attention(16) | experts, output__weight=_embedding(N_VOCAB)))
