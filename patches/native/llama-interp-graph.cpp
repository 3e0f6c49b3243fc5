// the hook: called while graphs are built and after they are computed

#include "llama-interp-impl.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-cparams.h"
#include "llama-impl.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

//
// graph input of our own: uploads with every ubatch, and refuses to reuse the graph of another program
//

namespace {

class llm_graph_input_interp : public llm_graph_input_i {
public:
    llm_graph_input_interp(llama_interp * interp, llm_graph_result * res) :
        interp(interp), res(res), version(interp ? interp->version : 0), active(interp && interp->decoding) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (!active) {
            return;
        }
        llama_interp_inputs_upload(interp, *ubatch);
        if (!shown) {
            // by now every node has its backend
            llama_interp_nodes_show(interp, res->get_gf());
            shown = true;
        }
    }

    bool can_reuse(const llm_graph_params & params) override {
        const bool active_new = params.cparams.interp && params.cparams.interp->decoding;
        if (params.cparams.interp != interp || active_new != active) {
            return false;
        }
        return !active || (interp->version == version && llama_interp_inputs_fit(interp, params.ubatch));
    }

    llama_interp *     interp;
    llm_graph_result * res;
    const uint64_t     version;
    const bool         active;
    bool               shown = false;
};

} // namespace

//
// llama_interp
//

bool llama_interp_target::is(const char * name, int32_t il, int32_t occurrence) const {
    return this->il == il && this->occurrence == occurrence && this->name == name;
}

std::string llama_interp_target::str() const {
    return name + (il >= 0 ? "-" + std::to_string(il) : "") + "#" + std::to_string(occurrence);
}

bool llama_interp::wants(const char * name, int32_t il) const {
    return std::any_of(captures.begin(), captures.end(), [&](const llama_interp_capture & c) {
        return c.target.il == il && c.target.name == name;
    });
}

bool llama_interp::edits_at(const char * name, int32_t il) const {
    return std::any_of(edits.begin(), edits.end(), [&](const llama_interp_edit & e) {
        return e.target.il == il && e.target.name == name;
    });
}

void llama_interp::fail(const std::string & msg) {
    if (!failed) {
        error = msg; // the first reason is the one that matters
    }
    failed = true;
}

bool llama_interp_is_attn(const char * name) {
    return strcmp(name, LLAMA_INTERP_ATTN_SCORES) == 0 || strcmp(name, LLAMA_INTERP_ATTN_LOGITS) == 0;
}

//
// room
//

bool llama_interp_build_room(llama_interp * interp, int n_tensors) {
    const auto & build = *interp->build;

    // half of the headroom: a tensor that we add can bring a leaf or a scheduler copy with it
    if (build.mem_added/ggml_tensor_overhead() + n_tensors <= interp->n_nodes/2) {
        return true;
    }

    interp->full = true;
    interp->fail("the graph has no room for more nodes");
    return false;
}

llama_interp_build_scope::llama_interp_build_scope(llama_interp_build & build) :
    build(build), mem_used(ggml_used_mem(build.gctx.ctx0)) {
}

llama_interp_build_scope::~llama_interp_build_scope() {
    const size_t    mem_now = ggml_used_mem(build.gctx.ctx0);
    const uint8_t * buffer  = (const uint8_t *) ggml_get_mem_buffer(build.gctx.ctx0);

    build.mem_added += mem_now - mem_used;

    auto * interp = build.gctx.cparams.interp;
    try {
        interp->added.ranges.push_back({ buffer + mem_used, buffer + mem_now, build.edit ? build.edit_id : (int32_t) llama_interp_added::CAPTURE });
    } catch (const std::bad_alloc &) {
        interp->fail(LLAMA_INTERP_NO_MEMORY);
    }
}

//
// begin
//

// ggml-alloc keeps the plan of the last graph for the next one if both have as many nodes and leafs. two programs can
// agree in that and yet differ in what must stay alive and in the order of the leafs: reserve a graph of one node, so
// that no plan of another program is ever taken for this one's
static void forget_plan(ggml_backend_sched_t sched) {
    const size_t n_nodes = 8;

    ggml_context_ptr ctx(ggml_init({ n_nodes*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }));

    ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), n_nodes, false);
    ggml_tensor * t  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);

    ggml_set_input(t);
    ggml_build_forward_expand(gf, ggml_sqr(ctx.get(), t));

    ggml_backend_sched_reserve(sched, gf);
}

