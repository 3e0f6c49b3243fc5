// what a model is, and its weights

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>

int32_t llama_interp_count_positions(const llama_interp * interp) {
    const int32_t n_ctx    = interp->lctx->get_cparams().n_ctx_seq;
    const auto *  pos_embd = interp->lctx->get_model().pos_embd;

    return pos_embd ? std::min<int32_t>(n_ctx, pos_embd->ne[1]) : n_ctx;
}

int32_t llama_interp_get_info(const llama_interp * interp, llama_interp_info * info) {
    if (info->size != sizeof(*info)) {
        return -1;
    }

    const auto & model   = interp->lctx->get_model();
    const auto & hparams = model.hparams;
    const auto & cparams = interp->lctx->get_cparams();
    const auto * vocab   = llama_model_get_vocab(&model);

    *info = {};
    info->size          = sizeof(*info);
    info->n_ctx         = llama_interp_count_positions(interp);
    info->n_batch       = cparams.n_batch;
    info->n_ubatch      = cparams.n_ubatch;
    info->n_seq_max     = cparams.n_seq_max;
    info->n_ctx_train   = hparams.n_ctx_train;
    info->n_vocab       = llama_vocab_n_tokens(vocab);
    info->n_embd        = hparams.n_embd;
    info->n_layer       = hparams.n_layer();
    info->n_head        = hparams.n_head();
    info->n_head_kv     = hparams.n_head_kv();
    info->n_embd_head_k = hparams.n_embd_head_k();
    info->n_embd_head_v = hparams.n_embd_head_v();
    info->n_threads     = cparams.n_threads;
    info->flash_attn    = cparams.flash_attn;
    info->has_memory    = interp->lctx->get_memory() != nullptr;
    info->has_encoder   = llama_model_has_encoder(&model);
    info->is_recurrent  = llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model);
    info->token_bos     = llama_vocab_bos(vocab);
    info->token_eos     = llama_vocab_eos(vocab);
    info->add_bos       = llama_vocab_get_add_bos(vocab);
    info->n_params      = llama_model_n_params(&model);
    info->n_bytes       = llama_model_size(&model);

    return 0;
}

int32_t llama_interp_meta(const llama_interp * interp, const char * key, char * buf, size_t n_buf) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        return llama_model_meta_val_str(&interp->lctx->get_model(), key, buf, n_buf);
    });
}

//
// weights
//

int32_t llama_interp_weight_info(const llama_interp * interp, const char * name, llama_interp_tensor_info * info) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        const ggml_tensor * t = interp->lctx->get_model().get_tensor(name);
        if (!t || info->size != sizeof(*info)) {
            return -1;
        }
        *info = {};
        info->size      = sizeof(*info);
        info->type      = t->type;
        info->rows_axis = -1;
        memcpy(info->ne, t->ne, sizeof(info->ne));
        return 0;
    });
}

int32_t llama_interp_weight_read(llama_interp * interp, const char * name, float * dst, size_t n_dst) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        const ggml_tensor * t = interp->lctx->get_model().get_tensor(name);
        if (!t || !t->buffer || n_dst != (size_t) ggml_nelements(t)) {
            interp->error = std::string("no weight of that name and size: ") + name;
            return -1;
        }

        // repacked weights have no way back
        ggml_backend_dev_t  dev  = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(t->buffer));
        const bool          host = ggml_backend_buffer_is_host(t->buffer);
        if (!host && (!dev || ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_CPU)) {
            interp->error = std::string(name) + " was repacked for speed when the model was loaded";
            return -1;
        }

        const auto * traits = ggml_get_type_traits(t->type);
        if (t->type != GGML_TYPE_F32 && !traits->to_float) {
            interp->error = std::string("weights of type ") + ggml_type_name(t->type) + " cannot be dequantised";
            return -1;
        }

        if (t->type == GGML_TYPE_F32) {
            ggml_backend_tensor_get(t, dst, 0, ggml_nbytes(t));
            return 0;
        }

        std::vector<uint8_t> data(ggml_nbytes(t));
        ggml_backend_tensor_get(t, data.data(), 0, data.size());
        traits->to_float(data.data(), dst, n_dst);
        return 0;
    });
}
