// the head: logits of chosen rows, and of chosen tokens of the vocabulary

#include "llama-interp-impl.h"

#include <cstring>

// after the last norm: only the rows whose logits are wanted go on to the head
void llama_interp_head_rows(llama_interp * interp, ggml_tensor *& cur) {
    auto & build = *interp->build;

    if (cur->ne[1] != build.gctx.n_tokens || ggml_nrows(cur) != cur->ne[1]) {
        interp->fail("logits can be chosen only where all tokens are outputs");
        return;
    }
    if (!llama_interp_build_room(interp, 2)) {
        return;
    }

    llama_interp_build_scope scope(build);

    ggml_tensor * ids = llama_interp_build_row_ids(interp, interp->logits_ranges, false);
    if (!ids) {
        llama_interp_graph_stop(interp, cur);
        return;
    }
    cur = ggml_get_rows(build.gctx.ctx0, cur, ids);
}

// rows of a weight can be looked at by themselves only where they lie as the type says: repacked ones do not
static bool has_plain_rows(const ggml_tensor * w) {
    return w->op == GGML_OP_NONE && !w->view_src && w->buffer && ggml_backend_buffer_is_host(w->buffer) && ggml_is_contiguous(w);
}

// the logit of one token, from the expression that gives those of all; null for an expression of another kind
static ggml_tensor * logit_of(ggml_context * ctx, ggml_tensor * all, int64_t n_vocab, int32_t id) {
    if (all->ne[0] != n_vocab) {
        return nullptr;
    }
    ggml_tensor * a = all->src[0];
    ggml_tensor * b = all->src[1];

    if (all->op == GGML_OP_MUL_MAT) {
        if (!has_plain_rows(a) || ggml_n_dims(a) != 2) {
            return nullptr;
        }
        ggml_tensor * res = ggml_mul_mat(ctx, ggml_view_2d(ctx, a, a->ne[0], 1, a->nb[1], id*a->nb[1]), b);
        memcpy(res->op_params, all->op_params, sizeof(res->op_params));
        return res;
    }

    const bool unary    = all->op == GGML_OP_SCALE || all->op == GGML_OP_UNARY;
    const bool one      = b && b->ne[0] == 1;
    const bool for_each = b && has_plain_rows(b) && ggml_n_dims(b) == 1 && b->ne[0] == n_vocab;
    if (!unary && !((all->op == GGML_OP_ADD || all->op == GGML_OP_MUL) && (one || for_each))) {
        return nullptr;
    }

    ggml_tensor * x = logit_of(ctx, a, n_vocab, id);
    if (!x) {
        return nullptr;
    }
    if (!unary) {
        ggml_tensor * y = one ? b : ggml_view_1d(ctx, b, 1, id*b->nb[0]);
        return all->op == GGML_OP_ADD ? ggml_add(ctx, x, y) : ggml_mul(ctx, x, y);
    }
    ggml_tensor * res = ggml_dup_tensor(ctx, x);
    res->op     = all->op;
    res->src[0] = x;
    memcpy(res->op_params, all->op_params, sizeof(res->op_params));
    return res;
}

void llama_interp_head_ids(llama_interp * interp, ggml_tensor *& cur) {
    auto & build = *interp->build;

    // for each token at most a view and a node of each operation, and what joins them
    if (!llama_interp_build_room(interp, 16*(int) interp->logits_ids.size())) {
        return;
    }
    llama_interp_build_scope scope(build);

    ggml_tensor * res = nullptr;
    for (const int32_t id : interp->logits_ids) {
        ggml_tensor * one = logit_of(build.gctx.ctx0, cur, cur->ne[0], id);
        if (!one) {
            return; // all of them, then
        }
        res = res ? ggml_concat(build.gctx.ctx0, res, one, 0) : one;
    }
    cur = res;
}
