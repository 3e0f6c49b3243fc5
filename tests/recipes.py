"""Recipes of the tiny random models: every tensor and metadata key that llama.cpp's loader demands.

A recipe is entered into `RECIPES` by the decorator `recipe`. It is anything with the two methods of `Tiny`,
`content` and `write`; `models.tiny` makes the file and caches it.
"""

from __future__ import annotations

from collections.abc import Callable

from tiny_parts import (
    N_CTX,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_HEAD_KV,
    N_VOCAB,
    WINDOW,
    Normal,
    Tiny,
    attention,
    bias,
    biases,
    embedding,
    experts,
    fused_attention,
    gated_mlp,
    matrix,
    model,
    norm,
    plain_mlp,
    sizes,
)

RECIPES: dict[str, Callable[[], Tiny]] = {}


def recipe(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
    """Enter a function that makes a recipe into `RECIPES`, under the function's name with dashes."""
    RECIPES[make.__name__.replace("_", "-")] = make
    return make


@recipe
def llama() -> Tiny:
    """Rotary positions, grouped queries, a head of its own."""
    metadata = sizes(
        n_layer=4,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__dimension_count=16,
    )
    return Tiny("llama", metadata, model(4, attention(16) | gated_mlp(), output__weight=embedding(N_VOCAB)))


@recipe
def gpt2() -> Tiny:
    """LayerNorm, biases everywhere, fused QKV, learned positions, GELU, a tied head."""
    block = fused_attention(16, N_HEAD) | plain_mlp()
    ends = {"output_norm__bias": bias(N_EMBD), "position_embd__weight": embedding(N_CTX)}
    tensors = model(3, block | biases(block), **ends)
    return Tiny("gpt2", sizes(n_layer=3, attention__layer_norm_epsilon=1e-5), tensors)


@recipe
def qwen3() -> Tiny:
    """Norms on queries and keys; heads wider than n_embd / n_head; a tied head."""
    metadata = sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__key_length=32,
        attention__value_length=32,
        rope__freq_base=1e6,
    )
    norms = {"attn_q_norm.weight": norm(32), "attn_k_norm.weight": norm(32)}
    return Tiny("qwen3", metadata, model(3, attention(32) | norms | gated_mlp()))


@recipe
def gemma2() -> Tiny:
    """A sliding window in the even layers (the loader's default), more norms, soft-caps low enough to bite."""
    metadata = sizes(
        n_layer=4,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__key_length=32,
        attention__value_length=32,
        attention__sliding_window=WINDOW,
        attn_logit_softcapping=4.0,
        final_logit_softcapping=5.0,
    )
    norms = {"post_attention_norm.weight": norm(N_EMBD), "post_ffw_norm.weight": norm(N_EMBD)}
    return Tiny("gemma2", metadata, model(4, attention(32) | norms | gated_mlp()))


@recipe
def mixtral() -> Tiny:
    """llama with four experts, two of them used for each token."""
    metadata = sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__dimension_count=16,
        expert_count=4,
        expert_used_count=2,
    )
    block = attention(16) | {"ffn_norm.weight": norm(N_EMBD)} | experts(4)
    return Tiny("llama", metadata, model(3, block, output__weight=embedding(N_VOCAB)))


@recipe
def qwen2() -> Tiny:
    """llama with biases on queries, keys and values; a tied head."""
    metadata = sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-6,
        rope__freq_base=1e6,
    )
    block = attention(16)
    qkv = {name: block[name] for name in ("attn_q.weight", "attn_k.weight", "attn_v.weight")}
    return Tiny("qwen2", metadata, model(3, block | biases(qkv) | gated_mlp()))


@recipe
def gemma3() -> Tiny:
    """gemma2 with norms on queries and keys instead of soft-caps; the window's layers turn faster."""
    metadata = sizes(
        n_layer=4,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-6,
        attention__key_length=32,
        attention__value_length=32,
        attention__sliding_window=WINDOW,
        attention__sliding_window_pattern=2,
        rope__freq_base=1e6,
    )
    norms = {
        "attn_q_norm.weight": norm(32),
        "attn_k_norm.weight": norm(32),
        "post_attention_norm.weight": norm(N_EMBD),
        "post_ffw_norm.weight": norm(N_EMBD),
    }
    return Tiny("gemma3", metadata, model(4, attention(32) | norms | gated_mlp()))


