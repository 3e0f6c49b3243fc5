// captures: what a computed graph left, taken after each ubatch

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
#include <cstdlib>
#include <cstring>
#include <stdexcept>

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

// [n_kv, n_rows, n_head] of the cache's cells to [n_key, n_rows, n_head] of the sequence's tokens
static void trim_keys(
        const llama_interp_capture & capture,
        const llama_interp_cells & all_cells, const llama_interp_rows & rows, const int64_t * ne, const float * src,
        float * dst, int64_t n_key) {
    const float fill   = llama_interp_capture_fill(capture);
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
