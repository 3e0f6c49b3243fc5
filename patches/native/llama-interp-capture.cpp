// captures: copies inside the graph, gathered after each ubatch

#include "llama-interp-impl.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-hparams.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

//
// build
//

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

//
// gather
//

const llama_kv_cache * llama_interp_find_cache(const llama_interp * interp, int32_t il) {
    llama_memory_i * memory = interp->lctx->get_memory();

    const bool is_swa = interp->lctx->get_model().hparams.is_swa(il);

    if (auto * kv = dynamic_cast<llama_kv_cache *>(memory)) {
        return kv;
    }
    if (auto * kv = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return is_swa ? kv->get_swa() : kv->get_base();
    }
    if (auto * kv = dynamic_cast<llama_memory_hybrid *>(memory)) {
        return kv->get_mem_attn();
    }
    if (auto * kv = dynamic_cast<llama_memory_hybrid_iswa *>(memory)) {
        return is_swa ? kv->get_mem_attn()->get_swa() : kv->get_mem_attn()->get_base();
    }
    return nullptr;
}

static std::shared_ptr<const llama_interp_cells> find_cells(const llama_kv_cache * kv, const llama_interp_rows & rows, int64_t n_kv) {
    auto res = std::make_shared<llama_interp_cells>();

    for (const llama_seq_id seq : rows.seq) {
        if (res->count(seq)) {
            continue;
        }
        auto & cells = (*res)[seq];
        if (!kv) {
            // no cache: the keys are the rows themselves
            for (int32_t i = 0; i < (int32_t) n_kv; ++i) {
                cells.push_back(i);
            }
            continue;
        }
        for (const auto & pos_cell : kv->get_cells(seq).seq_pos_get(seq)) {
            cells.push_back((int32_t) pos_cell.second);
        }
    }
    return res;
}

static int64_t count_keys(const llama_interp_cells & cells) {
    int64_t n_key = 0;
    for (const auto & seq_cells : cells) {
        n_key = std::max<int64_t>(n_key, seq_cells.second.size());
    }
    return n_key;
}

static bool is_straight(const std::vector<int32_t> & cells) {
    for (size_t i = 0; i < cells.size(); ++i) {
        if (cells[i] != (int32_t) i) {
            return false;
        }
    }
    return true;
}

// keys that a row's sequence does not have
static float get_fill(const llama_interp_capture & capture) {
    return capture.target.name == LLAMA_INTERP_ATTN_LOGITS ? -INFINITY : 0.0f;
}

// [n_kv, n_rows, n_head] of the cache's cells to [n_key, n_rows, n_head] of the sequence's tokens
static void trim_keys(
        const llama_interp_capture & capture,
        const llama_interp_cells & all_cells, const llama_interp_rows & rows, const int64_t * ne, const float * src,
        float * dst, int64_t n_key) {
    const float fill   = get_fill(capture);
    const bool  masked = fill < 0.0f;

    for (int64_t r = 0; r < ne[1]; ++r) {
        const auto & cells    = all_cells.at(rows.seq[r]);
        const size_t n_cells  = cells.size();
        const bool   straight = is_straight(cells) && (int64_t) n_cells <= ne[0];

        for (int64_t h = 0; h < ne[2]; ++h) {
            const float * in  = src + (h*ne[1] + r)*ne[0];
            float       * out = dst + (h*ne[1] + r)*n_key;

            if (straight) {
                memcpy(out, in, n_cells*sizeof(float));
            } else {
                for (size_t c = 0; c < n_cells; ++c) {
                    out[c] = cells[c] < ne[0] ? in[cells[c]] : fill;
                }
            }
            std::fill(out + n_cells, out + n_key, fill);
            if (masked) {
                std::replace_if(out, out + n_cells, [](float x) { return x <= LLAMA_INTERP_MASKED*1e-4f; }, fill);
            }
        }
    }
}

namespace {

// what of this ubatch the graph's rows are; shared between the captures
struct ubatch_rows {
    const llama_ubatch & ubatch;

    std::map<std::pair<bool, const std::vector<llama_interp_range> *>, llama_interp_rows_ptr> cache;

    llama_interp_rows_ptr get(bool outputs_only, const std::vector<llama_interp_range> & ranges) {
        auto & res = cache[{ outputs_only, ranges.empty() ? nullptr : &ranges }];
        if (res) {
            return res;
        }
        llama_interp_rows all = llama_interp_rows_init(ubatch, outputs_only);
        if (!ranges.empty()) {
            llama_interp_rows chosen;
            for (const int32_t i : llama_interp_rows_find(all, ranges)) {
                chosen.pos.push_back(all.pos[i]);
                chosen.seq.push_back(all.seq[i]);
            }
            all = std::move(chosen);
        }
        res = std::make_shared<const llama_interp_rows>(std::move(all));
        return res;
    }
};

} // namespace

