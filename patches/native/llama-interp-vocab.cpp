// the vocabulary: texts to tokens and back, where the file may have made it anything

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-model.h"

#include <climits>

// a tokenizer finds out when it is used what the file left out of it: by an exception, or an assertion
// a lease of the vocabulary may outlive an error of the model's runs, so what went wrong is kept apart from those
template <typename F>
static int32_t guarded(F fn) {
    return llama_interp_guard<int32_t>(nullptr, INT32_MIN, fn);
}

int32_t llama_interp_tokenize(
        const llama_interp * interp, const char * text, int32_t n_text, int32_t * tokens, int32_t n_tokens_max, int32_t add_special, int32_t parse_special) {
    const auto * vocab = llama_model_get_vocab(&interp->lctx->get_model());
    return guarded([&]() -> int32_t { return llama_tokenize(vocab, text, n_text, tokens, n_tokens_max, add_special != 0, parse_special != 0); });
}

int32_t llama_interp_token_to_piece(const llama_interp * interp, int32_t token, char * buf, int32_t n_buf) {
    const auto * vocab = llama_model_get_vocab(&interp->lctx->get_model());
    if (token < 0 || token >= llama_vocab_n_tokens(vocab)) {
        return 0;
    }
    return guarded([&]() -> int32_t { return llama_token_to_piece(vocab, token, buf, n_buf, 0, true); });
}

int32_t llama_interp_token_is_eog(const llama_interp * interp, int32_t token) {
    return llama_vocab_is_eog(llama_model_get_vocab(&interp->lctx->get_model()), token);
}
