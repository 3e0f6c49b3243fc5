// lists the named tensors of a graph that is built and never computed

#include "llama-interp-impl.h"

#include "llama-context.h"

#include <cstdio>
#include <cstring>
#include <stdexcept>

void llama_interp_scan_add(llama_interp * interp, const ggml_tensor * cur, const char * name, int il, int occurrence) {
    llama_interp_site site = {};

    site.size       = sizeof(site);
    site.il         = il;
    site.occurrence = occurrence;
    site.type       = cur->type;
    site.is_leaf    = cur->op == GGML_OP_NONE;
    site.rows_axis  = -1;

    memcpy(site.ne, cur->ne, sizeof(site.ne));
    snprintf(site.name, sizeof(site.name), "%s", name);

    interp->sites.push_back(site);
    interp->build->sites.push_back(cur);
}

void llama_interp_scan_drop(llama_interp * interp) {
    auto * gf = interp->build->gctx.gf;

    std::unordered_set<const ggml_tensor *> used;
    std::unordered_set<const ggml_tensor *> left_out;
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        if (node->flags & GGML_TENSOR_FLAG_COMPUTE) {
            used.insert(std::begin(node->src), std::end(node->src));
        } else {
            left_out.insert(node);
        }
    }

    std::vector<llama_interp_site> kept;
    for (size_t i = 0; i < interp->sites.size(); ++i) {
        const ggml_tensor * t = interp->build->sites[i];
        if (t->op == GGML_OP_NONE ? used.count(t) > 0 : left_out.count(t) == 0) {
            kept.push_back(interp->sites[i]);
        }
    }
    interp->sites = std::move(kept);
}

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
    llama_interp_reserve_nodes(interp);

    return n_sites;
}

int32_t llama_interp_scan_get(const llama_interp * interp, int32_t i, llama_interp_site * site) {
    if (i < 0 || i >= (int32_t) interp->sites.size() || site->size != sizeof(*site)) {
        return -1;
    }
    *site = interp->sites[i];
    return 0;
}
