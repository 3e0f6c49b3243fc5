#pragma once

// what the call sites of the patch series call
// without an attached llama_interp each of these returns at once

#include <cstdint>

class  llm_graph_result;
struct ggml_tensor;
struct llama_context;
struct llama_cparams;
struct llama_ubatch;
struct llm_graph_context;

//
// graph
//

// a graph starts to be built
void llama_interp_graph_begin(const llm_graph_context & gctx);

// a tensor got its name: read it, and replace it before its first use
void llama_interp_graph_tensor(const llm_graph_context & gctx, ggml_tensor *& cur, const char * name, int il);

// the graph is complete: cut it where a partial run ends
// returns false if the graph must not run (the reason is kept for the caller of llama_interp_decode)
bool llama_interp_graph_end(const llm_graph_context & gctx);

// the graph was computed: gather what was read
void llama_interp_graph_done(llama_context & lctx, const llm_graph_result & res, const llama_ubatch & ubatch);

// nodes to reserve beside those of the model
uint32_t llama_interp_graph_n_nodes(const llama_cparams & cparams);

// false if the logits of outputs go elsewhere: no room need be kept for them
bool llama_interp_outputs_have_logits(const llama_cparams & cparams);

//
// attention
//

// before the attention: scores and logits in a branch of their own, for reading only
void llama_interp_attn_side(
        const llm_graph_context & gctx,
                    ggml_tensor * q,
                    ggml_tensor * k,
                    ggml_tensor * kq_b,
                    ggml_tensor * kq_mask,
                    ggml_tensor * sinks,
                          float   kq_scale,
                            int   il);

// true if the layer has to take the path without flash attention, because an edit sits inside it
bool llama_interp_attn_eager(const llm_graph_context & gctx, int il);

// before the softmax of that path: "attn_logits", if edited, with scale and mask folded in
void llama_interp_attn_logits(const llm_graph_context & gctx, ggml_tensor *& kq, ggml_tensor *& kq_mask, float & kq_scale, int il);

// after the softmax of that path: "attn_scores"
void llama_interp_attn_scores(const llm_graph_context & gctx, ggml_tensor *& kq, int il);

// after the output projection: "attn_proj"
void llama_interp_attn_proj(const llm_graph_context & gctx, ggml_tensor *& cur, const ggml_tensor * wo, int il);
