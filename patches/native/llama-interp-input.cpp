// inputs that go with every ubatch: which rows an edit means, values for given positions

#include "llama-interp-impl.h"

#include "llama-batch.h"
#include "llama-kv-cache.h"

#include <algorithm>

//
// rows
//

llama_interp_rows llama_interp_rows_init(const llama_ubatch & ubatch, bool outputs_only) {
    llama_interp_rows res;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        if (!outputs_only || ubatch.output[i]) {
            res.pos.push_back(ubatch.pos[i]);
            res.seq.push_back(ubatch.seq_id[i][0]);
        }
    }
    return res;
}

bool llama_interp_ranges_has(const std::vector<llama_interp_range> & ranges, llama_pos pos) {
    return std::any_of(ranges.begin(), ranges.end(), [&](const llama_interp_range & r) {
        return r.lo <= pos && pos < r.hi;
    });
}

std::vector<int32_t> llama_interp_rows_find(const llama_interp_rows & rows, const std::vector<llama_interp_range> & ranges) {
    std::vector<int32_t> res;
    for (size_t i = 0; i < rows.pos.size(); ++i) {
        if (llama_interp_ranges_has(ranges, rows.pos[i])) {
            res.push_back((int32_t) i);
        }
    }
    return res;
}

//
// build
//

static llama_interp_input & add_input(llama_interp * interp, llama_interp_input::kind_t kind, ggml_tensor * t, bool outputs_only) {
    ggml_set_input(t);

    llama_interp_input input;
    input.kind         = kind;
    input.t            = t;
    input.outputs_only = outputs_only;

    interp->inputs.push_back(std::move(input));

    return interp->inputs.back();
}

ggml_tensor * llama_interp_build_row_ids(llama_interp * interp, const std::vector<llama_interp_range> & ranges, bool outputs_only) {
    const auto & gctx = interp->build->gctx;

    const int64_t n_ids = llama_interp_rows_find(llama_interp_rows_init(gctx.ubatch, outputs_only), ranges).size();

    // an empty selection is remembered too: the next ubatch may need another graph
    ggml_tensor * t = n_ids > 0 ? ggml_new_tensor_1d(gctx.ctx0, GGML_TYPE_I32, n_ids) : nullptr;

    if (t) {
        add_input(interp, llama_interp_input::ROW_IDS, t, outputs_only).ranges = ranges;
    } else {
        llama_interp_input input;
        input.kind         = llama_interp_input::ROW_IDS;
        input.t            = nullptr;
        input.outputs_only = outputs_only;
        input.ranges       = ranges;
        interp->inputs.push_back(std::move(input));
    }
    return t;
}

// the frame of a function that gives an edit an input while its graph is built: fn makes the input
// fits: its arguments and the place go together; otherwise says where they do
template <typename F>
static ggml_tensor * make_input(llama_interp * interp, bool fits, const char * otherwise, F fn) {
    return llama_interp_guard<ggml_tensor *>(interp, nullptr, [&]() -> ggml_tensor * {
        if (!interp->build || !interp->build->edit || !fits) {
            interp->error = otherwise;
            return nullptr;
        }
        if (!llama_interp_build_room(interp, 1)) {
            return nullptr;
        }

        auto & build = *interp->build;
        llama_interp_build_scope scope(build);

        llama_interp_input & input = fn(build);
        build.handles.insert(input.t);

        return input.t;
    });
}

static const char * IN_AN_EDIT = "an input belongs to an edit while its graph is built";

ggml_tensor * llama_interp_input_mask(llama_interp * interp, const llama_interp_range * ranges, int32_t n_ranges, int32_t seq, int32_t dim) {
    return make_input(interp, dim >= 0 && dim <= 3, IN_AN_EDIT, [&](llama_interp_build & build) -> llama_interp_input & {
        int64_t ne[4] = { 1, 1, 1, 1 };
        ne[dim] = build.n_rows;

        auto & input = add_input(interp, llama_interp_input::MASK, ggml_new_tensor(build.gctx.ctx0, GGML_TYPE_F32, 4, ne), build.outputs_only);
        input.ranges.assign(ranges, ranges + n_ranges);
        input.seq = seq;
        return input;
    });
}

void llama_interp_input_index(llama_interp_input & input, const int32_t * pos, const int32_t * seq, int32_t n_pos) {
    for (int32_t i = 0; i < n_pos; ++i) {
        input.index[{ seq ? seq[i] : -1, pos[i] }] = i;
    }
}

