"""The architectures: each a small configuration of transformers, and where its modules lie.

Axes that could be taken for each other have different sizes, windows are shorter than the prompts, and whatever makes
an architecture special is in use: soft-caps bite, scales are not 1, experts are chosen from several.
"""

from __future__ import annotations

from dataclasses import replace

from .shape import (
    D_HEAD, N_CTX, N_EMBD, N_EXPERT, N_FF, N_FF_EXPERT, N_HEAD, N_HEAD_KV, N_LAYER, N_USED, WINDOW, Modules, Shape
)  # fmt: skip

_UNNAMED = "its model file names no tensor there; `attn_out` is what is added to `resid_pre`"

_NO_GROUPS = ("num_key_value_heads",)
_OWN_NAMES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings",
)  # fmt: skip

_EXPERTS = {"num_experts_per_tok": N_USED, "moe_intermediate_size": N_FF_EXPERT}

_GPT2 = Modules(
    blocks="transformer.h", final_norm="transformer.ln_f", attention="attn", z="attn.c_proj", mlp_last="mlp.c_proj",
    mlp_norm="ln_2",
)  # fmt: skip
_NEOX = Modules(
    blocks="gpt_neox.layers", final_norm="gpt_neox.final_layer_norm", attention="attention", z="attention.dense",
    mlp_last="mlp.dense_4h_to_h", mlp_norm="post_attention_layernorm",
)  # fmt: skip
_FALCON = Modules(
    blocks="transformer.h", final_norm="transformer.ln_f", attention="self_attention", z="self_attention.dense",
    mlp_last="mlp.dense_4h_to_h", mlp_norm="",
)  # fmt: skip
# their MLP modules add the residual stream themselves
_BLOOM = replace(_FALCON, mlp_out="mlp.dense_4h_to_h", mlp_norm="post_attention_layernorm")
_MPT = Modules(
    blocks="transformer.blocks", final_norm="transformer.norm_f", attention="attn", z="attn.out_proj", mlp="ffn",
    mlp_out="ffn.down_proj", mlp_last="ffn.down_proj", mlp_norm="norm_2",
)  # fmt: skip
_PARALLEL = Modules(mlp_norm="")
_MOE = Modules(mlp_last="")
_GEMMA = Modules(mlp_norm="pre_feedforward_layernorm")

_DEEPSEEK = {
    "moe_intermediate_size": N_FF_EXPERT, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": N_USED,
    "first_k_dense_replace": 1, "kv_lora_rank": 40, "q_lora_rank": 56, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8,
    "v_head_dim": 20, "num_key_value_heads": N_HEAD, "routed_scaling_factor": 1.5, "head_dim": 8,
}  # fmt: skip

#: as gpt-oss was released
_YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
}  # fmt: skip

_GPT_OSS = {
    "head_dim": 64, "max_position_embeddings": 131072, "sliding_window": WINDOW, "num_local_experts": N_EXPERT,
    "num_experts_per_tok": N_USED, "intermediate_size": N_FF_EXPERT,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip

_GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 4.0,
}  # fmt: skip

_MAMBA2 = {
    "mamba_d_state": 12, "mamba_d_conv": 4, "mamba_n_groups": 2, "mamba_d_head": 16, "mamba_n_heads": 12,
    "mamba_expand": 2,
}  # fmt: skip

