#pragma once

// C interface of llama-interp: read and change the named tensors of a running model
//
// - no struct of llama.cpp or ggml crosses this border by value
// - every struct starts with its size; llama_interp_abi() reports the layouts, a caller compares them with its own
// - functions that can fail return NULL or a negative number; llama_interp_error() says why
// - one llama_interp belongs to one thread at a time

#include "llama.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLAMA_INTERP_VERSION 6

struct llama_interp;

//
// layout report
//

struct llama_interp_abi_entry {
    const char * name;  // "version", "struct.size" or "struct.field"
    uint64_t     value; // for a field: its offset
};

// a list that ends with a NULL name
LLAMA_API const struct llama_interp_abi_entry * llama_interp_abi(void);

//
// log
//

// keep warnings and errors of llama.cpp for llama_interp_log_take; print those of at least `level` to stderr
// level: a ggml_log_level, 0 prints nothing
LLAMA_API void llama_interp_log_init(int32_t level);

// what was logged since the last call, the last 32 KB of it and at most n_buf - 1 bytes; returns the length
LLAMA_API size_t llama_interp_log_take(char * buf, size_t n_buf);

//
// model and context
//

struct llama_interp_params {
    uint32_t size;

    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;      // a recurrent model gets one: each has a memory of its own
    int32_t  n_gpu_layers;   // negative: all
    int32_t  n_threads;      // 0: the default
    int32_t  type_kv;        // a ggml_type
    int32_t  flash_attn;     // 0 or 1
    int32_t  use_mmap;       // 0 or 1
    int32_t  use_extra_bufts; // 0: weights stay as they are in the file and can be read back

    const char * devices; // names of ggml's devices with commas between them, "": the CPU alone, NULL: llama.cpp's choice
};

struct llama_interp_info {
    uint32_t size;

    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_ctx_train;
    int32_t  n_vocab;
    int32_t  n_embd;
    int32_t  n_layer;
    int32_t  n_head;
    int32_t  n_head_kv;
    int32_t  n_embd_head_k;
    int32_t  n_embd_head_v;
    int32_t  n_threads;
    int32_t  flash_attn;
    int32_t  has_memory;   // 0: an encoder, nothing can be generated
    int32_t  has_encoder;
    int32_t  is_recurrent; // 1: recurrent or hybrid
    int32_t  token_bos;    // -1: none
    int32_t  token_eos;
    int32_t  add_bos;
    uint64_t n_params;
    uint64_t n_bytes;
};

// load a model and make a context with a handle attached
LLAMA_API struct llama_interp * llama_interp_init(const char * path, const struct llama_interp_params * params);

// attach a handle to a context that somebody else owns and frees later
LLAMA_API struct llama_interp * llama_interp_attach(struct llama_context * ctx);

LLAMA_API void llama_interp_free(struct llama_interp * interp);

LLAMA_API int32_t llama_interp_get_info(const struct llama_interp * interp, struct llama_interp_info * info);

// the last error of this handle, or, with NULL, of the functions on this thread that have none
LLAMA_API const char * llama_interp_error(const struct llama_interp * interp);

// value of a key of the GGUF header, or -1; returns the length, may be larger than n_buf
LLAMA_API int32_t llama_interp_meta(const struct llama_interp * interp, const char * key, char * buf, size_t n_buf);

//
// devices
//

struct llama_interp_device {
    uint32_t size;

    int32_t  type;         // a ggml_backend_dev_type
    uint64_t memory_free;  // both 0: it does not say
    uint64_t memory_total;
    uint64_t n_weights;    // bytes that a model has there
    uint64_t n_cache;
    uint64_t n_compute;
    char     name[64];
    char     description[256];
    char     backend[32];
};

// functions that fill devices[n_max] return how many there are, which may be more, or a negative number

// the devices of this machine that the library was built for; RPC servers are not among them
LLAMA_API int32_t llama_interp_devices_list(struct llama_interp_device * devices, int32_t n_max);

// those that hold a part of the model
LLAMA_API int32_t llama_interp_devices_used(const struct llama_interp * interp, struct llama_interp_device * devices, int32_t n_max);

// those that llama_interp_init would use and what it would put there, from the header of the file: nothing is allocated
LLAMA_API int32_t llama_interp_devices_needed(
                           const char * path,
    const struct llama_interp_params  * params,
          struct llama_interp_device  * devices,
                              int32_t   n_max,
                              int32_t * n_layer);

struct llama_interp_layer {
    uint32_t size;

    int32_t  il;
    uint64_t n_weights;  // bytes
    char     device[64];
};