@recipe
def phi3() -> Tiny:
    """Fused QKV, gate and up in one matrix, queries scaled before the product."""
    metadata = sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-5,
        rope__dimension_count=16,
    )
    block = fused_attention(16, N_HEAD_KV) | plain_mlp() | {"ffn_up.weight": matrix(2 * N_FF, N_EMBD)}
    return Tiny("phi3", metadata, model(3, block, output__weight=embedding(N_VOCAB)))


@recipe
def olmoe() -> Tiny:
    """Experts whose weights do not sum to one; one norm over all heads of the queries, and of the keys."""
    metadata = sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD,
        attention__layer_norm_rms_epsilon=1e-5,
        expert_count=4,
        expert_used_count=2,
    )
    norms = {name: norm(N_EMBD) for name in ("attn_q_norm.weight", "attn_k_norm.weight", "ffn_norm.weight")}
    block = attention(16, N_HEAD) | norms | experts(4)
    return Tiny("olmoe", metadata, model(3, block, output__weight=embedding(N_VOCAB)))


@recipe
def gptneox() -> Tiny:
    """Attention and MLP side by side, each with a norm of its own; half of a head's dimensions turn."""
    metadata = sizes(
        n_layer=3,
        attention__layer_norm_epsilon=1e-5,
        rope__dimension_count=8,
        use_parallel_residual=True,
    )
    block = fused_attention(16, N_HEAD) | plain_mlp()
    ends = {"output_norm__bias": bias(N_EMBD), "output__weight": embedding(N_VOCAB)}
    return Tiny("gptneox", metadata, model(3, block | biases(block), **ends))


@recipe
def falcon() -> Tiny:
    """The small Falcon: attention and MLP side by side behind one norm; one head of keys and values."""
    metadata = sizes(n_layer=3, attention__head_count_kv=1, attention__layer_norm_epsilon=1e-5)
    mlp = {name: normal for name, normal in plain_mlp().items() if name != "ffn_norm.weight"}
    block = fused_attention(16, 1) | mlp | {"attn_norm.bias": bias(N_EMBD)}
    return Tiny("falcon", metadata, model(3, block, output_norm__bias=bias(N_EMBD)))


@recipe
def starcoder2() -> Tiny:
    """LayerNorm, biases everywhere, rotary positions, grouped queries, GELU, a tied head."""
    metadata = sizes(n_layer=3, attention__head_count_kv=N_HEAD_KV, attention__layer_norm_epsilon=1e-5)
    block = attention(16) | plain_mlp()
    return Tiny("starcoder2", metadata, model(3, block | biases(block), output_norm__bias=bias(N_EMBD)))


@recipe
def command_r() -> Tiny:
    """Cohere's: attention and a gated MLP side by side behind one LayerNorm without bias; scaled logits."""
    metadata = sizes(
        n_layer=3,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_epsilon=1e-5,
        logit_scale=0.5,
    )
    mlp = {name: normal for name, normal in gated_mlp().items() if name != "ffn_norm.weight"}
    return Tiny("command-r", metadata, model(3, attention(16) | mlp))


@recipe
def gpt_oss() -> Tiny:
    """Attention sinks, a sliding window in the even layers, experts with biases."""
    metadata = sizes(
        n_layer=4,
        attention__head_count_kv=N_HEAD_KV,
        attention__layer_norm_rms_epsilon=1e-5,
        attention__key_length=32,
        attention__value_length=32,
        attention__sliding_window=WINDOW,
        rope__dimension_count=32,
        rope__freq_base=1.5e5,
        expert_count=4,
        expert_used_count=2,
        expert_feed_forward_length=96,
    )
    linear = attention(32) | experts(4, n_ff=96)
    others = {"post_attention_norm.weight": norm(N_EMBD), "attn_sinks.weight": Normal((N_HEAD,), std=0.5, mean=1.0)}
    linear_biases = {name: normal for name, normal in biases(linear).items() if name != "attn_norm.bias"}
    block = linear | linear_biases | others
    return Tiny("gpt-oss", metadata, model(4, block, output__weight=embedding(N_VOCAB)))