SHAPES: tuple[Shape, ...] = (
    Shape("llama", "llama", "rotary positions, grouped queries, SwiGLU", {"head_dim": D_HEAD}),
    Shape("mistral", "mistral", "Llama's graph", {"head_dim": D_HEAD, "sliding_window": None}),
    Shape("qwen2", "qwen2", "biases on queries, keys and values"),
    Shape("qwen3", "qwen3", "norms on queries and keys", {"head_dim": D_HEAD}),
    Shape("smollm3", "smollm3", "positions in three of four layers"),
    Shape("ernie4.5", "ernie4_5", "Llama's modules, pairs of neighbours rotated", {"head_dim": D_HEAD}),
    Shape("hunyuan-dense", "hunyuan_v1_dense", "norms on queries and keys behind the rotation", {"head_dim": D_HEAD}),
    Shape("seed-oss", "seed_oss", "biases on queries, keys and values", {"head_dim": D_HEAD}),
    Shape(
        "exaone4", "exaone4", "norms behind the modules only, and on queries and keys",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4}, Modules(mlp_norm="mlp"),
    ),
    Shape("glm4", "glm4", "norms before and behind the modules, a part of each head rotated", {"head_dim": D_HEAD}),
    Shape("arcee", "arcee", "an MLP without gate, squared ReLU"),
    Shape(
        "nemotron", "nemotron", "the same behind LayerNorm, a part of each head rotated", {"head_dim": 16},
        norm_shift=1,
        lacks={"mlp_out": "`ffn_out` is the residual stream after the MLP, and nothing names what is added to it"},
    ),
    Shape(
        "apertus", "apertus", "an activation function with weights (xIELU), norms on queries and keys", {},
        Modules(mlp_norm="feedforward_layernorm"),
    ),
    Shape(
        "gemma2", "gemma2", "soft-caps, a window in every other layer, norms behind the modules",
        {"head_dim": D_HEAD, "sliding_window": WINDOW, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0,
         "query_pre_attn_scalar": D_HEAD, "tie_word_embeddings": True},
        _GEMMA, rounding="gelu",
    ),
    Shape(
        "gemma3", "gemma3_text", "five layers with a window for each without, norms on queries and keys",
        {"head_dim": D_HEAD, "sliding_window": WINDOW, "query_pre_attn_scalar": D_HEAD, "num_hidden_layers": 7,
         "tie_word_embeddings": True},
        _GEMMA, rounding="gelu",
    ),
    Shape(
        "phi3", "phi3", "queries, keys and values in one matrix, gate and up in another", {"sliding_window": None},
        lacks={"resid_mid": _UNNAMED},
    ),
    Shape(
        "phi2", "phi", "attention and MLP side by side behind one norm, a part of each head rotated",
        {"num_key_value_heads": N_HEAD, "intermediate_size": 4 * N_EMBD},
        Modules(final_norm="model.final_layernorm", z="self_attn.dense", mlp_last="mlp.fc2", mlp_norm=""),
        rounding="gelu",
    ),
    Shape(
        "gpt2", "gpt2", "learned positions, LayerNorm, biases, GELU",
        {"n_embd": N_EMBD, "n_layer": N_LAYER, "n_head": N_HEAD, "n_positions": N_CTX,
         "tie_word_embeddings": True},
        _GPT2, rounding="gelu", without=_OWN_NAMES, for_converter={"n_ctx": N_CTX},
    ),
    Shape(
        "gpt-neox", "gpt_neox", "attention and MLP side by side, a part of each head rotated",
        {"use_parallel_residual": True, "hidden_act": "gelu_new"}, replace(_NEOX, mlp_norm=""), rounding="gelu",
        without=_NO_GROUPS, for_converter={"rotary_pct": 0.25},
    ),
    Shape(
        "gpt-neox-sequential", "gpt_neox", "the same, one after the other",
        {"use_parallel_residual": False, "hidden_act": "gelu_new"}, _NEOX, rounding="gelu",
        without=_NO_GROUPS, for_converter={"rotary_pct": 0.25},
    ),
    Shape(
        "falcon", "falcon", "attention and MLP side by side behind one norm, one head of keys and values",
        {"multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "alibi": False, "bias": False},
        _FALCON, rounding="gelu", without=_NO_GROUPS + ("intermediate_size",), for_converter={"num_kv_heads": 1},
    ),
    Shape(
        "falcon-40b", "falcon", "the same with two norms and grouped queries",
        {"num_kv_heads": N_HEAD_KV, "new_decoder_architecture": True, "alibi": False, "bias": False},
        _FALCON, rounding="gelu", without=_NO_GROUPS + ("intermediate_size",),
    ),
    Shape(
        "starcoder2", "starcoder2", "LayerNorm, biases, GELU, grouped queries", {"sliding_window": None},
        Modules(mlp_last="mlp.c_proj"), rounding="gelu",
    ),
    Shape(
        "starcoder", "gpt_bigcode", "GPT-2 with one head of keys and values",
        {"n_embd": N_EMBD, "n_layer": N_LAYER, "n_head": N_HEAD, "n_positions": N_CTX, "multi_query": True,
         "tie_word_embeddings": True},
        _GPT2, rounding="gelu", without=_OWN_NAMES, for_converter={"n_ctx": N_CTX},
    ),
    Shape("olmo", "olmo", "LayerNorm without weights"),
    Shape(
        "olmo2", "olmo2", "norms behind the modules only, and on queries and keys", {},
        # nothing stands between the residual stream and the MLP
        Modules(mlp_norm="mlp"),
    ),
    Shape(
        "olmo3", "olmo3", "the same with a window in every other layer",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}, Modules(mlp_norm="mlp"),
    ),
    Shape(
        "mixtral", "mixtral", "Llama with experts",
        {"num_local_experts": N_EXPERT, "num_experts_per_tok": N_USED, "sliding_window": None},
        _MOE,
    ),
    Shape(
        "qwen2-moe", "qwen2_moe", "experts, and one that all tokens share behind a gate",
        {**_EXPERTS, "num_experts": N_EXPERT, "shared_expert_intermediate_size": N_FF, "decoder_sparse_step": 1,
         "norm_topk_prob": False},
        _MOE,
    ),
    Shape(
        "qwen3-moe", "qwen3_moe", "experts, norms on queries and keys",
        {**_EXPERTS, "num_experts": N_EXPERT, "head_dim": D_HEAD, "norm_topk_prob": True, "decoder_sparse_step": 1},
        _MOE,
    ),
    Shape(
        "olmoe", "olmoe", "experts whose weights do not sum to one; norms over all heads",
        {"num_experts": N_EXPERT, "num_experts_per_tok": N_USED, "norm_topk_prob": False,
         "num_key_value_heads": N_HEAD},
        _MOE,
    ),
    Shape(
        "hunyuan-moe", "hunyuan_v1_moe", "experts, and one that all tokens share",
        {"head_dim": D_HEAD, "num_experts": N_EXPERT, "moe_topk": N_USED}, _MOE,
        for_converter={"moe_intermediate_size": [N_FF] * 4, "num_shared_expert": [1] * 4, "moe_topk": [N_USED] * 4},
    ),
    Shape(
        "granite-moe", "granitemoe", "Granite with experts",
        {**_GRANITE, "num_local_experts": N_EXPERT, "num_experts_per_tok": N_USED},
        Modules(mlp="block_sparse_moe", mlp_out="block_sparse_moe", mlp_last=""),
    ),
    Shape(
        "glm4-moe", "glm4_moe", "experts of which one is shared, chosen by a sigmoid, from the second layer on",
        {**_EXPERTS, "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
         "first_k_dense_replace": 1, "head_dim": D_HEAD, "use_qk_norm": True, "norm_topk_prob": True},
    ),
    Shape(
        "llama4", "llama4_text", "experts in every other layer, of which one is shared",
        {"intermediate_size_mlp": N_FF, "intermediate_size": N_FF_EXPERT, "num_local_experts": N_EXPERT,
         "num_experts_per_tok": 1, "head_dim": D_HEAD, "interleave_moe_layer_step": 2, "attention_chunk_size": 64},
        Modules(mlp="feed_forward", mlp_out="feed_forward", mlp_last=""),
        lacks={"mlp_in": "in layers of experts its model file calls `ffn_norm` what attention returned"},
    ),
    Shape(
        "cohere", "cohere", "attention and a gated MLP side by side, scaled logits",
        {"logit_scale": 0.25, "use_qk_norm": False, "tie_word_embeddings": True}, _PARALLEL,
    ),
    Shape(
        "cohere2", "cohere2", "the same; a window in three of four layers, positions only there",
        {"logit_scale": 0.25, "sliding_window": WINDOW, "tie_word_embeddings": True,
         "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
        _PARALLEL, for_converter={"rotary_pct": 1.0},
    ),
    Shape(
        "gpt-oss", "gpt_oss", "attention sinks, a window in every other layer, experts with biases, YaRN as released",
        {**_GPT_OSS, "rope_parameters": {**_YARN, "truncate": False}}, _MOE, rounding="yarn",
    ),
    Shape(
        "gpt-oss-truncated", "gpt_oss", "the same, the range of YaRN rounded to whole dimensions",
        {**_GPT_OSS, "rope_parameters": {**_YARN, "truncate": True}}, _MOE,
    ),
    Shape(
        "deepseek2", "deepseek_v2", "latent attention (MLA), experts of which one is shared",
        {**_DEEPSEEK, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
    ),
    Shape(
        "deepseek2-lite", "deepseek_v2", "the same, queries not compressed, 27 layers",
        {**_DEEPSEEK, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "q_lora_rank": None,
         # by this number llama.cpp knows it
         "num_hidden_layers": 27},
    ),
    Shape(
        "deepseek3", "deepseek_v3", "latent attention (MLA), experts in groups, chosen by a sigmoid",
        {**_DEEPSEEK, "n_group": 4, "topk_group": 2, "norm_topk_prob": True}, for_converter={"scoring_func": "sigmoid"},
    ),
    Shape("stablelm", "stablelm", "LayerNorm, a part of each head rotated", {"use_qkv_bias": True}),
    Shape(
        "granite", "granite", "scaled embeddings, residual stream, attention and logits",
        _GRANITE,
    ),
    Shape(
        "bloom", "bloom", "positions by distance (ALiBi), a norm behind the embeddings",
        {"hidden_size": N_EMBD, "n_layer": N_LAYER, "n_head": N_HEAD, "tie_word_embeddings": True},
        _BLOOM, rounding="gelu", without=_OWN_NAMES,
    ),
    Shape(
        "mpt", "mpt", "positions by distance (ALiBi), no biases",
        {"d_model": N_EMBD, "n_layers": N_LAYER, "n_heads": N_HEAD, "max_seq_len": N_CTX, "expansion_ratio": 4,
         "tie_word_embeddings": True},
        _MPT, rounding="gelu", without=_OWN_NAMES, for_converter={"architectures": ["MPTForCausalLM"]},
    ),
    Shape(
        "mamba2", "mamba2", "recurrent, no attention",
        {"num_heads": 12, "head_dim": 16, "state_size": 12, "expand": 2, "n_groups": 2, "conv_kernel": 4},
        Modules(blocks="backbone.layers", final_norm="backbone.norm_f", attention="", z="", mlp="", mlp_out="",
                mlp_last="", mlp_norm="", mixer="mixer"),
        mixer_site="mamba_out",
        without=("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    ),
    Shape(
        "jamba", "jamba", "hybrid: Mamba, with attention in every other layer; experts, no positions",
        {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
         "num_experts": N_EXPERT, "num_experts_per_tok": N_USED, "mamba_d_state": 12, "mamba_d_conv": 4,
         "mamba_expand": 2, "mamba_dt_rank": 10, "use_mamba_kernels": False},
        Modules(final_norm="model.final_layernorm", mlp="feed_forward", mlp_out="feed_forward",
                mlp_last="feed_forward.down_proj", mlp_norm="pre_ff_layernorm", mixer="mamba"),
        mixer_site="ffn_inp", dead_site="ffn_inp",
        lacks={"resid_mid": "its model file gives that name, `ffn_inp`, to what attention or Mamba returned"},
    ),
    Shape(
        "granite-hybrid", "granitemoehybrid", "hybrid: Mamba 2, with attention in every other layer; experts",
        {**_MAMBA2, "layer_types": ["mamba", "attention"] * 2, "num_local_experts": N_EXPERT,
         "num_experts_per_tok": N_USED, "intermediate_size": N_FF_EXPERT, "shared_intermediate_size": N_FF,
         **_GRANITE, "position_embedding_type": "nope"},
        # the experts' sum, shared ones included, comes out of no module
        Modules(mlp="shared_mlp", mlp_out="", mlp_last="", mixer="mamba"),
        mixer_site="mamba_out", for_converter={"layer_types": ["mamba", "attention"] * 2},
    ),
    Shape(
        # in part, as released, the converter orders queries and keys wrongly: docs/architectures.md
        "bamba", "bamba", "hybrid: Mamba 2, with attention in every other layer, whole heads rotated",
        {**_MAMBA2, "attn_layer_indices": [1, 3],
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
        Modules(final_norm="model.final_layernorm", mlp="feed_forward", mlp_out="feed_forward",
                mlp_last="feed_forward.down_proj", mlp_norm="pre_ff_layernorm", mixer="mamba"),
        mixer_site="mamba_out", for_converter={"attn_rotary_emb": 16},
    ),
    Shape(
        "falcon-h1", "falcon_h1", "hybrid: attention and Mamba 2 side by side in every layer",
        {**_MAMBA2, "mamba_d_ssm": 192, "head_dim": D_HEAD},
        Modules(final_norm="model.final_layernorm", mlp="feed_forward", mlp_out="feed_forward",
                mlp_last="feed_forward.down_proj", mlp_norm="pre_ff_layernorm", mixer="mamba"),
        mixer_site="mamba_out",
    ),
    Shape(
        "lfm2", "lfm2", "hybrid: short convolutions, with attention in every other layer",
        {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": N_FF, "block_auto_adjust_ff_dim": False},
        Modules(final_norm="model.embedding_norm", z="self_attn.out_proj", mlp="feed_forward", mlp_out="feed_forward",
                mlp_last="feed_forward.w2", mlp_norm="ffn_norm", mixer="conv"),
        mixer_site="model.layers.{}.conv.out_proj",
        lacks={"resid_mid": _UNNAMED, "mlp_out": "its model file gives such a name to what the MLP takes"},
    ),
    Shape(
        "qwen3-next", "qwen3_next", "hybrid: gated delta nets, with gated attention in every other layer; experts",
        {**_EXPERTS, "num_experts": N_EXPERT, "head_dim": D_HEAD, "norm_topk_prob": True, "decoder_sparse_step": 1,
         "shared_expert_intermediate_size": N_FF, "layer_types": ["linear_attention", "full_attention"] * 2,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
         "linear_conv_kernel_dim": 4},
        Modules(mlp_last="", mixer="linear_attn"),
        mixer_site="linear_attn_out",
        options=("--no-mtp",),
    ),
)  # fmt: skip

BY_NAME = {shape.name: shape for shape in SHAPES}
