#pragma once

// the handle and what it holds: a program, the graph that is being built for it, and what runs left behind

#include "llama-interp.h"

#include "llama-cpp.h"
#include "llama-graph.h"

#include "ggml-cpp.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

//
// rows: which token a row of a tensor belongs to
//

struct llama_interp_rows {
    std::vector<llama_pos>    pos;
    std::vector<llama_seq_id> seq;
};

using llama_interp_rows_ptr = std::shared_ptr<const llama_interp_rows>;

//
// program
//

struct llama_interp_target {
    std::string name;
    int32_t     il;
    int32_t     occurrence;

    bool hit = false; // seen in the graph that is being built

    bool is(const char * name, int32_t il, int32_t occurrence) const;

    std::string str() const;
};

using llama_interp_cells = std::map<llama_seq_id, std::vector<int32_t>>;

// what one ubatch left behind
struct llama_interp_chunk {
    int64_t ne[4];
    size_t  n_bytes;

    struct free_deleter {
        void operator()(uint8_t * p) const { free(p); }
    };

    std::unique_ptr<uint8_t, free_deleter> data; // malloc: a caller may take it

    llama_interp_rows_ptr rows;

    bool first = true; // of its ubatch: the chunks of single heads that follow have the same rows
};

// host memory that a device copies tensors into, pinned where it has such memory: into other memory no device copies
// while the host goes on
struct llama_interp_staging {
    ggml_backend_buffer_ptr    pinned;
    std::unique_ptr<uint8_t[]> plain;

    uint8_t * reserve(ggml_backend_dev_t dev, size_t n_bytes);
};

// the tokens of the batch that runs: ids[i] at position first + i
struct llama_interp_tokens {
    llama_pos            first = 0;
    std::vector<int32_t> ids;
};

struct llama_interp_stats {
    struct top {
        float   value;
        int32_t slot; // of its context; fresh: found in this ubatch, the slot still holds another's
        bool    fresh;
        int64_t row;
    };

    float   threshold = 0.0f;
    int32_t n_top     = 0;

    int64_t n_channels = 0;
    int64_t n_rows     = 0;
    int64_t offset     = 0; // of the positions

    // rows of the batch that runs: a batch that is run again brings some a second time
    int64_t n_seen  = 0;
    int64_t n_added = 0;

    // for each channel
    std::vector<float>            shift;
    std::vector<double>           sum;      // relative to the shift
    std::vector<double>           sum_sq;   // relative to the shift
    std::vector<float>            min;
    std::vector<float>            max;
    std::vector<int64_t>          n_small;
    std::vector<std::vector<top>> tops;     // a heap, at most n_top
    std::vector<int32_t>          contexts; // [n_channels][n_top][STATS_CONTEXT]
};

struct llama_interp_capture {
    llama_interp_target target;

    int32_t kind;
    int32_t rows_axis;

    std::vector<int32_t>            heads;
    std::vector<llama_interp_range> ranges;

    // in the current graph
    struct part {
        ggml_tensor * t;
        int32_t       head;         // -1: all
        bool          outputs_only; // the rows are those of the outputs
        bool          direct;       // the model's own tensor, kept alive: no copy, no node added
    };

    std::vector<part> parts;

    bool copy = false; // the graph writes into the tensor after it got its name

    std::unique_ptr<llama_interp_stats> stats; // kind STATS: kept instead of chunks

    // since the last clear
    ggml_type type = GGML_TYPE_F32;

    std::vector<llama_interp_chunk> chunks;
};

struct llama_interp_edit {
    llama_interp_target target;

    int32_t rows_axis;

    ggml_tensor * result = nullptr; // in the current graph
};

// uploaded with every ubatch
struct llama_interp_input {
    enum kind_t { MASK, VALUES, ROW_IDS, KEYS } kind;

    ggml_tensor * t;

    bool outputs_only;

    std::vector<llama_interp_range> ranges; // MASK, ROW_IDS, KEYS
    int32_t                         il = -1; // KEYS: whose cache

    std::map<std::pair<llama_seq_id, llama_pos>, size_t> index; // VALUES: -> row of data, sequence -1: any

    llama_seq_id seq = -1;

    std::vector<float> data;
    int64_t            n_embd = 0;
};

struct llama_interp_const_buf {
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buf;
    int32_t                 edit; // that made it
};

// which tensors of the current graph are ours: they lie where the graph's context grew while we added to it
struct llama_interp_added {
    enum { NONE = -1, CAPTURE = -2 };

    struct range {
        const uint8_t * begin;
        const uint8_t * end;
        int32_t         by; // an edit, or CAPTURE
    };

