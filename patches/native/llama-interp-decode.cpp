// runs batches, and hands out their logits

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

static const char * check_batch(const llama_interp * interp, const llama_interp_batch & batch) {
    const auto & cparams = interp->lctx->get_cparams();
    const auto * vocab   = llama_model_get_vocab(&interp->lctx->get_model());

    if (batch.size != sizeof(batch)) {
        return "wrong size of llama_interp_batch";
    }
    if (batch.n_tokens < 1) {
        return "an empty batch";
    }
    if (batch.n_tokens > (int32_t) cparams.n_batch) {
        return "more tokens than the context takes in one batch";
    }
    if (!cparams.causal_attn && batch.n_tokens > (int32_t) cparams.n_ubatch) {
        return "a model without a causal mask takes one ubatch only";
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        if (batch.token[i] < 0 || batch.token[i] >= llama_vocab_n_tokens(vocab)) {
            return "a token that is not in the vocabulary";
        }
        if (batch.pos[i] < 0 || batch.pos[i] >= llama_interp_count_positions(interp)) {
            return "a position outside of the context";
        }
        if (batch.seq[i] < 0 || batch.seq[i] >= (int32_t) cparams.n_seq_max) {
            return "a sequence that the context does not have";
        }
    }
    return nullptr;
}

// true if values from outside can get into the cache
static bool fills_cache(const llama_interp * interp) {
    const int32_t n_layer = interp->lctx->get_model().hparams.n_layer();

    return !interp->edits.empty() || (interp->start && interp->start->il + 1 < n_layer);
}

static const int64_t POLL_US = 100*1000;

bool llama_interp::poll() {
    if (!stopping && poll_fn && decoding && ggml_time_us() >= poll_us) {
        int32_t stop = 0;
        poll_fn(poll_data, &stop);
        stopping = stop != 0;
        poll_us  = ggml_time_us() + POLL_US;
    }
    return stopping;
}

void llama_interp_set_poll_fn(llama_interp * interp, llama_interp_poll_fn fn, void * user_data) {
    interp->poll_fn   = fn;
    interp->poll_data = user_data;
}

static int32_t decode_batch(llama_interp * interp, const llama_interp_batch & in) {
    std::vector<int32_t>        n_seq_id(in.n_tokens, 1);
    std::vector<llama_seq_id>   seq     (in.seq, in.seq + in.n_tokens);
    std::vector<llama_seq_id *> seq_id  (in.n_tokens);
    for (int32_t i = 0; i < in.n_tokens; ++i) {
        seq_id[i] = &seq[i];
    }

    llama_batch batch = {};
    batch.n_tokens = in.n_tokens;
    batch.token    = const_cast<int32_t *>(in.token);
    batch.pos      = const_cast<int32_t *>(in.pos);
    batch.n_seq_id = n_seq_id.data();
    batch.seq_id   = seq_id.data();
    batch.logits   = const_cast<int8_t *>(in.output);

    interp->error.clear();
    interp->failed    = false;
    interp->stopping  = false;
    interp->poll_us   = ggml_time_us() + POLL_US;
    interp->decoding  = true;
    interp->n_outputs = 0;
    interp->tokens.first = in.pos[0];
    interp->tokens.ids.assign(in.token, in.token + in.n_tokens);
    interp->tainted   = interp->tainted || fills_cache(interp);
    interp->logits.clear();

    const int32_t ret = llama_decode(interp->lctx, batch);
    interp->lctx->synchronize();

    if (ret == 0 && interp->takes_logits()) {
        interp->n_outputs = interp->logits.empty() ? 0 : (int32_t) (interp->logits.size()/interp->n_logits);
    } else if (ret == 0 && !interp->stop) {
        interp->n_outputs = (int32_t) std::count_if(in.output, in.output + in.n_tokens, [](int8_t o) { return o != 0; });
    }

    return ret;
}

static const char * error_of(int32_t ret) {
    switch (ret) {
        case  1: return "the KV cache is full";
        case  2: return "stopped";
        case -2: return LLAMA_INTERP_NO_MEMORY;
        default: return "llama_decode failed";
    }
}

// more room or a copy, then the whole batch again: what it left in the cache goes first
static int32_t decode_with_room(llama_interp * interp, const llama_interp_batch & batch) {
    if (interp->incomplete) {
        throw std::runtime_error("a part of what the run reads or changes was lost: " + interp->error);
    }

    llama_interp_stats_begin(interp, false);
    std::vector<size_t> n_chunks;
    for (const auto & capture : interp->captures) {
        n_chunks.push_back(capture.chunks.size());
    }

    int32_t ret = decode_batch(interp, batch);

    while (ret != 0 && (interp->full || interp->again) && interp->n_nodes < (1u << 22)) {
        if (interp->full) {
            interp->n_nodes *= 4;
            llama_interp_reserve_nodes(interp);
        }
        interp->full  = false;
        interp->again = false;
        for (int32_t i = 0; i < batch.n_tokens; ++i) {
            llama_interp_memory_seq_rm(interp, batch.seq[i], batch.pos[i], -1);
        }
        for (size_t i = 0; i < interp->captures.size(); ++i) {
            interp->captures[i].chunks.resize(n_chunks[i]); // of earlier decodes
        }
        llama_interp_stats_begin(interp, true);
        ret = decode_batch(interp, batch);
    }
    if (ret != 0 && interp->error.empty()) {
        interp->error = error_of(ret);
    }
    return ret;
}

int32_t llama_interp_decode(llama_interp * interp, const llama_interp_batch * batch) {
    if (const char * reason = check_batch(interp, *batch)) {
        return llama_interp_guard(interp, -1, [&]() -> int32_t { throw std::runtime_error(reason); });
    }

    const int32_t ret = llama_interp_guard(interp, -4, [&] { return decode_with_room(interp, *batch); });

    interp->decoding = false;
    interp->build.reset();

    if (ret == -4 || (ret < 0 && !interp->failed)) {
        // what gave up midway may have left a scheduler that is half made, or a graph that is half built
        llama_interp_reserve_nodes(interp);
        interp->version++;
    }
    return ret;
}

void llama_interp_graph_counts(const llama_interp * interp, int64_t * n_built, int64_t * n_reused) {
    *n_built  = interp->n_built;
    *n_reused = interp->n_decoded - interp->n_built;
}

//
// logits
//

int32_t llama_interp_logits_count(const llama_interp * interp) {
    return interp->n_outputs;
}

int32_t llama_interp_logits_read(llama_interp * interp, float * dst, int32_t first, int32_t n_rows) {
    const float * logits = interp->takes_logits() ? interp->logits.data() : llama_get_logits(interp->lctx);
    if (first < 0) {
        first += interp->n_outputs;
    }
    if (!logits || first < 0 || n_rows < 0 || first + n_rows > interp->n_outputs) {
        return llama_interp_guard(interp, -1, []() -> int32_t { throw std::runtime_error("the last decode left no such logits"); });
    }
    const size_t n_row = llama_interp_logits_width(interp);
    memcpy(dst, logits + first*n_row, n_rows*n_row*sizeof(float));
    return 0;
}

int32_t llama_interp_logits_width(const llama_interp * interp) {
    return interp->takes_logits() && !interp->logits.empty() ?
        interp->n_logits : llama_vocab_n_tokens(llama_model_get_vocab(&interp->lctx->get_model()));
}