void llama_interp_graph_begin(const llm_graph_context & gctx) {
    auto * interp = gctx.cparams.interp;

    const bool reserved = interp && gctx.res == interp->lctx->get_gf_res_reserve();

    if (interp) {
        interp->build.reset();
    }

    if (!reserved) {
        gctx.res->add_input(std::make_unique<llm_graph_input_interp>(interp, gctx.res));
    }

    // the dummy batches of a reserved graph have no positions that an edit could mean
    if (!interp || !interp->decoding || reserved != interp->scanning) {
        return;
    }

    const bool planned = !interp->captures.empty() || !interp->edits.empty() || interp->start || interp->stop || interp->takes_logits() || interp->pack_queries;
    if (!interp->scanning && (planned || interp->planned)) {
        forget_plan(gctx.sched);
    }
    interp->planned = planned;

    interp->build.reset(new llama_interp_build(gctx));
    interp->failed = false;
    interp->full   = false;
    interp->again  = false;
    interp->n_built++;

    interp->inputs.clear();
    interp->sites .clear();
    interp->added.ranges.clear();
    interp->host_calls  .clear();
    interp->t_logits = nullptr;

    for (auto & capture : interp->captures) {
        capture.target.hit = false;
        capture.parts.clear();
    }
    for (auto & edit : interp->edits) {
        edit.target.hit = false;
        edit.result     = nullptr;
    }
    if (interp->start) {
        interp->start->hit = false;
    }
    if (interp->stop) {
        interp->stop->hit = false;
    }
}

//
// tensor
//

void llama_interp_graph_stop(llama_interp * interp, ggml_tensor * cur) {
    auto & build = *interp->build;

    ggml_build_forward_expand(build.gctx.gf, cur);

    const int n_nodes = ggml_graph_n_nodes(build.gctx.gf);
    for (int i = 0; i < n_nodes; ++i) {
        build.stop_nodes.push_back(ggml_graph_node(build.gctx.gf, i));
    }

    build.stopped = cur;
}

void llama_interp_graph_tensor(const llm_graph_context & gctx, ggml_tensor *& cur, const char * name, int il) {
    auto * interp = gctx.cparams.interp;
    if (!interp || !interp->build || interp->failed || !cur) {
        return;
    }

    auto & build = *interp->build;

    const int32_t occurrence = build.counts[{ name, il }]++;

    if (interp->scanning) {
        llama_interp_scan_add(interp, cur, name, il, occurrence);
        return;
    }
    if (build.stopped) {
        return;
    }

    if (interp->start && interp->start->is(name, il, occurrence)) {
        interp->start->hit = true;
        llama_interp_start_apply(interp, cur);
    }

    for (size_t i = 0; i < interp->edits.size() && !interp->failed; ++i) {
        auto & edit = interp->edits[i];
        if (edit.target.is(name, il, occurrence)) {
            edit.target.hit = true;
            llama_interp_edit_apply(interp, edit, cur, (int32_t) i);
        }
    }

    // after the edits: a capture shows what the model goes on with
    for (auto & capture : interp->captures) {
        if (!interp->failed && capture.target.is(name, il, occurrence)) {
            capture.target.hit = true;
            llama_interp_capture_build(interp, capture, cur);
        }
    }

    if (!interp->failed && interp->stop && interp->stop->is(name, il, occurrence)) {
        interp->stop->hit = true;
        llama_interp_graph_stop(interp, cur);
    }

    // the last norm: by now every architecture has chosen the rows of outputs, some only after the last layer
    if (!interp->failed && interp->choose_logits && !build.stopped && il == -1 && strcmp(name, "result_norm") == 0) {
        llama_interp_head_rows(interp, cur);
    }
    if (!interp->failed && !interp->logits_ids.empty() && !build.stopped && il == -1 && strcmp(name, "result_output") == 0) {
        llama_interp_head_ids(interp, cur);
    }
}

//
// end
//

static void cut_after_stop(llama_interp_build & build) {
    auto * gf  = build.gctx.gf;
    auto * res = build.gctx.res;

    // a branch that ggml_build_forward_select left out has inputs that nobody sets, so it must not be computed now
    std::vector<int32_t> flags;
    for (const ggml_tensor * node : build.stop_nodes) {
        flags.push_back(node->flags);
    }

    ggml_graph_clear(gf);
    for (ggml_tensor * node : build.stop_nodes) {
        ggml_build_forward_expand(gf, node);
    }
    for (size_t i = 0; i < flags.size(); ++i) {
        build.stop_nodes[i]->flags = flags[i];
    }

    res->t_logits      = nullptr;
    res->t_embd        = nullptr;
    res->t_embd_pooled = nullptr;
    res->t_h_nextn     = nullptr;
}

// set_input fails on inputs that no node of the graph uses
static void expand_inputs(llama_interp_build & build) {
    for (ggml_tensor * t = ggml_get_first_tensor(build.gctx.ctx0); t; t = ggml_get_next_tensor(build.gctx.ctx0, t)) {
        if (t->op == GGML_OP_NONE && (t->flags & GGML_TENSOR_FLAG_INPUT) && !t->buffer && !t->view_src) {
            ggml_build_forward_expand(build.gctx.gf, t);
        }
    }
}