    std::vector<range> ranges;

    int32_t find(const ggml_tensor * t) const;
};

// what the host function of an edit gets
struct llama_interp_host_call {
    llama_interp * interp;
    int32_t        edit;
};

//
// the graph that is being built
//

struct llama_interp_build {
    llama_interp_build(const llm_graph_context & gctx) : gctx(gctx) {}

    const llm_graph_context & gctx;

    std::map<std::pair<std::string, int32_t>, int32_t> counts;

    std::vector<const ggml_tensor *> sites; // while scanning: the tensor of each

    std::vector<ggml_tensor *> stop_nodes; // what a run that ends early needs
    const ggml_tensor *        stopped = nullptr; // at this tensor

    std::map<const ggml_tensor *, ggml_tensor *> masks; // of attention, as floats

    size_t mem_added = 0; // of the graph's context, by us

    // during an edit
    const llama_interp_edit *           edit         = nullptr;
    int32_t                             edit_id      = -1;
    int64_t                             n_keys       = 0; // of attention
    int64_t                             n_rows       = 0;
    bool                                outputs_only = false;
    std::unordered_set<const ggml_tensor *> handles;
};

struct llama_interp {
    llama_model   * model = nullptr; // owned, or null if attached
    llama_context * lctx  = nullptr;

    mutable std::string error; // of functions that change nothing else, too

    // program
    std::vector<llama_interp_capture> captures;
    std::vector<llama_interp_edit>    edits;

    std::unique_ptr<llama_interp_target> start;
    std::vector<float>                   start_data;
    std::vector<int32_t>                 start_pos;
    std::vector<int32_t>                 start_seq; // empty: of any sequence
    int64_t                              start_n_embd = 0;

    std::unique_ptr<llama_interp_target> stop;

    bool pack_queries = false; // llama_interp_pack_queries

    bool                            choose_logits = false; // llama_interp_logits_set
    std::vector<llama_interp_range> logits_ranges;
    std::vector<int32_t>            logits_ids;            // llama_interp_logits_set_ids; empty: all
    ggml_tensor *                   t_logits = nullptr;    // in the current graph
    std::vector<float>              logits;                // of the last decode
    int32_t                         n_logits = 0;          // in a row of them

    // whether logits are read here and not by llama_decode
    bool takes_logits() const { return choose_logits || !logits_ids.empty(); }

    std::vector<llama_interp_const_buf> consts;

    llama_interp_edit_fn edit_fn   = nullptr;
    void *               edit_data = nullptr;

    llama_interp_host_fn host_fn   = nullptr;
    void *               host_data = nullptr;

    std::vector<std::unique_ptr<llama_interp_host_call>> host_calls;

    llama_interp_poll_fn poll_fn   = nullptr;
    void *               poll_data = nullptr;
    int64_t              poll_us   = 0;     // when to call it next
    bool                 stopping  = false; // it asked for the end of the batch

    // asks whether to stop, now and then
    bool poll();

    uint64_t version = 0; // of the program, changes force a new graph

    bool incomplete = false; // a part of the program could not be taken: what runs would be another one

    // graph
    std::unique_ptr<llama_interp_build> build;
    std::vector<llama_interp_input>     inputs;

    llama_interp_tokens tokens; // of the batch that runs

    std::map<ggml_backend_t, llama_interp_staging> staging; // what backends copy tensors into

    // shown before it runs
    llama_interp_graph_fn graph_fn   = nullptr;
    void *                graph_data = nullptr;
    llama_interp_added    added;
    int32_t               n_leafs    = 0;

    std::vector<const ggml_tensor *>                 nodes;
    std::unordered_map<const ggml_tensor *, int32_t> node_index;

    bool     decoding  = false; // hooks act only inside llama_interp_decode and llama_interp_scan
    bool     failed    = false; // the graph that is being built must not run
    bool     planned   = false; // the last graph had a program
    bool     full      = false; // ... because it needs more nodes
    bool     again     = false; // ... because a capture needs a copy; built again, it will run
    uint32_t n_nodes   = 4096;  // headroom
    int64_t  n_built   = 0;
    int64_t  n_decoded = 0;     // ubatches

    int32_t  n_outputs = 0;     // of the last decode
    bool     tainted   = false; // the cache may hold infinities: a run that did not compute its own values filled it

    // scan
    bool                           scanning = false;
    std::vector<llama_interp_site> sites;

    bool wants(const char * name, int32_t il) const; // a capture
    bool edits_at(const char * name, int32_t il) const;

    void fail(const std::string & msg);
};
