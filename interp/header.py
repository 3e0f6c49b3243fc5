"""The C interface ``patches/native/llama-interp.h`` in ctypes: its structs, constants and functions.

Our own structs start with their size; :mod:`interp.native` compares every offset with what the library reports before
anything is called. No struct of llama.cpp crosses by value.
"""

from __future__ import annotations

import ctypes as ct
from ctypes import POINTER, c_char, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

VERSION = 6

GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_I32 = 0, 1, 8, 26

#: ``enum ggml_backend_dev_type``, in its order
DEVICE_TYPES = ("cpu", "gpu", "igpu", "accel", "meta")

CAPTURE_TENSOR, CAPTURE_ATTN, CAPTURE_STATS = 0, 1, 2

#: of a top value's tokens, its own has this index; and how many there are
STATS_BEFORE, STATS_CONTEXT = 15, 20

#: ``enum llama_interp_stats_field``
(STATS_N_ROWS, STATS_MEAN, STATS_MEAN_SQ, STATS_VAR, STATS_MIN, STATS_MAX, STATS_N_SMALL, STATS_TOP, STATS_TOP_ROW,
 STATS_TOP_TOKENS) = range(10)

#: names of ``enum llama_interp_op``, in its order
OPS = (
    "neg abs sqr sqrt exp log relu gelu silu tanh sigmoid step soft_max sum mean norm rms_norm scale clamp "
    "reshape permute slice repeat add sub mul div mul_mat concat"
).split()

#: the first operation with two operands, ``LLAMA_INTERP_OP_ADD``
FIRST_BINARY_OP = OPS.index("add")


