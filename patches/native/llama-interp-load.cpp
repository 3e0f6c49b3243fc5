// loads a model and makes its context

#include "llama-interp-impl.h"

#include "llama-model.h"

#include <stdexcept>

static llama_context_params make_context_params(const llama_interp_params & params) {
    auto res = llama_context_default_params();

    res.n_ctx           = params.n_ctx;
    res.n_batch         = params.n_batch;
    res.n_ubatch        = params.n_ubatch;
    res.n_seq_max       = params.n_seq_max;
    res.type_k          = (ggml_type) params.type_kv;
    res.type_v          = (ggml_type) params.type_kv;
    res.flash_attn_type = params.flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    res.swa_full        = true; // a small cache forgets the keys that a reader wants to see
    res.kv_unified      = true; // sequences share one cache, so that attention is one tensor
    res.no_perf         = true;

    if (params.n_threads > 0) {
        res.n_threads       = params.n_threads;
        res.n_threads_batch = params.n_threads;
    }
    return res;
}

void llama_interp_load(const char * path, const llama_interp_params & params, bool no_alloc, llama_model_ptr & model, llama_context_ptr & ctx) {
    llama_interp_backends_load();
    llama_backend_init();

    auto mparams = llama_model_default_params();
    mparams.n_gpu_layers    = params.n_gpu_layers;
    mparams.use_extra_bufts = params.use_extra_bufts != 0;
    mparams.no_alloc        = no_alloc;
    if (no_alloc || !params.use_mmap) {
        mparams.load_mode = LLAMA_LOAD_MODE_NONE;
    }

    std::vector<ggml_backend_dev_t> devices;
    if (params.devices) {
        devices = llama_interp_devices_find(params.devices);
        devices.push_back(nullptr);
        mparams.devices = devices.data();
    }

    model.reset(llama_model_load_from_file(path, mparams));
    if (!model) {
        throw std::runtime_error("the model could not be loaded");
    }

    auto cparams = make_context_params(params);
    if (llama_model_is_recurrent(model.get()) || llama_model_is_hybrid(model.get())) {
        cparams.n_seq_max = 1;
    }

    llama_interp_check_model(*model);

    ctx.reset(llama_init_from_model(model.get(), cparams));
    if (!ctx) {
        throw std::runtime_error("the context could not be made");
    }
}
