// layout report: what a caller in another language relies on

#include "llama-interp.h"

#define SIZE(s)     { #s ".size", sizeof(struct s) }
#define FIELD(s, f) { #s "." #f, offsetof(struct s, f) }

static const llama_interp_abi_entry entries[] = {
    { "version", LLAMA_INTERP_VERSION },

    SIZE (llama_interp_params),
    FIELD(llama_interp_params, n_ctx),
    FIELD(llama_interp_params, n_batch),
    FIELD(llama_interp_params, n_ubatch),
    FIELD(llama_interp_params, n_seq_max),
    FIELD(llama_interp_params, n_gpu_layers),
    FIELD(llama_interp_params, n_threads),
    FIELD(llama_interp_params, type_kv),
    FIELD(llama_interp_params, flash_attn),
    FIELD(llama_interp_params, use_mmap),
    FIELD(llama_interp_params, use_extra_bufts),
    FIELD(llama_interp_params, devices),

    SIZE (llama_interp_info),
    FIELD(llama_interp_info, n_ctx),
    FIELD(llama_interp_info, n_batch),
    FIELD(llama_interp_info, n_ubatch),
    FIELD(llama_interp_info, n_seq_max),
    FIELD(llama_interp_info, n_ctx_train),
    FIELD(llama_interp_info, n_vocab),
    FIELD(llama_interp_info, n_embd),
    FIELD(llama_interp_info, n_layer),
    FIELD(llama_interp_info, n_head),
    FIELD(llama_interp_info, n_head_kv),
    FIELD(llama_interp_info, n_embd_head_k),
    FIELD(llama_interp_info, n_embd_head_v),
    FIELD(llama_interp_info, n_threads),
    FIELD(llama_interp_info, flash_attn),
    FIELD(llama_interp_info, has_memory),
    FIELD(llama_interp_info, has_encoder),
    FIELD(llama_interp_info, is_recurrent),
    FIELD(llama_interp_info, token_bos),
    FIELD(llama_interp_info, token_eos),
    FIELD(llama_interp_info, add_bos),
    FIELD(llama_interp_info, n_params),
    FIELD(llama_interp_info, n_bytes),

    SIZE (llama_interp_device),
    FIELD(llama_interp_device, type),
    FIELD(llama_interp_device, memory_free),
    FIELD(llama_interp_device, memory_total),
    FIELD(llama_interp_device, n_weights),
    FIELD(llama_interp_device, n_cache),
    FIELD(llama_interp_device, n_compute),
    FIELD(llama_interp_device, name),
    FIELD(llama_interp_device, description),
    FIELD(llama_interp_device, backend),

    SIZE (llama_interp_layer),
    FIELD(llama_interp_layer, il),
    FIELD(llama_interp_layer, n_weights),
    FIELD(llama_interp_layer, device),

    SIZE (llama_interp_tensor_info),
    FIELD(llama_interp_tensor_info, type),
    FIELD(llama_interp_tensor_info, ne),
    FIELD(llama_interp_tensor_info, is_input),
    FIELD(llama_interp_tensor_info, rows_axis),

    SIZE (llama_interp_site),
    FIELD(llama_interp_site, il),
    FIELD(llama_interp_site, occurrence),
    FIELD(llama_interp_site, type),
    FIELD(llama_interp_site, ne),
    FIELD(llama_interp_site, rows_axis),
    FIELD(llama_interp_site, is_leaf),
    FIELD(llama_interp_site, name),

    SIZE (llama_interp_range),
    FIELD(llama_interp_range, lo),
    FIELD(llama_interp_range, hi),

    SIZE (llama_interp_batch),
    FIELD(llama_interp_batch, n_tokens),
    FIELD(llama_interp_batch, token),
    FIELD(llama_interp_batch, pos),
    FIELD(llama_interp_batch, seq),
    FIELD(llama_interp_batch, output),

    SIZE (llama_interp_capture_info),
    FIELD(llama_interp_capture_info, type),
    FIELD(llama_interp_capture_info, n_rows),
    FIELD(llama_interp_capture_info, rows_axis),
    FIELD(llama_interp_capture_info, ne),

    SIZE (llama_interp_node),
    FIELD(llama_interp_node, is_leaf),
    FIELD(llama_interp_node, is_output),
    FIELD(llama_interp_node, added),
    FIELD(llama_interp_node, n_src),
    FIELD(llama_interp_node, src),
    FIELD(llama_interp_node, view_src),
    FIELD(llama_interp_node, ne),
    FIELD(llama_interp_node, nb),
    FIELD(llama_interp_node, name),
    FIELD(llama_interp_node, op),
    FIELD(llama_interp_node, type),
    FIELD(llama_interp_node, backend),

    { "ggml_type.f32", GGML_TYPE_F32 },
    { "ggml_type.f16", GGML_TYPE_F16 },
    { "ggml_type.i32", GGML_TYPE_I32 },
    { "ggml_type.q8_0", GGML_TYPE_Q8_0 },
    { "llama_interp_op.count", LLAMA_INTERP_OP_COUNT },
    { "llama_interp_stats.before", LLAMA_INTERP_STATS_BEFORE },
    { "llama_interp_stats.context", LLAMA_INTERP_STATS_CONTEXT },

    { nullptr, 0 },
};

const llama_interp_abi_entry * llama_interp_abi(void) {
    return entries;
}
