// statistics of captured channels: one pass over what a ubatch left, in memory that does not grow

#include "llama-interp-impl.h"

#include "llama-batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

//
// one channel's top values: a heap with the smallest magnitude at its root
//

static bool is_larger(const llama_interp_stats::top & a, const llama_interp_stats::top & b) {
    return fabsf(a.value) > fabsf(b.value);
}

static void add_context(llama_interp_stats::top & top, const llama_interp_tokens & tokens, llama_pos pos) {
    for (int32_t i = 0; i < LLAMA_INTERP_STATS_CONTEXT; ++i) {
        const int64_t j = (int64_t) pos - tokens.first + i - LLAMA_INTERP_STATS_BEFORE;
        top.tokens[i] = j >= 0 && j < (int64_t) tokens.ids.size() ? tokens.ids[j] : -1;
    }
}

static void add_top(llama_interp_stats & stats, int64_t channel, float value, int64_t row, const llama_interp_tokens & tokens, llama_pos pos) {
    auto & heap = stats.tops[channel];

    if ((int32_t) heap.size() == stats.n_top) {
        std::pop_heap(heap.begin(), heap.end(), is_larger);
        heap.pop_back();
    }
    heap.push_back({});
    heap.back().value = value;
    heap.back().row   = row;
    add_context(heap.back(), tokens, pos);
    std::push_heap(heap.begin(), heap.end(), is_larger);

    if ((int32_t) heap.size() == stats.n_top) {
        stats.floor[channel] = fabsf(heap.front().value);
    }
}

//
// accumulate
//

static void init(llama_interp_stats & stats, int64_t n_channels, const float * first) {
    stats.n_channels = n_channels;
    stats.shift  .assign(first, first + n_channels);
    stats.sum    .assign(n_channels, 0.0);
    stats.sum_sq .assign(n_channels, 0.0);
    stats.min    .assign(n_channels,  INFINITY);
    stats.max    .assign(n_channels, -INFINITY);
    stats.n_small.assign(n_channels, 0);
    // nothing is above infinity: no top values are kept
    stats.floor  .assign(n_channels, stats.n_top > 0 ? -1.0f : INFINITY);
    stats.tops   .assign(n_channels, {});

    // one infinity for the mean of the channel is enough, its shift must not make everything else no number
    for (float & x : stats.shift) {
        x = std::isfinite(x) ? x : 0.0f;
    }
}

// floats while the rows of one ubatch are added, doubles between them
struct partial {
    std::vector<float>   sum;
    std::vector<float>   sum_sq;
    std::vector<int32_t> n_small;
};

// values are taken relative to the channel's first: a mean far from zero would drown the variance
static bool add_row(llama_interp_stats & stats, partial & part, const float * x, float threshold) {
    const int64_t n = stats.n_channels;

    const float * shift = stats.shift.data();
    const float * floor = stats.floor.data();

    float   * sum     = part.sum    .data();
    float   * sum_sq  = part.sum_sq .data();
    int32_t * n_small = part.n_small.data();
    float   * min     = stats.min   .data();
    float   * max     = stats.max   .data();

    int32_t above = 0;
    for (int64_t c = 0; c < n; ++c) {
        const float v = x[c];
        const float d = v - shift[c];
        const float a = fabsf(v);

        sum    [c] += d;
        sum_sq [c] += d*d;
        n_small[c] += a <= threshold;
        min    [c]  = v < min[c] ? v : min[c];
        max    [c]  = v > max[c] ? v : max[c];
        above      |= a > floor[c];
    }
    return above != 0;
}

void llama_interp_stats_add(llama_interp_stats & stats, const float * data, int64_t n_channels, const llama_interp_rows & rows, const llama_interp_tokens & tokens) {
    const int64_t n_rows = rows.pos.size();
    if (n_rows == 0) {
        return;
    }
    if (stats.n_channels == 0) {
        init(stats, n_channels, data);
    }

    partial part;
    part.sum    .assign(n_channels, 0.0f);
    part.sum_sq .assign(n_channels, 0.0f);
    part.n_small.assign(n_channels, 0);

    for (int64_t r = 0; r < n_rows; ++r) {
        const float * x = data + r*n_channels;
        if (!add_row(stats, part, x, stats.threshold)) {
            continue;
        }
        for (int64_t c = 0; c < n_channels; ++c) {
            if (fabsf(x[c]) > stats.floor[c]) {
                add_top(stats, c, x[c], stats.offset + rows.pos[r], tokens, rows.pos[r]);
            }
        }
    }

    for (int64_t c = 0; c < n_channels; ++c) {
        stats.sum    [c] += part.sum    [c];
        stats.sum_sq [c] += part.sum_sq [c];
        stats.n_small[c] += part.n_small[c];
    }
    stats.n_rows += n_rows;
}

