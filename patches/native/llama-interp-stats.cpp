// statistics of captured channels: one pass over what a ubatch left, in memory that does not grow

#include "llama-interp-impl.h"

#include "llama-batch.h"

#include <algorithm>
#include <cmath>
#include <cstring>

//
// one channel's top values: a heap with the smallest magnitude at its root
//

// of equal magnitudes the first counts
static bool is_larger(const llama_interp_stats::top & a, const llama_interp_stats::top & b) {
    const float ma = fabsf(a.value);
    const float mb = fabsf(b.value);

    return ma != mb ? ma > mb : a.row < b.row;
}

static void write_context(int32_t * dst, const llama_interp_tokens & tokens, int64_t pos) {
    for (int32_t i = 0; i < LLAMA_INTERP_STATS_CONTEXT; ++i) {
        const int64_t j = pos - tokens.first + i - LLAMA_INTERP_STATS_BEFORE;
        dst[i] = j >= 0 && j < (int64_t) tokens.ids.size() ? tokens.ids[j] : -1;
    }
}

// x: the channel's value of row 0, others lie a stride apart
static void add_tops(
        llama_interp_stats & stats, int64_t channel, const float * x, int64_t stride,
        const std::vector<int32_t> & chosen, const llama_interp_rows & rows, const llama_interp_tokens & tokens) {
    auto & heap = stats.tops[channel];

    const size_t n_top = stats.n_top;

    float floor = heap.size() == n_top ? fabsf(heap.front().value) : -1.0f;
    for (const int32_t r : chosen) {
        const float v = x[r*stride];
        if (!(fabsf(v) > floor)) {
            continue;
        }
        int32_t slot = (int32_t) heap.size();
        if (heap.size() == n_top) {
            std::pop_heap(heap.begin(), heap.end(), is_larger);
            slot = heap.back().slot;
            heap.pop_back();
        }
        heap.push_back({ v, slot, true, stats.offset + rows.pos[r] });
        std::push_heap(heap.begin(), heap.end(), is_larger);
        if (heap.size() == n_top) {
            floor = fabsf(heap.front().value);
        }
    }

    // only now: most of what enters a heap is soon thrown out again
    for (auto & top : heap) {
        if (top.fresh) {
            write_context(&stats.contexts[(channel*n_top + top.slot)*LLAMA_INTERP_STATS_CONTEXT], tokens, top.row - stats.offset);
            top.fresh = false;
        }
    }
}

//
// accumulate
//

// taking values relative to one of them keeps the variance exact however far the mean is from zero: for a value x0 of
// n, (mean - x0)^2 is at most n times the variance, so what cancels is far below what a double resolves
static void init(llama_interp_stats & stats, int64_t n_channels, const float * first) {
    stats.n_channels = n_channels;
    stats.shift  .assign(first, first + n_channels);
    stats.sum    .assign(n_channels, 0.0);
    stats.sum_sq .assign(n_channels, 0.0);
    stats.min    .assign(n_channels,  INFINITY);
    stats.max    .assign(n_channels, -INFINITY);
    stats.n_small.assign(n_channels, 0);
    stats.tops   .assign(n_channels, {});
    stats.contexts.assign(n_channels*stats.n_top*LLAMA_INTERP_STATS_CONTEXT, -1);

    // one infinity for the mean of the channel is enough, its shift must not make everything else no number
    for (float & x : stats.shift) {
        x = std::isfinite(x) ? x : 0.0f;
    }
}

// channels that are added together: their sums stay in the first cache while the rows go by
#define N_BLOCK 64

namespace {

struct block {
    float   shift  [N_BLOCK] = {};
    double  sum    [N_BLOCK] = {};
    double  sum_sq [N_BLOCK] = {};
    float   min    [N_BLOCK];
    float   max    [N_BLOCK];
    int32_t n_small[N_BLOCK] = {};

    block() {
        std::fill(min, min + N_BLOCK,  INFINITY);
        std::fill(max, max + N_BLOCK, -INFINITY);
    }
};

} // namespace

// loops of a length that the compiler knows, over memory that nothing else points to: vectors without more than -O2
static void add_row(block & b, const float * row, int64_t n, float threshold) {
    float x[N_BLOCK] = {};
    memcpy(x, row, n*sizeof(float));

    for (int i = 0; i < N_BLOCK; ++i) {
        const double d = (double) x[i] - (double) b.shift[i];
        b.sum   [i] += d;
        b.sum_sq[i] += d*d;
    }
    for (int i = 0; i < N_BLOCK; ++i) {
        b.min    [i]  = x[i] < b.min[i] ? x[i] : b.min[i];
        b.max    [i]  = x[i] > b.max[i] ? x[i] : b.max[i];
        b.n_small[i] += fabsf(x[i]) <= threshold;
    }
}