// il -1: the embedding of the tokens, the number of layers: what comes after the last
LLAMA_API int32_t llama_interp_layer_get(const struct llama_interp * interp, int32_t il, struct llama_interp_layer * layer);

// connect to the RPC server at "host:port" and fill in its devices, which llama_interp_params may name then
// the connection stays until llama_interp_rpc_disconnect; models on the server need it no longer
// what does not answer blocks for ever: ask the endpoint first
LLAMA_API int32_t llama_interp_rpc_connect   (const char * endpoint, struct llama_interp_device * devices, int32_t n_max);
LLAMA_API void    llama_interp_rpc_disconnect(const char * endpoint);

// requests of this process that an RPC server did not answer: each of them got zeros instead
LLAMA_API int64_t llama_interp_rpc_n_lost(void);

// serve these devices, named as in llama_interp_params; returns only where it fails
LLAMA_API int32_t llama_interp_rpc_serve(const char * endpoint, const char * devices, int32_t n_threads);

//
// vocabulary
//

// returns the number of tokens, or the negative of what tokens[] must hold; INT32_MIN: llama_interp_error(NULL) says why
LLAMA_API int32_t llama_interp_tokenize(
        const struct llama_interp * interp,
                       const char * text,
                          int32_t   n_text,
                          int32_t * tokens,
                          int32_t   n_tokens_max,
                          int32_t   add_special,
                          int32_t   parse_special);

// returns the number of bytes, or the negative of what buf[] must hold; INT32_MIN: llama_interp_error(NULL) says why
LLAMA_API int32_t llama_interp_token_to_piece(const struct llama_interp * interp, int32_t token, char * buf, int32_t n_buf);

// 1: the token ends a generation
LLAMA_API int32_t llama_interp_token_is_eog(const struct llama_interp * interp, int32_t token);

//
// weights
//

struct llama_interp_tensor_info {
    uint32_t size;

    int32_t  type;     // a ggml_type
    int64_t  ne[4];    // ggml's order: the fastest dimension first
    int32_t  is_input; // 1: an input of the graph, cannot be replaced
    int32_t  rows_axis; // the dimension that counts tokens, -1: none
};

LLAMA_API int32_t llama_interp_weight_info(const struct llama_interp * interp, const char * name, struct llama_interp_tensor_info * info);

// the weight as float32, dequantised
LLAMA_API int32_t llama_interp_weight_read(struct llama_interp * interp, const char * name, float * dst, size_t n_dst);

//
// sites
//

struct llama_interp_site {
    uint32_t size;

    int32_t  il;         // -1: none
    int32_t  occurrence; // counts tensors of the same name and layer
    int32_t  type;
    int64_t  ne[4];      // for a batch of n_tokens
    int32_t  rows_axis;  // the dimension that counts tokens, -1: none
    int32_t  is_leaf;    // 1: an input, cannot be replaced
    char     name[64];
};

// build a graph of n_tokens without running it and list its named tensors in order, but for what is not computed when a
// batch comes as tokens; returns their number
LLAMA_API int32_t llama_interp_scan(struct llama_interp * interp, int32_t n_tokens);

LLAMA_API int32_t llama_interp_scan_get(const struct llama_interp * interp, int32_t i, struct llama_interp_site * site);

//
// program: what the next decodes read and change
//

// positions from lo up to but not including hi
struct llama_interp_range {
    int32_t lo;
    int32_t hi;
};

enum llama_interp_capture_kind {
    LLAMA_INTERP_CAPTURE_TENSOR = 0, // rows are tokens
    LLAMA_INTERP_CAPTURE_ATTN   = 1, // [n_key, n_query, n_head], keys in the order of the sequence
    LLAMA_INTERP_CAPTURE_STATS  = 2, // nothing is kept but statistics of each channel
};

// forget captures, edits, constants and the ends of a partial graph
LLAMA_API void llama_interp_program_clear(struct llama_interp * interp);

// read a tensor; heads (attention only) and ranges may be empty for all; returns the id of the capture
LLAMA_API int32_t llama_interp_capture_add(
                    struct llama_interp * interp,
                             const char * name,
                                int32_t   il,
                                int32_t   occurrence,
                                int32_t   kind,
                                int32_t   rows_axis,
                          const int32_t * heads,
                                int32_t   n_heads,
        const struct llama_interp_range * ranges,
                                int32_t   n_ranges);

// replace a tensor by what the callback returns; returns the id of the edit
LLAMA_API int32_t llama_interp_edit_add(
        struct llama_interp * interp,
                 const char * name,
                    int32_t   il,
                    int32_t   occurrence,
                    int32_t   rows_axis);

