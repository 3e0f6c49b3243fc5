// attention: scores and logits beside flash attention, and the path on which they can be edited

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-hparams.h"

#include <cstring>

// what the model does to the raw product of q and k before scale and mask
static ggml_tensor * build_cap(const llm_graph_context & gctx, ggml_tensor * kq, ggml_tensor * kq_b) {
    auto * ctx0 = gctx.ctx0;

    const float cap = gctx.hparams.f_attn_logit_softcapping;

    if (gctx.arch == LLM_ARCH_GROK) {
        kq = ggml_tanh (ctx0, ggml_scale(ctx0, kq, gctx.hparams.f_attn_out_scale/cap));
        kq = ggml_scale(ctx0, kq, cap);
    }
    if (gctx.hparams.attn_soft_cap) {
        kq = ggml_scale(ctx0, kq, 1.0f/cap);
        kq = ggml_tanh (ctx0, kq);
        kq = ggml_scale(ctx0, kq, cap);
    }
    if (kq_b) {
        kq = ggml_add(ctx0, kq, kq_b);
    }
    return kq;
}

// kq*scale + mask, the argument of the softmax as a tensor of its own
// a masked key holds LLAMA_INTERP_MASKED: an edit limited to some rows multiplies the others by zero, and infinity
// times zero is no number
static ggml_tensor * build_logits(const llm_graph_context & gctx, ggml_tensor * kq, ggml_tensor * kq_mask, float kq_scale) {
    auto * ctx0 = gctx.ctx0;

    ggml_tensor * cur = ggml_scale(ctx0, kq, kq_scale);
    if (!kq_mask) {
        return cur;
    }

    ggml_tensor * mask = kq_mask->type == GGML_TYPE_F32 ? ggml_cont(ctx0, kq_mask) : ggml_cast(ctx0, kq_mask, GGML_TYPE_F32);

    mask = ggml_clamp(ctx0, mask, LLAMA_INTERP_MASKED, -LLAMA_INTERP_MASKED);

    const float max_bias = gctx.hparams.f_max_alibi_bias;
    if (max_bias > 0.0f) {
        // the slopes of ALiBi as the softmax computes them, one for each head
        const int64_t  n_head      = kq->ne[2];
        const uint32_t n_head_log2 = 1u << (uint32_t) floor(log2(n_head));
        const float    m0          = powf(2.0f, -(max_bias       )/n_head_log2);
        const float    m1          = powf(2.0f, -(max_bias/2.0f)/n_head_log2);

        ggml_tensor * sloped = nullptr;
        for (int64_t h = 0; h < n_head; ++h) {
            const float slope = h < n_head_log2 ? powf(m0, h + 1) : powf(m1, 2*(h - n_head_log2) + 1);
            ggml_tensor * m = ggml_scale(ctx0, mask, slope);
            sloped = sloped ? ggml_concat(ctx0, sloped, m, 2) : m;
        }
        mask = sloped;
    }
    return ggml_add(ctx0, cur, mask);
}

static ggml_tensor * build_soft_max(
        const llm_graph_context & gctx,
                    ggml_tensor * kq,
                    ggml_tensor * kq_mask,
                    ggml_tensor * sinks,
                          float   kq_scale) {
    kq = ggml_soft_max_ext(gctx.ctx0, kq, kq_mask, kq_scale, gctx.hparams.f_max_alibi_bias);
    ggml_soft_max_add_sinks(kq, sinks);
    return kq;
}

//
// side branch
//

namespace {

struct attn_side {
    ggml_tensor * q;       // [n_embd_head, n_query, n_head]
    ggml_tensor * k;       // [n_embd_head, n_kv,    n_head_kv]
    ggml_tensor * kq_b;
    ggml_tensor * kq_mask; // [n_kv, n_query]
    ggml_tensor * sinks;   // [n_head]
    float         kq_scale;
};

} // namespace

// q and mask of chosen queries; false if the ubatch holds none
static bool select_queries(llama_interp * interp, attn_side & side, const std::vector<llama_interp_range> & ranges) {
    const auto & gctx = interp->build->gctx;

    ggml_tensor * ids = llama_interp_build_row_ids(interp, ranges, false);
    if (!ids) {
        return false;
    }

    auto * ctx0 = gctx.ctx0;

    const int64_t n_embd_head = side.q->ne[0];
    const int64_t n_head      = side.q->ne[2];

    ggml_tensor * q = ggml_cont_2d(ctx0, ggml_permute(ctx0, side.q, 0, 2, 1, 3), n_embd_head*n_head, side.q->ne[1]);

    q = ggml_get_rows  (ctx0, q, ids);
    q = ggml_reshape_3d(ctx0, q, n_embd_head, n_head, ids->ne[0]);

    side.q = ggml_permute(ctx0, q, 0, 2, 1, 3);

    if (side.kq_mask) {
        side.kq_mask = ggml_get_rows(ctx0, side.kq_mask, ids);
    }
    return true;
}

