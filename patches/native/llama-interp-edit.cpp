// values from outside that take the place of a tensor: edits, and what a run starts from

#include "llama-interp-impl.h"

#include "llama-graph.h"

// the dimension of ne that counts tokens; sets outputs_only when only the rows of the outputs are left
static int64_t count_rows(const llm_graph_context & gctx, const ggml_tensor * cur, int32_t rows_axis, bool & outputs_only) {
    const int64_t n_rows = rows_axis >= 0 ? cur->ne[rows_axis] : 1;

    outputs_only = n_rows != gctx.n_tokens && n_rows == gctx.n_outputs;

    return n_rows;
}

void llama_interp_edit_apply(llama_interp * interp, llama_interp_edit & edit, ggml_tensor *& cur, int32_t id) {
    auto & build = *interp->build;

    if (cur->op == GGML_OP_NONE) {
        interp->fail(edit.target.str() + " is an input of the graph and cannot be replaced");
        return;
    }
    if (!llama_interp_build_room(interp, 64)) {
        return;
    }

    build.edit    = &edit;
    build.edit_id = id;
    build.n_keys  = llama_interp_is_attn(edit.target.name.c_str()) ? cur->ne[0] : 0;
    build.n_rows = count_rows(build.gctx, cur, edit.rows_axis, build.outputs_only);
    build.handles.clear();
    build.handles.insert(cur);
    for (const auto & buf : interp->consts) {
        build.handles.insert(ggml_get_first_tensor(buf.ctx.get()));
    }

    ggml_tensor * res = nullptr;
    if (interp->edit_fn) {
        interp->edit_fn(interp->edit_data, id, cur, &res);
    }

    const bool known = build.handles.count(res) > 0;

    build.edit = nullptr;
    build.handles.clear();

    if (!res || !known) {
        interp->fail("the edit at " + edit.target.str() + " failed" + (interp->error.empty() ? "" : ": " + interp->error));
        return;
    }
    if (!ggml_are_same_shape(res, cur) || res->type != cur->type) {
        interp->fail("the edit at " + edit.target.str() + " returned another shape or type");
        return;
    }
    if (res == cur) {
        edit.result = cur; // an edit that changes nothing
        return;
    }

    if (res->op == GGML_OP_NONE) {
        // a constant is shared between graphs, a node of the model is not
        build.edit = &edit;
        llama_interp_build_scope scope(build);
        res = ggml_cont(build.gctx.ctx0, res);
    }
    build.edit = nullptr;

    ggml_set_name(res, cur->name);

    edit.result = res;
    cur         = res;
}

void llama_interp_start_apply(llama_interp * interp, ggml_tensor *& cur) {
    auto & build = *interp->build;

    const int64_t n_embd = interp->start_n_embd;

    if (cur->type != GGML_TYPE_F32 || cur->ne[0] != n_embd || ggml_nrows(cur) != cur->ne[1]) {
        interp->fail(interp->start->str() + " is no residual stream of width " + std::to_string(n_embd));
        return;
    }
    for (const auto & capture : interp->captures) {
        if (capture.target.hit) {
            interp->fail("nothing to read at " + capture.target.str() + ": it comes before " + interp->start->str() + ", where this run starts");
            return;
        }
    }
    if (!llama_interp_build_room(interp, 1)) {
        return;
    }

    llama_interp_build_scope scope(build);

    // inputs that only the dropped part used are expanded again in llama_interp_graph_end
    ggml_graph_clear(build.gctx.gf);

    llama_interp_input input;
    input.kind   = llama_interp_input::VALUES;
    input.n_embd = n_embd;
    input.data   = interp->start_data;
    count_rows(build.gctx, cur, 1, input.outputs_only);

    llama_interp_input_index(input, interp->start_pos.data(), interp->start_seq.empty() ? nullptr : interp->start_seq.data(), interp->start_pos.size());

    input.t = ggml_new_tensor_2d(build.gctx.ctx0, GGML_TYPE_F32, n_embd, cur->ne[1]);
    ggml_set_input(input.t);
    ggml_set_name (input.t, cur->name);

    cur = input.t;

    interp->inputs.push_back(std::move(input));
}