class _Sized(ct.Structure):
    """A struct whose first field is its own size; the fields that follow come from ``_fields_`` of a subclass."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.size = ct.sizeof(self)


def _fields(kind, names: str) -> list:
    return [(name, kind) for name in names.split()]


class Params(_Sized):
    """``struct llama_interp_params``"""

    _fields_ = _fields(c_uint32, "size n_ctx n_batch n_ubatch n_seq_max") + _fields(
        c_int32, "n_gpu_layers n_threads type_kv flash_attn use_mmap use_extra_bufts"
    ) + [("devices", c_char_p)]


class Info(_Sized):
    """``struct llama_interp_info``"""

    _fields_ = (
        _fields(c_uint32, "size n_ctx n_batch n_ubatch n_seq_max n_ctx_train")
        + _fields(
            c_int32,
            "n_vocab n_embd n_layer n_head n_head_kv n_embd_head_k n_embd_head_v n_threads flash_attn "
            "has_memory has_encoder is_recurrent token_bos token_eos add_bos",
        )
        + _fields(c_uint64, "n_params n_bytes")
    )


class Device(_Sized):
    """``struct llama_interp_device``"""

    _fields_ = (
        [("size", c_uint32), ("type", c_int32)]
        + _fields(c_uint64, "memory_free memory_total n_weights n_cache n_compute")
        + [("name", c_char * 64), ("description", c_char * 256), ("backend", c_char * 32)]
    )


class Layer(_Sized):
    """``struct llama_interp_layer``"""

    _fields_ = [("size", c_uint32), ("il", c_int32), ("n_weights", c_uint64), ("device", c_char * 64)]


class TensorInfo(_Sized):
    """``struct llama_interp_tensor_info``"""

    _fields_ = [
        ("size", c_uint32),
        ("type", c_int32),
        ("ne", c_int64 * 4),
        ("is_input", c_int32),
        ("rows_axis", c_int32),
    ]


class SiteInfo(_Sized):
    """``struct llama_interp_site``"""

    _fields_ = [
        ("size", c_uint32),
        ("il", c_int32),
        ("occurrence", c_int32),
        ("type", c_int32),
        ("ne", c_int64 * 4),
        ("rows_axis", c_int32),
        ("is_leaf", c_int32),
        ("name", c_char * 64),
    ]


class Range(ct.Structure):
    """``struct llama_interp_range``"""

    _fields_ = [("lo", c_int32), ("hi", c_int32)]


class Batch(_Sized):
    """``struct llama_interp_batch``"""

    _fields_ = [
        ("size", c_uint32),
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("pos", POINTER(c_int32)),
        ("seq", POINTER(c_int32)),
        ("output", POINTER(c_int8)),
    ]


class CaptureInfo(_Sized):
    """``struct llama_interp_capture_info``"""

    _fields_ = [
        ("size", c_uint32),
        ("type", c_int32),
        ("n_rows", c_int32),
        ("rows_axis", c_int32),
        ("ne", c_int64 * 4),
    ]


class Node(_Sized):
    """``struct llama_interp_node``"""

    _fields_ = [
        ("size", c_uint32),
        ("is_leaf", c_int32),
        ("is_output", c_int32),
        ("added", c_int32),
        ("n_src", c_int32),
        ("src", c_int32 * 10),
        ("view_src", c_int32),
        ("ne", c_int64 * 4),
        ("nb", c_int64 * 4),
        ("name", c_char * 64),
        ("op", c_char * 32),
        ("type", c_char * 16),
        ("backend", c_char * 32),
    ]


class AbiEntry(ct.Structure):
    _fields_ = [("name", c_char_p), ("value", c_uint64)]


#: every struct that crosses, by its C name
STRUCTS = {
    "llama_interp_params": Params,
    "llama_interp_info": Info,
    "llama_interp_device": Device,
    "llama_interp_layer": Layer,
    "llama_interp_tensor_info": TensorInfo,
    "llama_interp_site": SiteInfo,
    "llama_interp_range": Range,
    "llama_interp_batch": Batch,
    "llama_interp_capture_info": CaptureInfo,
    "llama_interp_node": Node,
}

#: constants that both sides must agree on
CONSTANTS = {
    "version": VERSION,
    "ggml_type.f32": GGML_TYPE_F32,
    "ggml_type.f16": GGML_TYPE_F16,
    "ggml_type.i32": GGML_TYPE_I32,
    "ggml_type.q8_0": GGML_TYPE_Q8_0,
    "llama_interp_op.count": len(OPS),
    "llama_interp_stats.before": STATS_BEFORE,
    "llama_interp_stats.context": STATS_CONTEXT,
}

# functions that the library calls give what they have to their last argument: what ctypes returns for one that an
# exception ended before its first line is nothing that can be relied on

# void (*)(void * user_data, int32_t edit, struct ggml_tensor * cur, struct ggml_tensor ** res)
EDIT_FN = ct.CFUNCTYPE(None, c_void_p, c_int32, c_void_p, POINTER(c_void_p))

# void (*)(void * user_data, int32_t edit, float * data, const int64_t * ne, int32_t * done)
HOST_FN = ct.CFUNCTYPE(None, c_void_p, c_int32, POINTER(c_float), POINTER(c_int64), POINTER(c_int32))

# void (*)(void * user_data, int32_t * done)
GRAPH_FN = ct.CFUNCTYPE(None, c_void_p, POINTER(c_int32))

# void (*)(void * user_data, int32_t * stop)
POLL_FN = ct.CFUNCTYPE(None, c_void_p, POINTER(c_int32))

_FLOATS, _INTS, _LONGS = POINTER(c_float), POINTER(c_int32), POINTER(c_int64)

#: function without its ``llama_interp_`` prefix -> (result, arguments), the C prototype above each
PROTOTYPES = {
    # void llama_interp_log_init(int32_t level)
    "log_init": (None, [c_int32]),
    # size_t llama_interp_log_take(char * buf, size_t n_buf)
    "log_take": (c_size_t, [c_char_p, c_size_t]),
    # struct llama_interp * llama_interp_init(const char * path, const struct llama_interp_params * params)
    "init": (c_void_p, [c_char_p, POINTER(Params)]),
    # struct llama_interp * llama_interp_attach(struct llama_context * ctx)
    "attach": (c_void_p, [c_void_p]),
    # void llama_interp_free(struct llama_interp *)
    "free": (None, [c_void_p]),
    # int32_t llama_interp_get_info(const struct llama_interp *, struct llama_interp_info * info)
    "get_info": (c_int32, [c_void_p, POINTER(Info)]),
    # const char * llama_interp_error(const struct llama_interp *)
    "error": (c_char_p, [c_void_p]),
    # int32_t llama_interp_meta(const struct llama_interp *, const char * key, char * buf, size_t n_buf)
    "meta": (c_int32, [c_void_p, c_char_p, c_char_p, c_size_t]),
    # int32_t llama_interp_devices_list(struct llama_interp_device * devices, int32_t n_max)
    "devices_list": (c_int32, [POINTER(Device), c_int32]),
    # int32_t llama_interp_devices_used(.., struct llama_interp_device * devices, int32_t n_max)
    "devices_used": (c_int32, [c_void_p, POINTER(Device), c_int32]),
    # int32_t llama_interp_devices_needed(const char * path, const struct llama_interp_params * params, devices, n_max,
    #     int32_t * n_layer)
    "devices_needed": (c_int32, [c_char_p, POINTER(Params), POINTER(Device), c_int32, _INTS]),
    # int32_t llama_interp_layer_get(.., int32_t il, struct llama_interp_layer * layer)
    "layer_get": (c_int32, [c_void_p, c_int32, POINTER(Layer)]),
    # int32_t llama_interp_rpc_connect(const char * endpoint, struct llama_interp_device * devices, int32_t n_max)
    "rpc_connect": (c_int32, [c_char_p, POINTER(Device), c_int32]),
    # void llama_interp_rpc_disconnect(const char * endpoint)
    "rpc_disconnect": (None, [c_char_p]),
    # int64_t llama_interp_rpc_n_lost(void)
    "rpc_n_lost": (c_int64, []),
    # int32_t llama_interp_rpc_serve(const char * endpoint, const char * devices, int32_t n_threads)
    "rpc_serve": (c_int32, [c_char_p, c_char_p, c_int32]),
    # int32_t llama_interp_tokenize(.., text, n_text, int32_t * tokens, n_tokens_max, add_special, parse_special)
    "tokenize": (c_int32, [c_void_p, c_char_p, c_int32, _INTS, c_int32, c_int32, c_int32]),
    # int32_t llama_interp_token_to_piece(.., int32_t token, char * buf, int32_t n_buf)
    "token_to_piece": (c_int32, [c_void_p, c_int32, c_char_p, c_int32]),
    # int32_t llama_interp_token_is_eog(.., int32_t token)
    "token_is_eog": (c_int32, [c_void_p, c_int32]),
    # int32_t llama_interp_weight_info(.., const char * name, struct llama_interp_tensor_info * info)
    "weight_info": (c_int32, [c_void_p, c_char_p, POINTER(TensorInfo)]),
    # int32_t llama_interp_weight_read(.., const char * name, float * dst, size_t n_dst)
    "weight_read": (c_int32, [c_void_p, c_char_p, _FLOATS, c_size_t]),
    # int32_t llama_interp_scan(.., int32_t n_tokens)
    "scan": (c_int32, [c_void_p, c_int32]),
    # int32_t llama_interp_scan_get(.., int32_t i, struct llama_interp_site * site)
    "scan_get": (c_int32, [c_void_p, c_int32, POINTER(SiteInfo)]),
    # void llama_interp_program_clear(struct llama_interp *)
    "program_clear": (None, [c_void_p]),
    # int32_t llama_interp_capture_add(.., name, il, occurrence, kind, rows_axis, heads, n_heads, ranges, n_ranges)
    "capture_add": (
        c_int32,
        [c_void_p, c_char_p, c_int32, c_int32, c_int32, c_int32, _INTS, c_int32, POINTER(Range), c_int32],
    ),
    # int32_t llama_interp_edit_add(.., const char * name, int32_t il, int32_t occurrence, int32_t rows_axis)
    "edit_add": (c_int32, [c_void_p, c_char_p, c_int32, c_int32, c_int32]),
    # void llama_interp_set_edit_fn(.., llama_interp_edit_fn fn, void * user_data)
    "set_edit_fn": (None, [c_void_p, EDIT_FN, c_void_p]),
    # void llama_interp_set_host_fn(.., llama_interp_host_fn fn, void * user_data)
    "set_host_fn": (None, [c_void_p, HOST_FN, c_void_p]),
    # int32_t llama_interp_start_set(.., name, il, occurrence, const float * data, pos, seq, int32_t n_rows)
    "start_set": (c_int32, [c_void_p, c_char_p, c_int32, c_int32, _FLOATS, _INTS, _INTS, c_int32]),
    # int32_t llama_interp_logits_set(.., const struct llama_interp_range * ranges, int32_t n_ranges)
    "logits_set": (c_int32, [c_void_p, POINTER(Range), c_int32]),
    # int32_t llama_interp_logits_set_ids(.., const int32_t * ids, int32_t n_ids)
    "logits_set_ids": (c_int32, [c_void_p, _INTS, c_int32]),
    # void llama_interp_pack_queries(struct llama_interp *)
    "pack_queries": (None, [c_void_p]),
    # int32_t llama_interp_stop_set(.., const char * name, int32_t il, int32_t occurrence)
    "stop_set": (c_int32, [c_void_p, c_char_p, c_int32, c_int32]),
    # int32_t llama_interp_decode(.., const struct llama_interp_batch * batch)
    "decode": (c_int32, [c_void_p, POINTER(Batch)]),
    # void llama_interp_set_poll_fn(.., llama_interp_poll_fn fn, void * user_data)
    "set_poll_fn": (None, [c_void_p, POLL_FN, c_void_p]),
    # int32_t llama_interp_logits_count(const struct llama_interp *)
    "logits_count": (c_int32, [c_void_p]),
    # int32_t llama_interp_logits_read(.., float * dst, int32_t first, int32_t n_rows)
    "logits_read": (c_int32, [c_void_p, c_void_p, c_int32, c_int32]),
    # int32_t llama_interp_logits_width(const struct llama_interp *)
    "logits_width": (c_int32, [c_void_p]),
    # void llama_interp_memory_clear(struct llama_interp *)
    "memory_clear": (None, [c_void_p]),
    # int32_t llama_interp_memory_seq_rm(.., int32_t seq, int32_t p0, int32_t p1)
    "memory_seq_rm": (c_int32, [c_void_p, c_int32, c_int32, c_int32]),
    # int32_t llama_interp_memory_seq_cp(.., int32_t src, int32_t dst, int32_t p0, int32_t p1)
    "memory_seq_cp": (c_int32, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    # int32_t llama_interp_memory_rewind(.., int32_t n_pos)
    "memory_rewind": (c_int32, [c_void_p, c_int32]),
    # size_t llama_interp_state_size(.., int32_t seq)
    "state_size": (c_size_t, [c_void_p, c_int32]),
    # size_t llama_interp_state_get(.., int32_t seq, uint8_t * dst, size_t n_dst)
    "state_get": (c_size_t, [c_void_p, c_int32, c_void_p, c_size_t]),
    # size_t llama_interp_state_set(.., int32_t seq, const uint8_t * src, size_t n_src)
    "state_set": (c_size_t, [c_void_p, c_int32, c_void_p, c_size_t]),
    # void llama_interp_graph_counts(.., int64_t * n_built, int64_t * n_reused)
    "graph_counts": (None, [c_void_p, _LONGS, _LONGS]),
    # int32_t llama_interp_capture_get_info(.., int32_t id, struct llama_interp_capture_info * info)
    "capture_get_info": (c_int32, [c_void_p, c_int32, POINTER(CaptureInfo)]),
    # int32_t llama_interp_capture_read(.., int32_t id, void * dst, size_t n_bytes)
    "capture_read": (c_int32, [c_void_p, c_int32, c_void_p, c_size_t]),
    # void * llama_interp_capture_take(.., int32_t id, size_t n_bytes)
    "capture_take": (c_void_p, [c_void_p, c_int32, c_size_t]),
    # void llama_interp_capture_free(void * data)
    "capture_free": (None, [c_void_p]),
    # int32_t llama_interp_capture_rows(.., int32_t id, int32_t * pos, int32_t * seq)
    "capture_rows": (c_int32, [c_void_p, c_int32, _INTS, _INTS]),
    # void llama_interp_capture_clear(struct llama_interp *)
    "capture_clear": (None, [c_void_p]),
    # int32_t llama_interp_stats_set(.., int32_t id, float threshold, int32_t n_top)
    "stats_set": (c_int32, [c_void_p, c_int32, c_float, c_int32]),
    # void llama_interp_stats_set_offset(.., int64_t offset)
    "stats_set_offset": (None, [c_void_p, c_int64]),
    # int64_t llama_interp_stats_n_channels(.., int32_t id)
    "stats_n_channels": (c_int64, [c_void_p, c_int32]),
    # int32_t llama_interp_stats_read(.., int32_t id, int32_t field, void * dst, size_t n_bytes)
    "stats_read": (c_int32, [c_void_p, c_int32, c_int32, c_void_p, c_size_t]),
    # void llama_interp_set_graph_fn(.., llama_interp_graph_fn fn, void * user_data)
    "set_graph_fn": (None, [c_void_p, GRAPH_FN, c_void_p]),
    # int32_t llama_interp_node_count(const struct llama_interp *)
    "node_count": (c_int32, [c_void_p]),
    # int32_t llama_interp_node_get(.., int32_t i, struct llama_interp_node * node)
    "node_get": (c_int32, [c_void_p, c_int32, POINTER(Node)]),
    # struct ggml_tensor * llama_interp_op(.., int32_t op, a, b, const float * f, const int64_t * i)
    "op": (c_void_p, [c_void_p, c_int32, c_void_p, c_void_p, _FLOATS, _LONGS]),
    # struct ggml_tensor * llama_interp_const(.., int32_t il, const int64_t * ne, const float * data)
    "const": (c_void_p, [c_void_p, c_int32, _LONGS, _FLOATS]),
    # struct ggml_tensor * llama_interp_input_mask(.., ranges, n_ranges, int32_t seq, int32_t dim)
    "input_mask": (c_void_p, [c_void_p, POINTER(Range), c_int32, c_int32, c_int32]),
    # struct ggml_tensor * llama_interp_input_rows(.., pos, seq, int32_t n_pos, const float * data, int64_t n_embd)
    "input_rows": (c_void_p, [c_void_p, _INTS, _INTS, c_int32, _FLOATS, c_int64]),
    # struct ggml_tensor * llama_interp_input_keys(.., const struct llama_interp_range * ranges, int32_t n_ranges)
    "input_keys": (c_void_p, [c_void_p, POINTER(Range), c_int32]),
    # struct ggml_tensor * llama_interp_host(.., struct ggml_tensor * a)
    "host": (c_void_p, [c_void_p, c_void_p]),
    # int32_t llama_interp_tensor_get_info(.., const struct ggml_tensor * t, struct llama_interp_tensor_info * info)
    "tensor_get_info": (c_int32, [c_void_p, c_void_p, POINTER(TensorInfo)]),
}