// what these functions give goes to memory that is zero before the call: one that is interrupted on its way, in a
// language that can be, leaves it so, and the decode fails

// called while a graph is built, once for each edit; gives the replacement, or NULL to stop the decode
typedef void (*llama_interp_edit_fn)(void * user_data, int32_t edit, struct ggml_tensor * cur, struct ggml_tensor ** res);

LLAMA_API void llama_interp_set_edit_fn(struct llama_interp * interp, llama_interp_edit_fn fn, void * user_data);

// a function of a tensor's values, called on the host at every run of the graph
// data: contiguous float32 in ggml's order, changed in place; done: 1 where that went well
typedef void (*llama_interp_host_fn)(void * user_data, int32_t edit, float * data, const int64_t * ne, int32_t * done);

LLAMA_API void llama_interp_set_host_fn(struct llama_interp * interp, llama_interp_host_fn fn, void * user_data);

// start the graph at a tensor of the residual stream: data[n_rows][n_embd], row i for the token at pos[i] of seq[i]
// pos NULL: 0, 1, 2, .., seq NULL: of any sequence
// the data is copied
LLAMA_API int32_t llama_interp_start_set(
        struct llama_interp * interp,
                 const char * name,
                    int32_t   il,
                    int32_t   occurrence,
                const float * data,
              const int32_t * pos,
              const int32_t * seq,
                    int32_t   n_rows);

// logits only for tokens at these positions, whatever else is read: the residual stream keeps all its rows up to the
// last norm, and the head runs on the chosen ones; n_ranges 0: for none
// the batch has to ask for the outputs of all its tokens
LLAMA_API int32_t llama_interp_logits_set(struct llama_interp * interp, const struct llama_interp_range * ranges, int32_t n_ranges);

// logits only of these tokens of the vocabulary, in this order, multiplied alone
// where the head is none that this knows (a repacked weight, another operation after it), all are computed as ever;
// llama_interp_logits_width tells
LLAMA_API int32_t llama_interp_logits_set_ids(struct llama_interp * interp, const int32_t * ids, int32_t n_ids);

// without flash attention, copy the queries before they meet the keys: quicker on CPUs, rounded otherwise
LLAMA_API void    llama_interp_pack_queries(struct llama_interp * interp);

// end the graph with this tensor: no logits
LLAMA_API int32_t llama_interp_stop_set(struct llama_interp * interp, const char * name, int32_t il, int32_t occurrence);

//
// run
//

struct llama_interp_batch {
    uint32_t size;

    int32_t         n_tokens;
    const int32_t * token;
    const int32_t * pos;
    const int32_t * seq;    // one sequence for each token
    const int8_t  * output; // 1: logits wanted
};

// runs the batch with the program; 0 on success, 2 if it was stopped
LLAMA_API int32_t llama_interp_decode(struct llama_interp * interp, const struct llama_interp_batch * batch);

// called on the thread that decodes, a few times a second, between nodes of the graph where the CPU computes them, else
// between ubatches; stop: 1 ends the batch
typedef void (*llama_interp_poll_fn)(void * user_data, int32_t * stop);

LLAMA_API void llama_interp_set_poll_fn(struct llama_interp * interp, llama_interp_poll_fn fn, void * user_data);

// logits of the last decode, one row for each output, of n_vocab or of the chosen tokens, in the order of the batch; n_rows of them from `first`,
// which counts from the end where it is negative
LLAMA_API int32_t llama_interp_logits_count(const struct llama_interp * interp);
LLAMA_API int32_t llama_interp_logits_read(struct llama_interp * interp, float * dst, int32_t first, int32_t n_rows);
LLAMA_API int32_t llama_interp_logits_width(const struct llama_interp * interp);

LLAMA_API void    llama_interp_memory_clear (struct llama_interp * interp);
LLAMA_API int32_t llama_interp_memory_seq_rm(struct llama_interp * interp, int32_t seq, int32_t p0, int32_t p1);
LLAMA_API int32_t llama_interp_memory_seq_cp(struct llama_interp * interp, int32_t src, int32_t dst, int32_t p0, int32_t p1);

// keep the first n_pos positions of sequence 0 and nothing else
// 0: done, 1: the memory cannot forget a part, or may hold infinities: all of it was cleared
LLAMA_API int32_t llama_interp_memory_rewind(struct llama_interp * interp, int32_t n_pos);

