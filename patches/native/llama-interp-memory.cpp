// what the KV cache, or the memory of recurrent layers, keeps between runs

#include "llama-interp-impl.h"

#include "llama-context.h"

void llama_interp_memory_clear(llama_interp * interp) {
    // a masked key counts zero times its value, and zero times infinity is no number: the next run would see it
    if (interp->lctx->get_memory()) {
        llama_memory_clear(interp->lctx->get_memory(), interp->tainted);
    }
    interp->tainted = false;
}

int32_t llama_interp_memory_rewind(llama_interp * interp, int32_t n_pos) {
    auto * memory = interp->lctx->get_memory();
    const bool is_kept = memory && !interp->tainted && n_pos > 0 &&
        llama_interp_guard(interp, false, [&] { return llama_memory_seq_rm(memory, 0, n_pos, -1); });
    if (is_kept) {
        return 0;
    }
    llama_interp_memory_clear(interp);
    return n_pos > 0 ? 1 : 0;
}

//
// state
//

static bool has_state(llama_interp * interp, int32_t seq) {
    if (!interp->lctx->get_memory() || seq < 0 || seq >= (int32_t) interp->lctx->n_seq_max()) {
        interp->error = "no memory, or no such sequence";
        return false;
    }
    return true;
}

size_t llama_interp_state_size(llama_interp * interp, int32_t seq) {
    return llama_interp_guard<size_t>(interp, 0, [&]() -> size_t {
        return has_state(interp, seq) ? llama_state_seq_get_size(interp->lctx, seq) : 0;
    });
}

size_t llama_interp_state_get(llama_interp * interp, int32_t seq, uint8_t * dst, size_t n_dst) {
    return llama_interp_guard<size_t>(interp, 0, [&]() -> size_t {
        return has_state(interp, seq) ? llama_state_seq_get_data(interp->lctx, dst, n_dst, seq) : 0;
    });
}

size_t llama_interp_state_set(llama_interp * interp, int32_t seq, const uint8_t * src, size_t n_src) {
    return llama_interp_guard<size_t>(interp, 0, [&]() -> size_t {
        return has_state(interp, seq) ? llama_state_seq_set_data(interp->lctx, src, n_src, seq) : 0;
    });
}

int32_t llama_interp_memory_seq_rm(llama_interp * interp, int32_t seq, int32_t p0, int32_t p1) {
    return llama_interp_guard_part<int32_t>(interp, -1, [&]() -> int32_t {
        if (!interp->lctx->get_memory() || seq < 0 || seq >= (int32_t) interp->lctx->n_seq_max()) {
            return -1;
        }
        return llama_memory_seq_rm(interp->lctx->get_memory(), seq, p0, p1) ? 0 : -1;
    });
}

int32_t llama_interp_memory_seq_cp(llama_interp * interp, int32_t src, int32_t dst, int32_t p0, int32_t p1) {
    return llama_interp_guard_part<int32_t>(interp, -1, [&]() -> int32_t {
        const int32_t n_seq_max = interp->lctx->n_seq_max();
        if (!interp->lctx->get_memory() || src < 0 || dst < 0 || src >= n_seq_max || dst >= n_seq_max) {
            return -1;
        }
        llama_memory_seq_cp(interp->lctx->get_memory(), src, dst, p0, p1);
        return 0;
    });
}
