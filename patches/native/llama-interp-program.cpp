// the program: what the next runs read and change, where they start and end

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>

void llama_interp_program_clear(llama_interp * interp) {
    llama_interp_synchronize(interp);

    interp->captures.clear();
    interp->edits   .clear();
    interp->inputs  .clear();
    interp->consts  .clear();
    interp->start   .reset();
    interp->stop    .reset();
    interp->start_data.clear();

    interp->pack_queries  = false;
    interp->choose_logits = false;
    interp->logits_ranges.clear();
    interp->logits_ids   .clear();

    interp->graph_fn = nullptr;
    interp->host_fn  = nullptr;

    interp->incomplete = false;
    interp->version++;
}

int32_t llama_interp_capture_add(
        llama_interp * interp, const char * name, int32_t il, int32_t occurrence, int32_t kind, int32_t rows_axis,
        const int32_t * heads, int32_t n_heads, const llama_interp_range * ranges, int32_t n_ranges) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        const bool is_attn = name && llama_interp_is_attn(name);
        if (!name || occurrence < 0 || rows_axis < -1 || rows_axis > 3 || (kind == LLAMA_INTERP_CAPTURE_ATTN) != is_attn) {
            interp->error = "not a capture";
            return -1;
        }

        llama_interp_capture capture;
        capture.target    = { name, il, occurrence };
        capture.kind      = kind;
        capture.rows_axis = rows_axis;
        capture.heads .assign(heads,  heads  + n_heads);
        capture.ranges.assign(ranges, ranges + n_ranges);
        if (kind == LLAMA_INTERP_CAPTURE_STATS) {
            capture.stats.reset(new llama_interp_stats);
        }

        interp->captures.push_back(std::move(capture));
        interp->version++;

        return (int32_t) interp->captures.size() - 1;
    });
}

int32_t llama_interp_edit_add(llama_interp * interp, const char * name, int32_t il, int32_t occurrence, int32_t rows_axis) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        if (!name || occurrence < 0 || rows_axis < -1 || rows_axis > 3) {
            interp->error = "not an edit";
            return -1;
        }

        llama_interp_edit edit;
        edit.target    = { name, il, occurrence };
        edit.rows_axis = rows_axis;

        interp->edits.push_back(std::move(edit));
        interp->version++;

        return (int32_t) interp->edits.size() - 1;
    });
}

void llama_interp_set_edit_fn(llama_interp * interp, llama_interp_edit_fn fn, void * user_data) {
    interp->edit_fn   = fn;
    interp->edit_data = user_data;
}

// the residual stream where a run can begin: started elsewhere, the residual would pull the earlier layers back in
static bool is_start(const char * name) {
    return strcmp(name, "l_out") == 0 || strcmp(name, "ffn_inp") == 0 || strcmp(name, "sa_out") == 0;
}

int32_t llama_interp_start_set(
        llama_interp * interp, const char * name, int32_t il, int32_t occurrence, const float * data,
        const int32_t * pos, const int32_t * seq, int32_t n_rows) {
    return llama_interp_guard_part<int32_t>(interp, -1, [&]() -> int32_t {
        if (!name || !is_start(name)) {
            interp->error = "a run can start at l_out, ffn_inp or sa_out only";
            return -1;
        }
        if (n_rows < 1) {
            interp->error = "no rows to start from";
            return -1;
        }

        interp->start_n_embd = interp->lctx->get_model().hparams.n_embd;
        interp->start_data.assign(data, data + n_rows*interp->start_n_embd);
        interp->start_pos.resize(n_rows);
        interp->start_seq.assign(seq, seq ? seq + n_rows : nullptr);
        for (int32_t i = 0; i < n_rows; ++i) {
            interp->start_pos[i] = pos ? pos[i] : i;
        }
        interp->start.reset(new llama_interp_target { name, il, occurrence });
        interp->version++;

        return 0;
    });
}

int32_t llama_interp_stop_set(llama_interp * interp, const char * name, int32_t il, int32_t occurrence) {
    return llama_interp_guard_part<int32_t>(interp, -1, [&]() -> int32_t {
        if (!name) {
            return -1;
        }
        interp->stop.reset(new llama_interp_target { name, il, occurrence });
        interp->version++;

        return 0;
    });
}

int32_t llama_interp_logits_set(llama_interp * interp, const llama_interp_range * ranges, int32_t n_ranges) {
    return llama_interp_guard_part<int32_t>(interp, -1, [&]() -> int32_t {
        interp->choose_logits = true;
        interp->logits_ranges.assign(ranges, ranges + n_ranges);
        if (n_ranges == 0) {
            interp->logits_ranges.push_back({ 0, 0 });
        }
        interp->version++;

        return 0;
    });
}

int32_t llama_interp_logits_set_ids(llama_interp * interp, const int32_t * ids, int32_t n_ids) {
    return llama_interp_guard_part<int32_t>(interp, -1, [&]() -> int32_t {
        const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(&interp->lctx->get_model()));
        if (n_ids < 1 || std::any_of(ids, ids + n_ids, [&](int32_t id) { return id < 0 || id >= n_vocab; })) {
            interp->error = "logits can be chosen of tokens of the vocabulary";
            return -1;
        }
        interp->logits_ids.assign(ids, ids + n_ids);
        interp->version++;

        return 0;
    });
}

void llama_interp_pack_queries(llama_interp * interp) {
    interp->pack_queries = true;
    interp->version++;
}
