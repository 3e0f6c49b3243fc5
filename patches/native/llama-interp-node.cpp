// the nodes of a graph that is about to run, for whoever wants to look at it

#include "llama-interp-impl.h"

#include "llama-context.h"

#include <cstring>
#include <stdexcept>

static std::string get_backend(const llama_interp * interp, const ggml_tensor * t) {
    ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(interp->lctx->get_sched(), const_cast<ggml_tensor *>(t));
    if (backend) {
        return ggml_backend_name(backend);
    }
    const ggml_tensor * owner = t->view_src ? t->view_src : t;
    return owner->buffer ? ggml_backend_buffer_name(owner->buffer) : "";
}

int32_t llama_interp_added::find(const ggml_tensor * t) const {
    const auto * p = (const uint8_t *) t;
    for (const auto & range : ranges) {
        if (range.begin <= p && p < range.end) {
            return range.by;
        }
    }
    return NONE;
}

void llama_interp_nodes_show(llama_interp * interp, ggml_cgraph * gf) {
    if (!interp->graph_fn) {
        return;
    }

    auto & nodes = interp->nodes;
    auto & index = interp->node_index;

    const auto add = [&](const ggml_tensor * t) {
        if (index.emplace(t, (int32_t) nodes.size()).second) {
            nodes.push_back(t);
        }
    };

    const int n_nodes = ggml_graph_n_nodes(gf);
    for (int i = 0; i < n_nodes; ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        for (int s = 0; s < GGML_MAX_SRC; ++s) {
            if (node->src[s] && node->src[s]->op == GGML_OP_NONE) {
                add(node->src[s]);
            }
        }
    }
    interp->n_leafs = (int32_t) nodes.size();
    for (int i = 0; i < n_nodes; ++i) {
        add(ggml_graph_node(gf, i));
    }

    int32_t done = 0;
    interp->graph_fn(interp->graph_data, &done);

    nodes.clear();
    index.clear();

    if (!done) {
        throw std::runtime_error("the graph could not be shown");
    }
}

void llama_interp_set_graph_fn(llama_interp * interp, llama_interp_graph_fn fn, void * user_data) {
    interp->graph_fn   = fn;
    interp->graph_data = user_data;
    interp->version++; // a graph that stands already is not shown
}

int32_t llama_interp_node_count(const llama_interp * interp) {
    return (int32_t) interp->nodes.size();
}

int32_t llama_interp_node_get(const llama_interp * interp, int32_t i, llama_interp_node * node) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        if (i < 0 || i >= (int32_t) interp->nodes.size() || node->size != sizeof(*node)) {
            return -1;
        }
        const ggml_tensor * t = interp->nodes[i];

        const auto find = [&](const ggml_tensor * other) {
            const auto it = interp->node_index.find(other);
            return it != interp->node_index.end() ? it->second : -1;
        };

        *node = {};
        node->size      = sizeof(*node);
        node->is_leaf   = i < interp->n_leafs;
        node->is_output = (t->flags & GGML_TENSOR_FLAG_OUTPUT) != 0;
        node->added     = interp->added.find(t);
        node->view_src  = t->view_src ? find(t->view_src) : -1;
        for (int s = 0; s < GGML_MAX_SRC && node->n_src < 10; ++s) {
            if (t->src[s]) {
                node->src[node->n_src++] = find(t->src[s]);
            }
        }
        for (int d = 0; d < 4; ++d) {
            node->ne[d] = t->ne[d];
            node->nb[d] = (int64_t) t->nb[d];
        }
        for (const auto & buf : interp->consts) {
            if (t == ggml_get_first_tensor(buf.ctx.get())) {
                node->added = buf.edit;
            }
        }
        snprintf(node->name,    sizeof(node->name),    "%s", t->name);
        snprintf(node->op,      sizeof(node->op),      "%s", ggml_op_desc(t));
        snprintf(node->type,    sizeof(node->type),    "%s", ggml_type_name(t->type));
        snprintf(node->backend, sizeof(node->backend), "%s", get_backend(interp, t).c_str());

        return 0;
    });
}
