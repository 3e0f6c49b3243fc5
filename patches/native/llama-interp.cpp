// the handle: model, context, vocabulary, weights, decode

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>

//
// log
//

static std::mutex  log_mutex;
static std::string log_text;
static int32_t     log_level = GGML_LOG_LEVEL_NONE;

static void log_keep(ggml_log_level level, const char * text, void * user_data) {
    GGML_UNUSED(user_data);

    std::lock_guard<std::mutex> lock(log_mutex);

    if (level >= GGML_LOG_LEVEL_WARN && level <= GGML_LOG_LEVEL_ERROR) {
        try {
            log_text += text;
        } catch (const std::bad_alloc &) {
            // what is said of a lack of memory may not fit into it
        }
        if (log_text.size() > 64*1024) {
            log_text.erase(0, log_text.size() - 32*1024);
        }
    }
    if (log_level != GGML_LOG_LEVEL_NONE && level >= log_level) {
        fputs(text, stderr);
    }
}

void llama_interp_log_init(int32_t level) {
    log_level = level;
    llama_log_set(log_keep, nullptr);
}

size_t llama_interp_log_take(char * buf, size_t n_buf) {
    std::lock_guard<std::mutex> lock(log_mutex);

    const size_t n = n_buf > 0 ? std::min(log_text.size(), n_buf - 1) : 0;
    if (n_buf > 0) {
        memcpy(buf, log_text.data(), n);
        buf[n] = '\0';
    }
    log_text.clear();

    return n;
}

//
// handle
//

// cparams is copied into every graph, so the hook finds the handle wherever a graph is built
static void set_handle(llama_context * lctx, llama_interp * interp) {
    const_cast<llama_cparams &>(lctx->get_cparams()).interp = interp;
}

// the scheduler is made for a number of nodes: make it anew before the next decode
static void reserve_nodes(llama_interp * interp) {
    auto * lctx = interp->lctx;
    lctx->set_embeddings_layer_inp(0, lctx->get_cparams().embeddings_layer_inp[0]);
}

static void synchronize(llama_interp * interp) {
    llama_interp_guard(interp, 0, [&] {
        interp->lctx->synchronize();
        return 0;
    });
}

llama_interp * llama_interp_attach(llama_context * ctx) {
    if (!ctx) {
        llama_interp_init_error() = "no context";
        return nullptr;
    }
    if (ctx->get_cparams().interp) {
        llama_interp_init_error() = "the context has a handle already";
        return nullptr;
    }

    return llama_interp_guard<llama_interp *>(nullptr, nullptr, [&]() -> llama_interp * {
        auto interp = std::make_unique<llama_interp>();
        interp->lctx = ctx;

        reserve_nodes(interp.get());
        set_handle(ctx, interp.get());

        return interp.release();
    });
}

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

llama_interp * llama_interp_init(const char * path, const llama_interp_params * params) {
    llama_interp_init_error().clear();

    if (!path || !params || params->size != sizeof(*params)) {
        llama_interp_init_error() = "wrong size of llama_interp_params";
        return nullptr;
    }

    return llama_interp_guard<llama_interp *>(nullptr, nullptr, [&]() -> llama_interp * {
        llama_model_ptr   model;
        llama_context_ptr ctx;
        llama_interp_load(path, *params, false, model, ctx);

        auto * interp = llama_interp_attach(ctx.get());
        if (interp) {
            interp->model = model.release();
            ctx->set_abort_callback([](void * data) { return ((llama_interp *) data)->poll(); }, interp);
            ctx.release();
        }
        return interp;
    });
}

void llama_interp_free(llama_interp * interp) {
    if (!interp) {
        return;
    }
    synchronize(interp);
    set_handle(interp->lctx, nullptr);

    if (interp->model) {
        llama_free(interp->lctx);
        llama_model_free(interp->model);
    } else {
        // the context of somebody else goes on as if we had never been there
        reserve_nodes(interp);
        const bool reserved = llama_interp_guard(nullptr, false, [&] {
            interp->lctx->sched_reserve();
            return true;
        });
        if (!reserved) {
            reserve_nodes(interp); // it will try again at its next decode
        }
    }
    delete interp;
}

const char * llama_interp_error(const llama_interp * interp) {
    return interp ? interp->error.c_str() : llama_interp_init_error().c_str();
}

//
// model
//

// positions that the context and, where they are learned, the position embeddings have
static int32_t count_positions(const llama_interp * interp) {
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
    info->n_ctx         = count_positions(interp);
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

//
// program
//

void llama_interp_program_clear(llama_interp * interp) {
    synchronize(interp);

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

//
// scan
//

// the dimension whose size follows the number of tokens
static int32_t find_rows_axis(const llama_interp_site & a, const llama_interp_site & b, int32_t n_a, int32_t n_b) {
    for (int d = 3; d >= 0; --d) {
        if (a.ne[d] == n_a && b.ne[d] == n_b) {
            return d;
        }
    }
    return -1;
}

static std::vector<llama_interp_site> scan_graph(llama_interp * interp, int32_t n_tokens) {
    auto * lctx = interp->lctx;

    llama_memory_context_ptr mctx;
    if (lctx->get_memory()) {
        mctx = lctx->get_memory()->init_full();
    }

    lctx->graph_reserve(n_tokens, 1, n_tokens, mctx.get(), true);

    return interp->sites;
}

int32_t llama_interp_scan(llama_interp * interp, int32_t n_tokens) {
    const int32_t n_sites = llama_interp_guard(interp, -1, [&]() -> int32_t {
        if (n_tokens < 1 || n_tokens + 1 > (int32_t) interp->lctx->n_ubatch()) {
            throw std::runtime_error("cannot list the sites: the batch is too small");
        }

        interp->lctx->sched_reserve();

        interp->decoding = true;
        interp->scanning = true;
        const auto wider = scan_graph(interp, n_tokens + 1);
        const auto sites = scan_graph(interp, n_tokens);

        interp->sites = sites;
        for (size_t i = 0; i < sites.size() && i < wider.size(); ++i) {
            interp->sites[i].rows_axis = find_rows_axis(sites[i], wider[i], n_tokens, n_tokens + 1);
        }
        return (int32_t) sites.size();
    });

    interp->scanning = false;
    interp->decoding = false;
    interp->build.reset();

    // the scheduler now holds a graph that was never allocated
    reserve_nodes(interp);

    return n_sites;
}

int32_t llama_interp_scan_get(const llama_interp * interp, int32_t i, llama_interp_site * site) {
    if (i < 0 || i >= (int32_t) interp->sites.size() || site->size != sizeof(*site)) {
        return -1;
    }
    *site = interp->sites[i];
    return 0;
}

//
// decode
//

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
        if (batch.pos[i] < 0 || batch.pos[i] >= count_positions(interp)) {
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
            reserve_nodes(interp);
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
        reserve_nodes(interp);
        interp->version++;
    }
    return ret;
}

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

void llama_interp_graph_counts(const llama_interp * interp, int64_t * n_built, int64_t * n_reused) {
    *n_built  = interp->n_built;
    *n_reused = interp->n_decoded - interp->n_built;
}