// rows that are wanted and were not added before the batch had to be run again
static std::vector<int32_t> choose(llama_interp_stats & stats, const llama_interp_rows & rows, const std::vector<llama_interp_range> & ranges) {
    std::vector<int32_t> chosen;
    for (size_t r = 0; r < rows.pos.size(); ++r) {
        if (!ranges.empty() && !llama_interp_ranges_has(ranges, rows.pos[r])) {
            continue;
        }
        if (stats.n_seen++ == stats.n_added) {
            stats.n_added++;
            chosen.push_back((int32_t) r);
        }
    }
    return chosen;
}

void llama_interp_stats_begin(llama_interp * interp, bool again) {
    for (auto & capture : interp->captures) {
        if (capture.stats) {
            capture.stats->n_seen  = 0;
            capture.stats->n_added = again ? capture.stats->n_added : 0;
        }
    }
}

void llama_interp_stats_add(
        llama_interp_stats & stats, const float * data, int64_t n_channels, const llama_interp_rows & rows,
        const std::vector<llama_interp_range> & ranges, const llama_interp_tokens & tokens) {
    const auto chosen = choose(stats, rows, ranges);
    if (chosen.empty()) {
        return;
    }
    if (stats.n_channels == 0) {
        init(stats, n_channels, data + chosen[0]*n_channels);
    }

    for (int64_t c0 = 0; c0 < n_channels; c0 += N_BLOCK) {
        const int64_t n = std::min<int64_t>(N_BLOCK, n_channels - c0);

        block b;
        std::copy_n(&stats.shift[c0], n, b.shift);
        for (const int32_t r : chosen) {
            add_row(b, data + r*n_channels + c0, n, stats.threshold);
        }

        for (int64_t i = 0; i < n; ++i) {
            const int64_t c = c0 + i;

            stats.sum    [c] += b.sum    [i];
            stats.sum_sq [c] += b.sum_sq [i];
            stats.n_small[c] += b.n_small[i];
            stats.min    [c]  = std::min(stats.min[c], b.min[i]);
            stats.max    [c]  = std::max(stats.max[c], b.max[i]);

            const auto & heap = stats.tops[c];
            const bool   full = (int32_t) heap.size() == stats.n_top;
            if (stats.n_top > 0 && (!full || std::max(fabsf(b.min[i]), fabsf(b.max[i])) > fabsf(heap.front().value))) {
                add_tops(stats, c, data + c, n_channels, chosen, rows, tokens);
            }
        }
    }
    stats.n_rows += chosen.size();
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
    const double var  = stats.sum_sq[c]/stats.n_rows - rest*rest;

    return var < 0.0 ? 0.0 : var; // not std::max: what is no number stays none
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
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        const auto * found = find_stats(interp, id);
        if (!found || (found->n_rows == 0 && field != LLAMA_INTERP_STATS_N_ROWS)) {
            return -1;
        }
        const auto & s = *found;

        const int64_t n     = s.n_channels;
        const int64_t n_all = n*s.n_top;

        // largest first
        std::vector<std::vector<llama_interp_stats::top>> tops;
        if (field >= LLAMA_INTERP_STATS_TOP) {
            tops = s.tops;
            for (auto & heap : tops) {
                std::sort(heap.begin(), heap.end(), is_larger);
                heap.resize(s.n_top, { 0.0f, -1, false, -1 }); // fewer tokens than places
            }
        }
        const auto top = [&](int64_t i) -> const llama_interp_stats::top & { return tops[i/s.n_top][i % s.n_top]; };

        const auto token = [&](int64_t i) {
            const int64_t k    = i/LLAMA_INTERP_STATS_CONTEXT;
            const int32_t slot = top(k).slot;

            return slot < 0 ? -1 : s.contexts[((k/s.n_top)*s.n_top + slot)*LLAMA_INTERP_STATS_CONTEXT + i % LLAMA_INTERP_STATS_CONTEXT];
        };

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
                return write<int32_t>(dst, n_bytes, n_all*LLAMA_INTERP_STATS_CONTEXT, token);
        }
        return -1;
    });
}
