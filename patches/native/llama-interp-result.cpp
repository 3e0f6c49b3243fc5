// captures: the chunks of all ubatches, joined for the caller

#include "llama-interp-impl.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

static const llama_interp_capture * find_capture(const llama_interp * interp, int32_t id) {
    return id >= 0 && id < (int32_t) interp->captures.size() ? &interp->captures[id] : nullptr;
}

float llama_interp_capture_fill(const llama_interp_capture & capture) {
    return capture.target.name == LLAMA_INTERP_ATTN_LOGITS ? -INFINITY : 0.0f;
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
                std::fill(row + chunk.ne[0], row + n_key, llama_interp_capture_fill(capture));
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