static llama_interp_chunk read_part(
        const llama_interp_capture & capture, const llama_interp_capture::part & part, const void * src,
        llama_interp_rows_ptr rows, const llama_interp_cells * cells) {
    llama_interp_chunk chunk;

    memcpy(chunk.ne, part.t->ne, sizeof(chunk.ne));
    chunk.rows    = rows;
    chunk.first   = &part == &capture.parts.front();
    chunk.ne[0]   = cells ? count_keys(*cells) : part.t->ne[0];
    chunk.n_bytes = chunk.ne[0]*chunk.ne[1]*chunk.ne[2]*chunk.ne[3]*ggml_type_size(part.t->type);
    chunk.data.reset((uint8_t *) malloc(std::max<size_t>(chunk.n_bytes, 1)));
    if (!chunk.data) {
        throw std::runtime_error("no memory for " + std::to_string(chunk.n_bytes) + " bytes of " + capture.target.str());
    }

    if (cells) {
        trim_keys(capture, *cells, *rows, part.t->ne, (const float *) src, (float *) chunk.data.get(), chunk.ne[0]);
    } else {
        memcpy(chunk.data.get(), src, chunk.n_bytes);
    }
    return chunk;
}

static void add_stats(llama_interp * interp, llama_interp_capture & capture, const llama_interp_capture::part & part, const void * src, const llama_interp_rows & rows) {
    const int64_t n_channels = ggml_nelements(part.t)/std::max<int64_t>(part.t->ne[capture.rows_axis], 1);

    llama_interp_stats_add(*capture.stats, (const float *) src, n_channels, rows, capture.ranges, interp->tokens);
}

void llama_interp_capture_gather(llama_interp * interp, const llama_ubatch & ubatch) {
    ubatch_rows rows = { ubatch, {} };

    std::map<std::pair<const llama_kv_cache *, const llama_interp_rows *>, std::shared_ptr<const llama_interp_cells>> cells;

    const std::vector<llama_interp_range> everything;

    std::vector<std::pair<llama_interp_capture *, const llama_interp_capture::part *>> parts;
    std::vector<ggml_tensor *> tensors;
    for (auto & capture : interp->captures) {
        for (const auto & part : capture.parts) {
            parts  .push_back({ &capture, &part });
            tensors.push_back(part.t);
        }
    }

    llama_interp_read_tensors(interp, tensors, [&](size_t i, const void * src) {
        auto & capture = *parts[i].first;
        auto & part    = *parts[i].second;

        const auto part_rows = rows.get(part.outputs_only, capture.stats ? everything : capture.ranges);

        const llama_interp_cells * part_cells = nullptr;
        if (capture.kind == LLAMA_INTERP_CAPTURE_ATTN) {
            const auto * kv = llama_interp_find_cache(interp, capture.target.il);

            auto & found = cells[{ kv, part_rows.get() }];
            if (!found) {
                found = find_cells(kv, *part_rows, part.t->ne[0]);
            }
            part_cells = found.get();
        }
        capture.type = part.t->type;
        if (capture.stats) {
            add_stats(interp, capture, part, src, *part_rows);
        } else {
            capture.chunks.push_back(read_part(capture, part, src, part_rows, part_cells));
        }
    });
}

//
// read
//

static const llama_interp_capture * find_capture(const llama_interp * interp, int32_t id) {
    return id >= 0 && id < (int32_t) interp->captures.size() ? &interp->captures[id] : nullptr;
}

static int64_t count_keys(const llama_interp_capture & capture) {
    int64_t n_key = 0;
    for (const auto & chunk : capture.chunks) {
        n_key = std::max(n_key, chunk.ne[0]);
    }
    return n_key;
}

static int32_t count_heads(const llama_interp_capture & capture) {
    int32_t n_head = 0;
    for (size_t i = 0; i < capture.chunks.size(); ++i) {
        if (i > 0 && capture.chunks[i].first) {
            break;
        }
        n_head += (int32_t) capture.chunks[i].ne[2];
    }
    return n_head;
}

