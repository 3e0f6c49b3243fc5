#pragma once

// what the files of this folder call of each other

#include "llama-interp-hook.h"
#include "llama-interp-types.h"

#include <exception>
#include <functional>

class llama_kv_cache;

// names of the tensors that the patch series adds
#define LLAMA_INTERP_ATTN_SCORES "attn_scores"
#define LLAMA_INTERP_ATTN_LOGITS "attn_logits"
#define LLAMA_INTERP_ATTN_PROJ   "attn_proj"

// the logit of a masked key while attn_logits is a tensor of the graph; read back as -INFINITY
#define LLAMA_INTERP_MASKED -1e30f

//
// assertions
//

// ggml and llama.cpp assert what they trust callers and files with. where a file or another machine decides, a failed
// assertion has to be an error: on the thread of a guard it is an exception
struct llama_interp_abort_guard {
    llama_interp_abort_guard();
    ~llama_interp_abort_guard();
};

// from here on a server that goes away ends the requests that wait for it, and not the process
void llama_interp_abort_allow_loss();

// the error of functions without a handle
std::string & llama_interp_init_error();

// where memory has run out; short enough for a string that needs none
#define LLAMA_INTERP_NO_MEMORY "out of memory"

// keep what was thrown as the error of the handle, or, with null, of functions without one; never throws itself
void llama_interp_error_keep(const llama_interp * interp, const std::exception & err) noexcept;

// the body of a function of the interface: the caller is C, and nothing may be thrown through it
template <typename T, typename F>
T llama_interp_guard(const llama_interp * interp, T failed, F fn) {
    try {
        llama_interp_abort_guard guard;
        return fn();
    } catch (const std::exception & err) {
        llama_interp_error_keep(interp, err);
    }
    return failed;
}

//
// devices
//

// ggml's backends, those in libraries of their own as well; only the first call has something to do
void llama_interp_backends_load();

// load a model and make a context of it; throws where one of them fails
// no_alloc: neither can run, but both know what they would need
void llama_interp_load(const char * path, const llama_interp_params & params, bool no_alloc, llama_model_ptr & model, llama_context_ptr & ctx);

// what llama_model_params.devices takes for these names
// throws where there is no such device
std::vector<ggml_backend_dev_t> llama_interp_devices_find(const std::string & names);

//
// checks: what llama.cpp trusts a file with, and what would end the process or never end; they throw
//

void llama_interp_check_model(const llama_model & model);

// kernels assert on threads of their own, where no guard helps
void llama_interp_check_graph(const ggml_cgraph * gf);

//
// rows of a tensor
//

// the rows of a ubatch, or only of its outputs
llama_interp_rows llama_interp_rows_init(const llama_ubatch & ubatch, bool outputs_only);

bool llama_interp_ranges_has(const std::vector<llama_interp_range> & ranges, llama_pos pos);

// indices of the rows whose position lies in a range
std::vector<int32_t> llama_interp_rows_find(const llama_interp_rows & rows, const std::vector<llama_interp_range> & ranges);

//
// the handle
//

// as llama_interp_guard, for parts of a program: where one is lost, nothing runs until the program is cleared
template <typename T, typename F>
T llama_interp_guard_part(llama_interp * interp, T failed, F fn) {
    const bool before = interp->incomplete;
    interp->incomplete = true;
    return llama_interp_guard(interp, failed, [&] {
        const T res = fn();
        interp->incomplete = before;
        return res;
    });
}

// an edit or capture adds tensors to the graph's context: false (and failed) when the headroom is used up
bool llama_interp_build_room(llama_interp * interp, int n_tensors);

// counts what a scope adds to the graph's context
struct llama_interp_build_scope {
    llama_interp_build_scope(llama_interp_build & build);
    ~llama_interp_build_scope();

    llama_interp_build & build;
    size_t               mem_used;
};

// hands each tensor of a computed graph to fn, in their order, as memory of the host that holds until fn returns
// reads from devices are all started before one is waited for; what is read at a time is bounded
void llama_interp_read_tensors(
        llama_interp * interp, const std::vector<ggml_tensor *> & tensors,
        const std::function<void(size_t i, const void * data)> & fn);

// waits for what was started; never throws
void llama_interp_synchronize(llama_interp * interp);

// the scheduler is made for a number of nodes: make it anew before the next decode
void llama_interp_reserve_nodes(llama_interp * interp);

// positions that the context and, where they are learned, the position embeddings have
int32_t llama_interp_count_positions(const llama_interp * interp);

// the cache that holds a layer's keys, or null for a model without one
const llama_kv_cache * llama_interp_find_cache(const llama_interp * interp, int32_t il);

//
// pieces of the hook
//

// a site, while the names of a graph are listed
void llama_interp_scan_add(llama_interp * interp, const ggml_tensor * cur, const char * name, int il, int occurrence);

// where a graph has a branch for each kind of batch, only one of them is computed (ggml_build_forward_select): what
// belongs to the others, and the inputs that only they use, hold nothing that could be read
void llama_interp_scan_drop(llama_interp * interp);

void llama_interp_edit_apply(llama_interp * interp, llama_interp_edit & edit, ggml_tensor *& cur, int32_t id);

// the graph so far is dropped, the model goes on from the given values
void llama_interp_start_apply(llama_interp * interp, ggml_tensor *& cur);

// end the graph with this tensor
void llama_interp_graph_stop(llama_interp * interp, ggml_tensor * cur);

// after the last norm: only the rows whose logits are wanted go on to the head
void llama_interp_head_rows(llama_interp * interp, ggml_tensor *& cur);

// only the logits that are wanted, where the head lets them be computed alone
void llama_interp_head_ids(llama_interp * interp, ggml_tensor *& cur);

void llama_interp_capture_build(llama_interp * interp, llama_interp_capture & capture, ggml_tensor * cur);

void llama_interp_capture_attn_add(llama_interp * interp, llama_interp_capture & capture, ggml_tensor * t, int32_t head, bool outputs_only);

// true if a node of the graph writes into a tensor after it was computed
bool llama_interp_capture_is_overwritten(const ggml_cgraph * gf, const ggml_tensor * t);

// what a key has that a row's sequence does not have
float llama_interp_capture_fill(const llama_interp_capture & capture);

// which row of values each token gets; seq may be null
void llama_interp_input_index(llama_interp_input & input, const int32_t * pos, const int32_t * seq, int32_t n_pos);

// an I32 input with the rows of the ubatch that lie in the ranges; null if there are none
ggml_tensor * llama_interp_build_row_ids(llama_interp * interp, const std::vector<llama_interp_range> & ranges, bool outputs_only);

void llama_interp_capture_gather(llama_interp * interp, const llama_ubatch & ubatch);

void llama_interp_inputs_upload(llama_interp * interp, const llama_ubatch & ubatch);

// false if a new ubatch needs other input shapes
bool llama_interp_inputs_fit(const llama_interp * interp, const llama_ubatch & ubatch);

// adds those rows whose position lies in a range
void llama_interp_stats_add(
                             llama_interp_stats & stats,
                                    const float * data, // [n_rows][n_channels]
                                        int64_t   n_channels,
                        const llama_interp_rows & rows,
    const std::vector<llama_interp_range>       & ranges,
                      const llama_interp_tokens & tokens);

// a batch begins; again: one that failed on its way begins anew
void llama_interp_stats_begin(llama_interp * interp, bool again);

void llama_interp_nodes_show(llama_interp * interp, ggml_cgraph * gf);

bool llama_interp_is_attn(const char * name);