// what the memory holds of a sequence, as bytes that another context of the same model and build takes
// 0: an error
LLAMA_API size_t llama_interp_state_size(struct llama_interp * interp, int32_t seq);
LLAMA_API size_t llama_interp_state_get (struct llama_interp * interp, int32_t seq, uint8_t * dst, size_t n_dst);
LLAMA_API size_t llama_interp_state_set (struct llama_interp * interp, int32_t seq, const uint8_t * src, size_t n_src);

// number of graphs built and reused since the handle was made
LLAMA_API void llama_interp_graph_counts(const struct llama_interp * interp, int64_t * n_built, int64_t * n_reused);

//
// captures of all decodes since the program was set or the captures were cleared
//

struct llama_interp_capture_info {
    uint32_t size;

    int32_t  type;      // a ggml_type: F32 or I32
    int32_t  n_rows;    // tokens
    int32_t  rows_axis;
    int64_t  ne[4];     // of the whole, ggml's order
};

LLAMA_API int32_t llama_interp_capture_get_info(const struct llama_interp * interp, int32_t id, struct llama_interp_capture_info * info);

// contiguous, ggml's order
LLAMA_API int32_t llama_interp_capture_read(const struct llama_interp * interp, int32_t id, void * dst, size_t n_bytes);

// hand over what llama_interp_capture_read would copy, where it lies in one piece; NULL where it does not
// the caller frees it
LLAMA_API void * llama_interp_capture_take(struct llama_interp * interp, int32_t id, size_t n_bytes);

LLAMA_API void llama_interp_capture_free(void * data);

// position and sequence of each row
LLAMA_API int32_t llama_interp_capture_rows(const struct llama_interp * interp, int32_t id, int32_t * pos, int32_t * seq);

LLAMA_API void llama_interp_capture_clear(struct llama_interp * interp);

//
// statistics: captures of kind LLAMA_INTERP_CAPTURE_STATS, over all decodes since the program was set
//

// tokens before and after that of a top value, which are kept with it
#define LLAMA_INTERP_STATS_BEFORE  15
#define LLAMA_INTERP_STATS_CONTEXT 20

enum llama_interp_stats_field { // one value for each channel, unless noted
    LLAMA_INTERP_STATS_N_ROWS = 0, // int64, one in all
    LLAMA_INTERP_STATS_MEAN,       // double
    LLAMA_INTERP_STATS_MEAN_SQ,    // double: the mean square
    LLAMA_INTERP_STATS_VAR,        // double: the variance, divided by n_rows
    LLAMA_INTERP_STATS_MIN,        // float
    LLAMA_INTERP_STATS_MAX,        // float
    LLAMA_INTERP_STATS_N_SMALL,    // int64: values whose magnitude is at most the threshold
    LLAMA_INTERP_STATS_TOP,        // float, n_top for each channel: the largest magnitudes, largest first
    LLAMA_INTERP_STATS_TOP_ROW,    // int64, n_top for each channel: offset + position of the token, -1 where there is none
    LLAMA_INTERP_STATS_TOP_TOKENS, // int32, n_top*STATS_CONTEXT for each channel: its token at STATS_BEFORE and those around, -1 where there is none
};

// what a capture of kind STATS counts as small, and how many top values it keeps for each channel
LLAMA_API int32_t llama_interp_stats_set(struct llama_interp * interp, int32_t id, float threshold, int32_t n_top);

// added to the positions of the rows that come
LLAMA_API void llama_interp_stats_set_offset(struct llama_interp * interp, int64_t offset);

// channels of a capture: the elements of a token's row; 0 before the first decode
LLAMA_API int64_t llama_interp_stats_n_channels(const struct llama_interp * interp, int32_t id);

LLAMA_API int32_t llama_interp_stats_read(const struct llama_interp * interp, int32_t id, int32_t field, void * dst, size_t n_bytes);

//
// graph: its nodes, while the callback runs
//

struct llama_interp_node {
    uint32_t size;

    int32_t  is_leaf;   // 1: a weight, an input or a constant; leafs come first
    int32_t  is_output;
    int32_t  added;     // -1: the model's own, -2: added for reading, else the edit that added it
    int32_t  n_src;
    int32_t  src[10];   // indices of its inputs
    int32_t  view_src;  // the tensor whose memory it uses, -1: its own
    int64_t  ne[4];
    int64_t  nb[4];
    char     name[64];
    char     op[32];
    char     type[16];
    char     backend[32]; // where it runs or lies
};

// called when a graph was built and placed on its backends, before it runs; done: 1 where that went well
typedef void (*llama_interp_graph_fn)(void * user_data, int32_t * done);

LLAMA_API void llama_interp_set_graph_fn(struct llama_interp * interp, llama_interp_graph_fn fn, void * user_data);