int32_t llama_interp_capture_get_info(const llama_interp * interp, int32_t id, llama_interp_capture_info * info) {
    const auto * capture = find_capture(interp, id);
    if (!capture || info->size != sizeof(*info)) {
        return -1;
    }

    *info = {};
    info->size      = sizeof(*info);
    info->type      = capture->type;
    info->rows_axis = capture->rows_axis;
    for (int d = 0; d < 4; ++d) {
        info->ne[d] = capture->chunks.empty() ? 0 : capture->chunks[0].ne[d];
    }

    for (const auto & chunk : capture->chunks) {
        if (chunk.first) {
            info->n_rows += (int32_t) chunk.rows->pos.size();
        }
    }

    if (capture->kind == LLAMA_INTERP_CAPTURE_ATTN) {
        info->rows_axis = 1;
        info->ne[0]     = count_keys(*capture);
        info->ne[1]     = info->n_rows;
        info->ne[2]     = count_heads(*capture);
        info->ne[3]     = 1;
        return 0;
    }
    if (capture->rows_axis >= 0 && !capture->chunks.empty()) {
        info->ne[capture->rows_axis] = 0;
        for (const auto & chunk : capture->chunks) {
            info->ne[capture->rows_axis] += chunk.ne[capture->rows_axis];
        }
    }
    return 0;
}

static void read_attn(const llama_interp_capture & capture, const llama_interp_capture_info & info, float * dst) {
    const int64_t n_key   = info.ne[0];
    const int64_t n_query = info.ne[1];

    int64_t row0 = 0;
    int64_t h0   = 0;
    for (size_t i = 0; i < capture.chunks.size(); ++i) {
        const auto & chunk = capture.chunks[i];

        if (i > 0 && chunk.first) {
            row0 += capture.chunks[i - 1].rows->pos.size();
            h0    = 0;
        }

        const float * src = (const float *) chunk.data.get();
        float       * out = dst + (h0*n_query + row0)*n_key;

        // later ubatches may have brought more keys
        for (int64_t h = 0; h < chunk.ne[2]; ++h) {
            for (int64_t r = 0; r < chunk.ne[1]; ++r) {
                float * row = out + (h*n_query + r)*n_key;
                memcpy(row, src + (h*chunk.ne[1] + r)*chunk.ne[0], chunk.ne[0]*sizeof(float));
                std::fill(row + chunk.ne[0], row + n_key, get_fill(capture));
            }
        }
        h0 += chunk.ne[2];
    }
}

int32_t llama_interp_capture_read(const llama_interp * interp, int32_t id, void * dst, size_t n_bytes) {
    llama_interp_capture_info info = {};
    info.size = sizeof(info);

    const auto * capture = find_capture(interp, id);
    if (!capture || llama_interp_capture_get_info(interp, id, &info) != 0) {
        return -1;
    }
    for (const auto & chunk : capture->chunks) {
        if (!chunk.data) {
            return -1; // taken
        }
    }
    if (n_bytes != (size_t) (info.ne[0]*info.ne[1]*info.ne[2]*info.ne[3])*sizeof(float)) {
        return -1;
    }
    if (capture->kind == LLAMA_INTERP_CAPTURE_ATTN) {
        read_attn(*capture, info, (float *) dst);
        return 0;
    }

    // join the chunks along the rows
    const int32_t axis = capture->rows_axis >= 0 ? capture->rows_axis : 3;

    int64_t offset = 0;
    for (const auto & chunk : capture->chunks) {
        int64_t n_below = sizeof(float);
        int64_t n_above = 1;
        for (int d = 0; d < 4; ++d) {
            n_below *= d <= axis ? chunk.ne[d] : 1;
            n_above *= d >  axis ? chunk.ne[d] : 1;
        }
        const int64_t stride = n_below/std::max<int64_t>(chunk.ne[axis], 1)*info.ne[axis];
        for (int64_t a = 0; a < n_above; ++a) {
            memcpy((uint8_t *) dst + a*stride + offset, chunk.data.get() + a*n_below, n_below);
        }
        offset += n_below;
        if (capture->rows_axis < 0) {
            break; // the same for every ubatch
        }
    }
    return 0;
}

void * llama_interp_capture_take(llama_interp * interp, int32_t id, size_t n_bytes) {
    if (!find_capture(interp, id)) {
        return nullptr;
    }
    auto & chunks = interp->captures[id].chunks;
    if (chunks.size() != 1 || chunks[0].n_bytes != n_bytes) {
        return nullptr;
    }
    return chunks[0].data.release();
}

void llama_interp_capture_free(void * data) {
    free(data);
}

int32_t llama_interp_capture_rows(const llama_interp * interp, int32_t id, int32_t * pos, int32_t * seq) {
    const auto * capture = find_capture(interp, id);
    if (!capture) {
        return -1;
    }
    int32_t n = 0;
    for (const auto & chunk : capture->chunks) {
        if (!chunk.first) {
            continue;
        }
        const auto & rows = *chunk.rows;
        for (size_t r = 0; r < rows.pos.size(); ++r, ++n) {
            pos[n] = rows.pos[r];
            seq[n] = rows.seq[r];
        }
    }
    return n;
}

void llama_interp_capture_clear(llama_interp * interp) {
    for (auto & capture : interp->captures) {
        capture.chunks.clear();
    }
}