// flash attention wants the mask in half precision, the softmax is faster with floats: one conversion for all layers
static ggml_tensor * widen_mask(llama_interp * interp, ggml_tensor * kq_mask) {
    if (!kq_mask || kq_mask->type == GGML_TYPE_F32 || !llama_interp_build_room(interp, 1)) {
        return kq_mask;
    }

    auto & res = interp->build->masks[kq_mask];
    if (!res) {
        llama_interp_build_scope scope(*interp->build);
        res = ggml_cast(interp->build->gctx.ctx0, kq_mask, GGML_TYPE_F32);
    }
    return res;
}

// one head of its own: the others cost nothing
static attn_side select_head(const llm_graph_context & gctx, const attn_side & side, int32_t head) {
    auto * ctx0 = gctx.ctx0;

    const int64_t n_head    = side.q->ne[2];
    const int64_t n_head_kv = side.k->ne[2];

    const auto & q = side.q;
    const auto & k = side.k;

    attn_side res = side;
    res.q = ggml_view_3d(ctx0, q, q->ne[0], q->ne[1], 1, q->nb[1], q->nb[2], head*q->nb[2]);
    res.k = ggml_view_3d(ctx0, k, k->ne[0], k->ne[1], 1, k->nb[1], k->nb[2], head/(n_head/n_head_kv)*k->nb[2]);
    if (side.sinks) {
        res.sinks = ggml_view_1d(ctx0, side.sinks, 1, head*side.sinks->nb[0]);
    }
    return res;
}

static ggml_tensor * build_side(const llm_graph_context & gctx, const attn_side & side, bool logits) {
    ggml_tensor * kq = ggml_mul_mat(gctx.ctx0, side.k, side.q);
    ggml_prec_set_acc(kq, GGML_PREC_F32);

    kq = build_cap(gctx, kq, side.kq_b);

    return logits ?
        build_logits  (gctx, kq, side.kq_mask,             side.kq_scale) :
        build_soft_max(gctx, kq, side.kq_mask, side.sinks, side.kq_scale);
}

static void capture_side(llama_interp * interp, llama_interp_capture & capture, attn_side side, bool logits) {
    const auto & gctx = interp->build->gctx;

    capture.target.hit = true;

    if (!llama_interp_build_room(interp, 16 + 16*capture.heads.size() + (gctx.hparams.f_max_alibi_bias > 0.0f ? 4*side.q->ne[2] : 0))) {
        return;
    }

    llama_interp_build_scope scope(*interp->build);

    if (!capture.ranges.empty() && !select_queries(interp, side, capture.ranges)) {
        return;
    }

    // the slope of ALiBi depends on the number of heads in the tensor, a bias has all heads
    const bool whole = capture.heads.empty() || gctx.hparams.f_max_alibi_bias > 0.0f || side.kq_b;
    if (whole) {
        llama_interp_capture_attn_add(interp, capture, build_side(gctx, side, logits), -1, false);
        return;
    }
    for (const int32_t head : capture.heads) {
        if (head < 0 || head >= side.q->ne[2]) {
            interp->fail("head " + std::to_string(head) + " at " + capture.target.str() + ": the layer has " + std::to_string(side.q->ne[2]) + " heads");
            return;
        }
        llama_interp_capture_attn_add(interp, capture, build_side(gctx, select_head(gctx, side, head), logits), head, false);
    }
}

