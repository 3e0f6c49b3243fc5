// the handle: made for a model file, or for the context of somebody else

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-cparams.h"

// cparams is copied into every graph, so the hook finds the handle wherever a graph is built
static void set_handle(llama_context * lctx, llama_interp * interp) {
    const_cast<llama_cparams &>(lctx->get_cparams()).interp = interp;
}

void llama_interp_reserve_nodes(llama_interp * interp) {
    auto * lctx = interp->lctx;
    lctx->set_embeddings_layer_inp(0, lctx->get_cparams().embeddings_layer_inp[0]);
}

void llama_interp_synchronize(llama_interp * interp) {
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

        llama_interp_reserve_nodes(interp.get());
        set_handle(ctx, interp.get());

        return interp.release();
    });
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
    llama_interp_synchronize(interp);
    set_handle(interp->lctx, nullptr);

    if (interp->model) {
        llama_free(interp->lctx);
        llama_model_free(interp->model);
    } else {
        // the context of somebody else goes on as if we had never been there
        llama_interp_reserve_nodes(interp);
        const bool reserved = llama_interp_guard(nullptr, false, [&] {
            interp->lctx->sched_reserve();
            return true;
        });
        if (!reserved) {
            llama_interp_reserve_nodes(interp); // it will try again at its next decode
        }
    }
    delete interp;
}

const char * llama_interp_error(const llama_interp * interp) {
    return interp ? interp->error.c_str() : llama_interp_init_error().c_str();
}
