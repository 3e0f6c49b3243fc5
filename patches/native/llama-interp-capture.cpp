// captures: what they add to a graph

#include "llama-interp-impl.h"

#include "llama-graph.h"

#include <cstdlib>

static void add_part(
        llama_interp * interp, llama_interp_capture & capture, ggml_tensor * t, int32_t head, bool outputs_only, bool direct = false) {
    ggml_set_output(t);
    ggml_build_forward_expand(interp->build->gctx.gf, t);

    capture.parts.push_back({ t, head, outputs_only, direct });
}

// an output keeps its memory until the end of the graph, unless it borrows it from another tensor
static bool can_read_directly(const llama_interp_capture & capture, const ggml_tensor * cur) {
    return !capture.copy && cur->op != GGML_OP_NONE && !cur->view_src && ggml_is_contiguous(cur);
}

bool llama_interp_capture_is_overwritten(const ggml_cgraph * gf, const ggml_tensor * t) {
    const int n_nodes = ggml_graph_n_nodes(const_cast<ggml_cgraph *>(gf));
    for (int i = 0; i < n_nodes; ++i) {
        const ggml_tensor * node = ggml_graph_node(const_cast<ggml_cgraph *>(gf), i);
        if (node->view_src != t) {
            continue;
        }
        switch (node->op) {
            case GGML_OP_VIEW:
            case GGML_OP_RESHAPE:
            case GGML_OP_PERMUTE:
            case GGML_OP_TRANSPOSE:
                break;
            default:
                return true; // an operation in place
        }
    }
    return false;
}

void llama_interp_capture_attn_add(llama_interp * interp, llama_interp_capture & capture, ggml_tensor * t, int32_t head, bool outputs_only) {
    add_part(interp, capture, t, head, outputs_only);
}

// scores on the main path: [n_kv, n_query, n_head]
static void build_attn(llama_interp * interp, llama_interp_capture & capture, ggml_tensor * cur) {
    auto * ctx0 = interp->build->gctx.ctx0;

    ggml_tensor * ids = nullptr;
    if (!capture.ranges.empty()) {
        ids = llama_interp_build_row_ids(interp, capture.ranges, false);
        if (!ids) {
            return;
        }
    }

    std::vector<int32_t> heads = capture.heads;
    if (heads.empty() && ids) {
        // get_rows wants its indices for each head
        for (int32_t h = 0; h < cur->ne[2]; ++h) {
            heads.push_back(h);
        }
    }
    if (heads.empty()) {
        const bool direct = can_read_directly(capture, cur);
        add_part(interp, capture, direct ? cur : ggml_cont(ctx0, cur), -1, false, direct);
        return;
    }
    if (!llama_interp_build_room(interp, 4*heads.size())) {
        return;
    }
    for (const int32_t head : heads) {
        if (head < 0 || head >= cur->ne[2]) {
            interp->fail("head " + std::to_string(head) + " at " + capture.target.str() + ": the layer has " + std::to_string(cur->ne[2]) + " heads");
            return;
        }
        ggml_tensor * t = ggml_view_3d(ctx0, cur, cur->ne[0], cur->ne[1], 1, cur->nb[1], cur->nb[2], head*cur->nb[2]);
        t = ids ? ggml_get_rows(ctx0, t, ids) : ggml_cont(ctx0, t);
        add_part(interp, capture, t, head, false);
    }
}

// elements of one index of an axis, of the dimensions below it
static int64_t count_below(const ggml_tensor * t, int32_t axis) {
    int64_t res = 1;
    for (int d = 0; d < axis; ++d) {
        res *= t->ne[d];
    }
    return res;
}

void llama_interp_capture_build(llama_interp * interp, llama_interp_capture & capture, ggml_tensor * cur) {
    const auto & gctx = interp->build->gctx;

    if (!llama_interp_build_room(interp, 8)) {
        return;
    }
    llama_interp_build_scope scope(*interp->build);

    auto * ctx0 = gctx.ctx0;

    if (cur->type == GGML_TYPE_F16 || cur->type == GGML_TYPE_BF16) {
        cur = ggml_cast(ctx0, cur, GGML_TYPE_F32);
    }
    if (cur->type != GGML_TYPE_F32 && cur->type != GGML_TYPE_I32) {
        interp->fail(capture.target.str() + " has type " + ggml_type_name(cur->type) + ", which cannot be read");
        return;
    }
    if (capture.kind == LLAMA_INTERP_CAPTURE_ATTN) {
        build_attn(interp, capture, cur);
        return;
    }

    const int32_t axis = capture.rows_axis;

    if (capture.stats && (axis < 1 || cur->type != GGML_TYPE_F32 || ggml_nelements(cur) != count_below(cur, axis)*cur->ne[axis])) {
        interp->fail("no statistics at " + capture.target.str() + ": its rows are not tokens with float channels");
        return;
    }

    const int64_t n_rows       = axis >= 0 ? cur->ne[axis] : 1;
    const bool    outputs_only = n_rows != gctx.n_tokens && n_rows == gctx.n_outputs;

    // statistics choose their rows on the host, without a copy
    if (capture.ranges.empty() || capture.stats) {
        const bool direct = can_read_directly(capture, cur);
        add_part(interp, capture, direct ? cur : ggml_cont(ctx0, cur), -1, outputs_only, direct);
        return;
    }

    const int64_t n_below = count_below(cur, axis);
    if (axis < 1 || n_below*n_rows != ggml_nelements(cur)) {
        interp->fail("positions cannot be chosen at " + capture.target.str() + ": its rows are not tokens");
        return;
    }

    ggml_tensor * ids = llama_interp_build_row_ids(interp, capture.ranges, outputs_only);
    if (!ids) {
        return;
    }

    ggml_tensor * t = ggml_get_rows(ctx0, ggml_cont_2d(ctx0, cur, n_below, n_rows), ids);
    if (axis == 2) {
        t = ggml_reshape_3d(ctx0, t, cur->ne[0], cur->ne[1], ids->ne[0]);
    } else if (axis == 3) {
        t = ggml_reshape_4d(ctx0, t, cur->ne[0], cur->ne[1], cur->ne[2], ids->ne[0]);
    }
    add_part(interp, capture, t, -1, outputs_only);
}