//
// interface
//

static llama_interp_stats * find_stats(const llama_interp * interp, int32_t id) {
    return id >= 0 && id < (int32_t) interp->captures.size() ? interp->captures[id].stats.get() : nullptr;
}

int32_t llama_interp_stats_set(llama_interp * interp, int32_t id, float threshold, int32_t n_top) {
    auto * stats = find_stats(interp, id);
    if (!stats || !(threshold >= 0.0f) || n_top < 0 || n_top > 4096) {
        interp->error = "not statistics";
        return -1;
    }
    stats->threshold = threshold;
    stats->n_top     = n_top;
    return 0;
}

void llama_interp_stats_set_offset(llama_interp * interp, int64_t offset) {
    for (auto & capture : interp->captures) {
        if (capture.stats) {
            capture.stats->offset = offset;
        }
    }
}

int64_t llama_interp_stats_n_channels(const llama_interp * interp, int32_t id) {
    const auto * stats = find_stats(interp, id);
    return stats ? stats->n_channels : 0;
}

// the mean relative to the shift
static double get_rest(const llama_interp_stats & stats, int64_t c) {
    return stats.sum[c]/stats.n_rows;
}

static double get_var(const llama_interp_stats & stats, int64_t c) {
    const double rest = get_rest(stats, c);
    return std::max(0.0, stats.sum_sq[c]/stats.n_rows - rest*rest);
}

static double get_mean(const llama_interp_stats & stats, int64_t c) {
    return stats.shift[c] + get_rest(stats, c);
}

template <typename T, typename F>
static int32_t write(void * dst, size_t n_bytes, int64_t n, F value) {
    if (n_bytes != n*sizeof(T)) {
        return -1;
    }
    for (int64_t i = 0; i < n; ++i) {
        ((T *) dst)[i] = (T) value(i);
    }
    return 0;
}

int32_t llama_interp_stats_read(const llama_interp * interp, int32_t id, int32_t field, void * dst, size_t n_bytes) {
    const auto * found = find_stats(interp, id);
    if (!found || (found->n_rows == 0 && field != LLAMA_INTERP_STATS_N_ROWS)) {
        return -1;
    }
    const auto & s = *found;

    const int64_t n     = s.n_channels;
    const int64_t n_all = n*s.n_top;

    // largest first; rows that no token filled stay empty
    std::vector<std::vector<llama_interp_stats::top>> tops;
    if (field >= LLAMA_INTERP_STATS_TOP) {
        tops = s.tops;
        for (auto & heap : tops) {
            std::sort(heap.begin(), heap.end(), is_larger);
            heap.resize(s.n_top);
        }
    }
    const auto top = [&](int64_t i) -> const llama_interp_stats::top & { return tops[i/s.n_top][i % s.n_top]; };

    switch (field) {
        case LLAMA_INTERP_STATS_N_ROWS:  return write<int64_t>(dst, n_bytes, 1, [&](int64_t)   { return s.n_rows; });
        case LLAMA_INTERP_STATS_MEAN:    return write<double >(dst, n_bytes, n, [&](int64_t c) { return get_mean(s, c); });
        case LLAMA_INTERP_STATS_MEAN_SQ: return write<double >(dst, n_bytes, n, [&](int64_t c) { return get_var(s, c) + get_mean(s, c)*get_mean(s, c); });
        case LLAMA_INTERP_STATS_VAR:     return write<double >(dst, n_bytes, n, [&](int64_t c) { return get_var(s, c); });
        case LLAMA_INTERP_STATS_MIN:     return write<float  >(dst, n_bytes, n, [&](int64_t c) { return s.min[c]; });
        case LLAMA_INTERP_STATS_MAX:     return write<float  >(dst, n_bytes, n, [&](int64_t c) { return s.max[c]; });
        case LLAMA_INTERP_STATS_N_SMALL: return write<int64_t>(dst, n_bytes, n, [&](int64_t c) { return s.n_small[c]; });
        case LLAMA_INTERP_STATS_TOP:     return write<float  >(dst, n_bytes, n_all, [&](int64_t i) { return top(i).value; });
        case LLAMA_INTERP_STATS_TOP_ROW: return write<int64_t>(dst, n_bytes, n_all, [&](int64_t i) { return top(i).row; });
        case LLAMA_INTERP_STATS_TOP_TOKENS:
            return write<int32_t>(dst, n_bytes, n_all*LLAMA_INTERP_STATS_CONTEXT, [&](int64_t i) {
                return top(i/LLAMA_INTERP_STATS_CONTEXT).tokens[i % LLAMA_INTERP_STATS_CONTEXT];
            });
    }
    return -1;
}