void llama_interp_attn_side(
        const llm_graph_context & gctx,
                    ggml_tensor * q,
                    ggml_tensor * k,
                    ggml_tensor * kq_b,
                    ggml_tensor * kq_mask,
                    ggml_tensor * sinks,
                          float   kq_scale,
                            int   il) {
    auto * interp = gctx.cparams.interp;
    if (!interp || !interp->build || interp->failed || interp->build->stopped) {
        return;
    }

    const bool flash = gctx.cparams.flash_attn && !kq_b && !llama_interp_attn_eager(gctx, il);

    attn_side side = { q, k, kq_b, kq_mask, sinks, kq_scale };

    if (interp->scanning) {
        ggml_tensor * logits = build_side(gctx, side, true);
        llama_interp_graph_tensor(gctx, logits, LLAMA_INTERP_ATTN_LOGITS, il);
        if (flash) {
            ggml_tensor * scores = build_side(gctx, side, false);
            llama_interp_graph_tensor(gctx, scores, LLAMA_INTERP_ATTN_SCORES, il);
        }
        return;
    }

    if (k->ne[3] != 1 && (interp->wants(LLAMA_INTERP_ATTN_SCORES, il) || interp->wants(LLAMA_INTERP_ATTN_LOGITS, il))) {
        interp->fail("attention can be read only from a unified KV cache");
        return;
    }

    if (interp->wants(LLAMA_INTERP_ATTN_SCORES, il) || interp->wants(LLAMA_INTERP_ATTN_LOGITS, il)) {
        side.kq_mask = widen_mask(interp, kq_mask);
    }

    for (auto & capture : interp->captures) {
        if (capture.target.il != il || interp->failed) {
            continue;
        }
        // without flash attention the scores are a tensor of the main path; logits are one only where they are edited
        if (flash && capture.target.name == LLAMA_INTERP_ATTN_SCORES) {
            capture_side(interp, capture, side, false);
        }
        if (capture.target.name == LLAMA_INTERP_ATTN_LOGITS && !interp->edits_at(LLAMA_INTERP_ATTN_LOGITS, il)) {
            capture_side(interp, capture, side, true);
        }
    }
}

//
// main path without flash attention
//

bool llama_interp_attn_eager(const llm_graph_context & gctx, int il) {
    const auto * interp = gctx.cparams.interp;
    if (!interp || !interp->build || interp->scanning) {
        return false;
    }
    return interp->edits_at(LLAMA_INTERP_ATTN_SCORES, il) || interp->edits_at(LLAMA_INTERP_ATTN_LOGITS, il);
}

// the product of keys and packed queries: the CPU's kernel for blocks refuses queries that are a view
static void pack_queries(const llm_graph_context & gctx, ggml_tensor *& kq) {
    auto * interp = gctx.cparams.interp;
    if (kq->op != GGML_OP_MUL_MAT || ggml_is_contiguous(kq->src[1]) || !llama_interp_build_room(interp, 2)) {
        return;
    }
    llama_interp_build_scope scope(*interp->build);

    ggml_tensor * packed = ggml_mul_mat(gctx.ctx0, kq->src[0], ggml_cont(gctx.ctx0, kq->src[1]));
    memcpy(packed->op_params, kq->op_params, sizeof(packed->op_params));

    kq = packed;
}

void llama_interp_attn_logits(const llm_graph_context & gctx, ggml_tensor *& kq, ggml_tensor *& kq_mask, float & kq_scale, int il) {
    auto * interp = gctx.cparams.interp;
    if (!interp || !interp->build || interp->scanning || interp->failed) {
        return;
    }
    if (interp->pack_queries) {
        pack_queries(gctx, kq);
    }
    if (!interp->edits_at(LLAMA_INTERP_ATTN_LOGITS, il)) {
        return;
    }
    const bool alibi = gctx.hparams.f_max_alibi_bias > 0.0f;
    if (!llama_interp_build_room(interp, 8 + (alibi ? 4*kq->ne[2] : 0))) {
        return;
    }

    {
        llama_interp_build_scope scope(*interp->build);

        kq = build_logits(gctx, kq, kq_mask, kq_scale);

        // scale and mask are folded in; ALiBi demands a mask, its slopes times zero change nothing
        ggml_tensor * zero = alibi ? ggml_fill(gctx.ctx0, ggml_new_tensor_2d(gctx.ctx0, GGML_TYPE_F32, kq->ne[0], kq->ne[1]), 0.0f) : nullptr;

        kq_mask  = zero;
        kq_scale = 1.0f;
    }

    llama_interp_graph_tensor(gctx, kq, LLAMA_INTERP_ATTN_LOGITS, il);
}

void llama_interp_attn_scores(const llm_graph_context & gctx, ggml_tensor *& kq, int il) {
    llama_interp_graph_tensor(gctx, kq, LLAMA_INTERP_ATTN_SCORES, il);
}

void llama_interp_attn_proj(const llm_graph_context & gctx, ggml_tensor *& cur, const ggml_tensor * wo, int il) {
    if (wo) {
        llama_interp_graph_tensor(gctx, cur, LLAMA_INTERP_ATTN_PROJ, il);
    }
}