// outside of the callback there are none
LLAMA_API int32_t llama_interp_node_count(const struct llama_interp * interp);
LLAMA_API int32_t llama_interp_node_get  (const struct llama_interp * interp, int32_t i, struct llama_interp_node * node);

//
// tensor expressions, only inside the edit callback
// shapes and types are checked: a mismatch returns NULL and sets the error
//

enum llama_interp_op {
    // one operand
    LLAMA_INTERP_OP_NEG = 0,
    LLAMA_INTERP_OP_ABS,
    LLAMA_INTERP_OP_SQR,
    LLAMA_INTERP_OP_SQRT,
    LLAMA_INTERP_OP_EXP,
    LLAMA_INTERP_OP_LOG,
    LLAMA_INTERP_OP_RELU,
    LLAMA_INTERP_OP_GELU,
    LLAMA_INTERP_OP_SILU,
    LLAMA_INTERP_OP_TANH,
    LLAMA_INTERP_OP_SIGMOID,
    LLAMA_INTERP_OP_STEP,
    LLAMA_INTERP_OP_SOFT_MAX, // over the fastest dimension
    LLAMA_INTERP_OP_SUM,      // over the fastest dimension, kept as 1
    LLAMA_INTERP_OP_MEAN,     // over the fastest dimension, kept as 1
    LLAMA_INTERP_OP_NORM,     // f[0]: epsilon
    LLAMA_INTERP_OP_RMS_NORM, // f[0]: epsilon
    LLAMA_INTERP_OP_SCALE,    // f[0]*a + f[1]
    LLAMA_INTERP_OP_CLAMP,    // f[0] <= a <= f[1]
    LLAMA_INTERP_OP_RESHAPE,  // i[0..3]: ne
    LLAMA_INTERP_OP_PERMUTE,  // i[0..3]: where each dimension goes, as in ggml_permute; the result is contiguous
    LLAMA_INTERP_OP_SLICE,    // i[0]: dimension, i[1]: first, i[2]: count; the result is contiguous
    LLAMA_INTERP_OP_REPEAT,   // i[0..3]: ne, multiples of a's
    // two operands
    LLAMA_INTERP_OP_ADD,      // b repeats over a
    LLAMA_INTERP_OP_SUB,
    LLAMA_INTERP_OP_MUL,
    LLAMA_INTERP_OP_DIV,
    LLAMA_INTERP_OP_MUL_MAT,  // as ggml_mul_mat(a, b)
    LLAMA_INTERP_OP_CONCAT,   // i[0]: dimension
    LLAMA_INTERP_OP_COUNT,
};

LLAMA_API struct ggml_tensor * llama_interp_op(
        struct llama_interp * interp,
                    int32_t   op,
         struct ggml_tensor * a,
         struct ggml_tensor * b,
                const float * f,
              const int64_t * i);

// a constant in a buffer of its own on the layer's device, kept until the program is cleared
LLAMA_API struct ggml_tensor * llama_interp_const(struct llama_interp * interp, int32_t il, const int64_t * ne, const float * data);

// [1, .., n_rows] in the given dimension: 1 where the position of the row's token lies in a range, else 0
// uploaded with every ubatch; seq -1: any sequence
LLAMA_API struct ggml_tensor * llama_interp_input_mask(
                    struct llama_interp * interp,
        const struct llama_interp_range * ranges,
                                int32_t   n_ranges,
                                int32_t   seq,
                                int32_t   dim);

// [n_embd, n_rows]: data[k] where the row's token is at pos[k] of seq[k], else 0; seq NULL: of any sequence
// uploaded with every ubatch; data is copied
LLAMA_API struct ggml_tensor * llama_interp_input_rows(
                    struct llama_interp * interp,
                          const int32_t * pos,
                          const int32_t * seq,
                                int32_t   n_pos,
                            const float * data,
                                int64_t   n_embd);

// [n_kv]: 1 where the cell of the KV cache holds a token at these positions, else 0; in edits of attention only
// uploaded with every ubatch
LLAMA_API struct ggml_tensor * llama_interp_input_keys(struct llama_interp * interp, const struct llama_interp_range * ranges, int32_t n_ranges);

// the tensor after llama_interp_host_fn, called for the edit that is being built; runs on the CPU wherever the layer is
LLAMA_API struct ggml_tensor * llama_interp_host(struct llama_interp * interp, struct ggml_tensor * a);

LLAMA_API int32_t llama_interp_tensor_get_info(const struct llama_interp * interp, const struct ggml_tensor * t, struct llama_interp_tensor_info * info);

#ifdef __cplusplus
}
#endif