// an edit that reaches nothing would be silence where the user expects an effect
static bool is_used(const llama_interp * interp, const ggml_tensor * t) {
    const auto & gctx = interp->build->gctx;

    if (t == gctx.res->t_logits || t == gctx.res->t_embd || t == interp->build->stopped) {
        return true;
    }

    std::unordered_set<const ggml_tensor *> copies;
    for (const auto & capture : interp->captures) {
        for (const auto & part : capture.parts) {
            if (!part.direct) {
                copies.insert(part.t);
            }
        }
    }

    const int n_nodes = ggml_graph_n_nodes(gctx.gf);
    for (int i = 0; i < n_nodes; ++i) {
        const ggml_tensor * node = ggml_graph_node(gctx.gf, i);
        if (copies.count(node)) {
            continue;
        }
        for (int s = 0; s < GGML_MAX_SRC; ++s) {
            if (node->src[s] == t) {
                return true;
            }
        }
    }
    return false;
}

static void check_targets(llama_interp * interp) {
    for (const auto & capture : interp->captures) {
        if (!capture.target.hit) {
            interp->fail("nothing to read at " + capture.target.str() + ": no tensor of this graph has that name");
        }
    }
    for (const auto & edit : interp->edits) {
        if (!edit.target.hit) {
            interp->fail("nothing to edit at " + edit.target.str() + ": no tensor of this graph has that name");
        } else if (edit.result && !is_used(interp, edit.result)) {
            interp->fail("the edit at " + edit.target.str() + " has no effect: no part of this run uses that tensor");
        }
    }
    if (interp->start && !interp->start->hit) {
        interp->fail("cannot start at " + interp->start->str() + ": no tensor of this graph has that name");
    }
    if (interp->stop && !interp->stop->hit) {
        interp->fail("cannot stop at " + interp->stop->str() + ": no tensor of this graph has that name");
    }
}

// a capture that was read directly but is written into later: the next build copies it
static void check_direct(llama_interp * interp) {
    for (auto & capture : interp->captures) {
        for (const auto & part : capture.parts) {
            if (part.direct && llama_interp_capture_is_overwritten(interp->build->gctx.gf, part.t)) {
                capture.copy  = true;
                interp->again = true;
            }
        }
    }
    if (interp->again) {
        interp->fail("a capture needs a copy");
    }
}

bool llama_interp_graph_end(const llm_graph_context & gctx) {
    auto * interp = gctx.cparams.interp;
    if (!interp || !interp->build) {
        return true;
    }

    auto & build = *interp->build;

    if (interp->scanning) {
        llama_interp_check_graph(build.gctx.gf);
        llama_interp_scan_drop(interp);
    }
    if (!interp->scanning && !interp->failed) {
        if (build.stopped) {
            cut_after_stop(build);
        }
        expand_inputs(build);
        check_targets(interp);
        check_direct (interp);
        if (interp->takes_logits()) {
            // llama_decode would read as many rows as there are outputs, and all of the vocabulary
            interp->t_logits     = gctx.res->t_logits;
            gctx.res->t_logits   = nullptr;
            gctx.res->t_embd     = nullptr;
        }
    }

    interp->build.reset();

    return !interp->failed;
}

void llama_interp_graph_done(llama_context & lctx, const llm_graph_result & res, const llama_ubatch & ubatch) {
    auto * interp = lctx.get_cparams().interp;
    if (!interp || !interp->decoding) {
        return;
    }

    GGML_UNUSED(res);

    if (interp->failed) {
        throw std::runtime_error(interp->error); // a function of the caller's while the graph ran
    }
    if (interp->poll()) {
        throw std::runtime_error("stopped");
    }

    interp->n_decoded++;
    llama_interp_capture_gather(interp, ubatch);

    if (interp->t_logits) {
        const size_t n_old = interp->logits.size();
        interp->n_logits = (int32_t) interp->t_logits->ne[0];
        interp->logits.resize(n_old + ggml_nelements(interp->t_logits));
        ggml_backend_tensor_get(interp->t_logits, interp->logits.data() + n_old, 0, ggml_nbytes(interp->t_logits));
    }
}

uint32_t llama_interp_graph_n_nodes(const llama_cparams & cparams) {
    return cparams.interp ? cparams.interp->n_nodes : 0;
}

bool llama_interp_outputs_have_logits(const llama_cparams & cparams) {
    const auto * interp = cparams.interp;
    if (!interp || !interp->decoding || !interp->model) {
        return true; // of an attached context somebody else may ask for them
    }
    return !interp->takes_logits() && !interp->stop;
}