ggml_tensor * llama_interp_input_rows(
        llama_interp * interp, const int32_t * pos, const int32_t * seq, int32_t n_pos, const float * data, int64_t n_embd) {
    return make_input(interp, n_embd >= 1, IN_AN_EDIT, [&](llama_interp_build & build) -> llama_interp_input & {
        auto & input = add_input(interp, llama_interp_input::VALUES,
                ggml_new_tensor_2d(build.gctx.ctx0, GGML_TYPE_F32, n_embd, build.n_rows), build.outputs_only);
        input.n_embd = n_embd;
        input.data.assign(data, data + n_pos*n_embd);
        llama_interp_input_index(input, pos, seq, n_pos);
        return input;
    });
}

ggml_tensor * llama_interp_input_keys(llama_interp * interp, const llama_interp_range * ranges, int32_t n_ranges) {
    const bool fits = interp->build && interp->build->n_keys >= 1;
    const char * otherwise = "keys can be chosen only in an edit of attn_logits or attn_scores, while its graph is built";

    return make_input(interp, fits, otherwise, [&](llama_interp_build & build) -> llama_interp_input & {
        auto & input = add_input(interp, llama_interp_input::KEYS, ggml_new_tensor_1d(build.gctx.ctx0, GGML_TYPE_F32, build.n_keys), false);
        input.ranges.assign(ranges, ranges + n_ranges);
        input.il = build.edit->target.il;
        return input;
    });
}

//
// upload
//

static void upload_mask(const llama_interp_input & input, const llama_interp_rows & rows) {
    std::vector<float> data(ggml_nelements(input.t), 0.0f);
    for (size_t i = 0; i < rows.pos.size() && i < data.size(); ++i) {
        const bool in_seq = input.seq < 0 || input.seq == rows.seq[i];
        data[i] = in_seq && llama_interp_ranges_has(input.ranges, rows.pos[i]) ? 1.0f : 0.0f;
    }
    ggml_backend_tensor_set(input.t, data.data(), 0, ggml_nbytes(input.t));
}

static void upload_values(const llama_interp_input & input, const llama_interp_rows & rows) {
    std::vector<float> data(ggml_nelements(input.t), 0.0f);
    for (size_t i = 0; i < rows.pos.size() && (i + 1)*input.n_embd <= data.size(); ++i) {
        auto it = input.index.find({ rows.seq[i], rows.pos[i] });
        if (it == input.index.end()) {
            it = input.index.find({ -1, rows.pos[i] });
        }
        if (it == input.index.end()) {
            continue;
        }
        const float * src = input.data.data() + it->second*input.n_embd;
        std::copy(src, src + input.n_embd, data.begin() + i*input.n_embd);
    }
    ggml_backend_tensor_set(input.t, data.data(), 0, ggml_nbytes(input.t));
}

// the cells of the cache are in no order: a cell is chosen by the position that it holds
static void upload_keys(const llama_interp * interp, const llama_interp_input & input, const llama_interp_rows & rows) {
    std::vector<float> data(ggml_nelements(input.t), 0.0f);

    const auto * kv = llama_interp_find_cache(interp, input.il);
    for (size_t i = 0; !kv && i < rows.pos.size() && i < data.size(); ++i) {
        data[i] = llama_interp_ranges_has(input.ranges, rows.pos[i]) ? 1.0f : 0.0f;
    }
    if (kv) {
        const auto & cells = kv->get_cells(rows.seq[0]);
        for (uint32_t i = 0; i < cells.size() && i < data.size(); ++i) {
            data[i] = !cells.is_empty(i) && llama_interp_ranges_has(input.ranges, cells.pos_get(i)) ? 1.0f : 0.0f;
        }
    }
    ggml_backend_tensor_set(input.t, data.data(), 0, ggml_nbytes(input.t));
}

void llama_interp_inputs_upload(llama_interp * interp, const llama_ubatch & ubatch) {
    for (const auto & input : interp->inputs) {
        // an expression may have dropped the input
        if (!input.t || !input.t->buffer) {
            continue;
        }
        const auto rows = llama_interp_rows_init(ubatch, input.outputs_only);
        switch (input.kind) {
            case llama_interp_input::MASK:
                upload_mask(input, rows);
                break;
            case llama_interp_input::VALUES:
                upload_values(input, rows);
                break;
            case llama_interp_input::KEYS:
                upload_keys(interp, input, rows);
                break;
            case llama_interp_input::ROW_IDS:
                {
                    const auto ids = llama_interp_rows_find(rows, input.ranges);
                    ggml_backend_tensor_set(input.t, ids.data(), 0, ggml_nbytes(input.t));
                } break;
        }
    }
}

bool llama_interp_inputs_fit(const llama_interp * interp, const llama_ubatch & ubatch) {
    for (const auto & input : interp->inputs) {
        if (input.kind != llama_interp_input::ROW_IDS) {
            continue;
        }
        const size_t n_ids = llama_interp_rows_find(llama_interp_rows_init(ubatch, input.outputs_only), input.ranges).size();
        if (n_ids != (size_t) (input.t ? input.t->ne[0] : 0)) {
            return false;
        }
    }
    return true;
}
