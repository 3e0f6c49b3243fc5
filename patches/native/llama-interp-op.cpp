// tensor expressions of an edit: each operation checks what ggml would assert

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

static std::string shape_str(const ggml_tensor * t) {
    std::string res = "(";
    bool first = true;
    for (int d = ggml_n_dims(t) - 1; d >= 0; --d) {
        res += (first ? "" : ", ") + std::to_string(t->ne[d]);
        first = false;
    }
    return res + ")";
}

static bool is_shape(const int64_t * ne) {
    int64_t n = 1;
    for (int d = 0; d < 4; ++d) {
        if (ne[d] < 1 || ne[d] > INT32_MAX || n > INT32_MAX/ne[d]) {
            return false;
        }
        n *= ne[d];
    }
    return true;
}

static bool is_permutation(const int64_t * axes) {
    bool seen[4] = {};
    for (int d = 0; d < 4; ++d) {
        if (axes[d] < 0 || axes[d] > 3 || seen[axes[d]]) {
            return false;
        }
        seen[axes[d]] = true;
    }
    return true;
}

// the reason why an operation cannot be built, or empty
static std::string check(int32_t op, const ggml_tensor * a, const ggml_tensor * b, const float * f, const int64_t * i) {
    if (a->type != GGML_TYPE_F32 || (b && b->type != GGML_TYPE_F32)) {
        return "only float32 tensors can be computed with";
    }

    const bool binary = op >= LLAMA_INTERP_OP_ADD;
    if (binary != (b != nullptr)) {
        return "wrong number of operands";
    }

    switch (op) {
        case LLAMA_INTERP_OP_NORM:
        case LLAMA_INTERP_OP_RMS_NORM:
            return f && f[0] >= 0.0f ? "" : "epsilon must not be negative";
        case LLAMA_INTERP_OP_SCALE:
            return f ? "" : "no factor given";
        case LLAMA_INTERP_OP_CLAMP:
            return f && f[0] <= f[1] ? "" : "the lower bound is above the upper one";
        case LLAMA_INTERP_OP_RESHAPE:
            if (!i || !is_shape(i) || i[0]*i[1]*i[2]*i[3] != ggml_nelements(a)) {
                return "a tensor of shape " + shape_str(a) + " cannot be reshaped so";
            }
            return "";
        case LLAMA_INTERP_OP_PERMUTE:
            return i && is_permutation(i) ? "" : "the axes are no permutation";
        case LLAMA_INTERP_OP_SLICE:
            if (!i || i[0] < 0 || i[0] > 3 || i[1] < 0 || i[2] < 1 || i[1] + i[2] > a->ne[i[0]]) {
                return "the slice does not lie in a tensor of shape " + shape_str(a);
            }
            return "";
        case LLAMA_INTERP_OP_REPEAT:
            if (!i || !is_shape(i)) {
                return "not a shape";
            }
            for (int d = 0; d < 4; ++d) {
                if (i[d] % a->ne[d] != 0) {
                    return "a tensor of shape " + shape_str(a) + " cannot be repeated so";
                }
            }
            return "";
        case LLAMA_INTERP_OP_ADD:
        case LLAMA_INTERP_OP_SUB:
        case LLAMA_INTERP_OP_MUL:
        case LLAMA_INTERP_OP_DIV:
            return ggml_can_repeat(b, a) ? "" : "shapes " + shape_str(a) + " and " + shape_str(b) + " do not fit";
        case LLAMA_INTERP_OP_MUL_MAT:
            if (a->ne[0] != b->ne[0] || b->ne[2] % a->ne[2] != 0 || b->ne[3] % a->ne[3] != 0) {
                return "shapes " + shape_str(a) + " and " + shape_str(b) + " cannot be multiplied";
            }
            return "";
        case LLAMA_INTERP_OP_CONCAT:
            if (!i || i[0] < 0 || i[0] > 3) {
                return "no such dimension";
            }
            for (int d = 0; d < 4; ++d) {
                if (d != i[0] && a->ne[d] != b->ne[d]) {
                    return "shapes " + shape_str(a) + " and " + shape_str(b) + " cannot be joined";
                }
            }
            return "";
    }
    return "";
}

static ggml_tensor * build_slice(ggml_context * ctx0, ggml_tensor * a, const int64_t * i) {
    int64_t ne[4] = { a->ne[0], a->ne[1], a->ne[2], a->ne[3] };
    ne[i[0]] = i[2];
    return ggml_cont(ctx0, ggml_view_4d(ctx0, a, ne[0], ne[1], ne[2], ne[3], a->nb[1], a->nb[2], a->nb[3], i[1]*a->nb[i[0]]));
}

static ggml_tensor * build_op(ggml_context * ctx0, int32_t op, ggml_tensor * a, ggml_tensor * b, const float * f, const int64_t * i) {
    switch (op) {
        case LLAMA_INTERP_OP_NEG:      return ggml_neg       (ctx0, a);
        case LLAMA_INTERP_OP_ABS:      return ggml_abs       (ctx0, a);
        case LLAMA_INTERP_OP_SQR:      return ggml_sqr       (ctx0, a);
        case LLAMA_INTERP_OP_SQRT:     return ggml_sqrt      (ctx0, a);
        case LLAMA_INTERP_OP_EXP:      return ggml_exp       (ctx0, a);
        case LLAMA_INTERP_OP_LOG:      return ggml_log       (ctx0, a);
        case LLAMA_INTERP_OP_RELU:     return ggml_relu      (ctx0, a);
        case LLAMA_INTERP_OP_GELU:     return ggml_gelu      (ctx0, a);
        case LLAMA_INTERP_OP_SILU:     return ggml_silu      (ctx0, a);
        case LLAMA_INTERP_OP_TANH:     return ggml_tanh      (ctx0, a);
        case LLAMA_INTERP_OP_SIGMOID:  return ggml_sigmoid   (ctx0, a);
        case LLAMA_INTERP_OP_STEP:     return ggml_step      (ctx0, a);
        case LLAMA_INTERP_OP_SOFT_MAX: return ggml_soft_max  (ctx0, a);
        case LLAMA_INTERP_OP_SUM:      return ggml_sum_rows  (ctx0, a);
        case LLAMA_INTERP_OP_MEAN:     return ggml_mean      (ctx0, a);
        case LLAMA_INTERP_OP_NORM:     return ggml_norm      (ctx0, a, f[0]);
        case LLAMA_INTERP_OP_RMS_NORM: return ggml_rms_norm  (ctx0, a, f[0]);
        case LLAMA_INTERP_OP_SCALE:    return ggml_scale_bias(ctx0, a, f[0], f[1]);
        case LLAMA_INTERP_OP_CLAMP:    return ggml_clamp     (ctx0, ggml_cont(ctx0, a), f[0], f[1]);
        case LLAMA_INTERP_OP_RESHAPE:  return ggml_reshape_4d(ctx0, a, i[0], i[1], i[2], i[3]);
        case LLAMA_INTERP_OP_PERMUTE:  return ggml_cont      (ctx0, ggml_permute(ctx0, a, i[0], i[1], i[2], i[3]));
        case LLAMA_INTERP_OP_SLICE:    return build_slice    (ctx0, a, i);
        case LLAMA_INTERP_OP_REPEAT:   return ggml_repeat_4d (ctx0, a, i[0], i[1], i[2], i[3]);
        case LLAMA_INTERP_OP_ADD:      return ggml_add       (ctx0, a, b);
        case LLAMA_INTERP_OP_SUB:      return ggml_sub       (ctx0, a, b);
        case LLAMA_INTERP_OP_MUL:      return ggml_mul       (ctx0, a, b);
        case LLAMA_INTERP_OP_DIV:      return ggml_div       (ctx0, a, b);
        case LLAMA_INTERP_OP_MUL_MAT:  return ggml_mul_mat   (ctx0, a, b);
        case LLAMA_INTERP_OP_CONCAT:   return ggml_concat    (ctx0, a, b, (int) i[0]);
    }
    return nullptr;
}

ggml_tensor * llama_interp_op(llama_interp * interp, int32_t op, ggml_tensor * a, ggml_tensor * b, const float * f, const int64_t * i) {
    return llama_interp_guard<ggml_tensor *>(interp, nullptr, [&]() -> ggml_tensor * {
        if (!interp->build || !interp->build->edit) {
            interp->error = "a tensor lives only while the edit that received it is traced";
            return nullptr;
        }

        auto & build = *interp->build;

        if (op < 0 || op >= LLAMA_INTERP_OP_COUNT || !build.handles.count(a) || (b && !build.handles.count(b))) {
            interp->error = "the tensor belongs to another edit or another run";
            return nullptr;
        }

        const std::string reason = check(op, a, b, f, i);
        if (!reason.empty()) {
            interp->error = reason;
            return nullptr;
        }
        if (!llama_interp_build_room(interp, 4)) {
            return nullptr;
        }

        llama_interp_build_scope scope(build);

        auto * ctx0 = build.gctx.ctx0;

        // most kernels want contiguous rows, many want all of it
        a = ggml_is_contiguous(a)       ? a : ggml_cont(ctx0, a);
        b = !b || ggml_is_contiguous(b) ? b : ggml_cont(ctx0, b);

        ggml_tensor * res = build_op(ctx0, op, a, b, f, i);
        build.handles.insert(res);

        return res;
    });
}

ggml_tensor * llama_interp_const(llama_interp * interp, int32_t il, const int64_t * ne, const float * data) {
    return llama_interp_guard<ggml_tensor *>(interp, nullptr, [&]() -> ggml_tensor * {
        if (!interp->build || !interp->build->edit) {
            interp->error = "a constant belongs to an edit while its graph is built";
            return nullptr;
        }
        if (!ne || !is_shape(ne)) {
            interp->error = "not a shape";
            return nullptr;
        }

        const auto & model = interp->lctx->get_model();

        ggml_backend_dev_t dev = il >= 0 && il < (int32_t) model.hparams.n_layer() ? model.dev_layer(il) : model.dev_output();

        llama_interp_const_buf buf = {};
        buf.edit = interp->build->edit_id;
        buf.ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));

        ggml_tensor * t = ggml_new_tensor(buf.ctx.get(), GGML_TYPE_F32, 4, ne);

        ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(dev);
        buf.buf.reset(ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, t)));
        if (!buf.buf || ggml_backend_tensor_alloc(buf.buf.get(), t, ggml_backend_buffer_get_base(buf.buf.get())) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("no memory for a constant of " + std::to_string(ggml_nbytes(t)) + " bytes");
        }
        ggml_backend_buffer_set_usage(buf.buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_set(t, data, 0, ggml_nbytes(t));

        interp->consts.push_back(std::move(buf));
        interp->build->handles.insert(t);

        return t;
    });
}

//
// host
//

static void run_host(ggml_tensor * dst, const ggml_tensor * a, int ith, int nth, void * user_data) {
    GGML_UNUSED(nth);
    if (ith != 0) {
        return;
    }
    const auto * call = (const llama_interp_host_call *) user_data;

    auto * interp = call->interp;

    memcpy(dst->data, a->data, ggml_nbytes(dst));

    int32_t done = 0;
    if (interp->host_fn) {
        interp->host_fn(interp->host_data, call->edit, (float *) dst->data, dst->ne, &done);
    }
    if (!done) {
        interp->fail("a function on the host did not come to its end");
    }
}

void llama_interp_set_host_fn(llama_interp * interp, llama_interp_host_fn fn, void * user_data) {
    interp->host_fn   = fn;
    interp->host_data = user_data;
}

ggml_tensor * llama_interp_host(llama_interp * interp, ggml_tensor * a) {
    return llama_interp_guard<ggml_tensor *>(interp, nullptr, [&]() -> ggml_tensor * {
        if (!interp->build || !interp->build->edit || !interp->build->handles.count(a)) {
            interp->error = "a tensor lives only while the edit that received it is traced";
            return nullptr;
        }
        if (a->type != GGML_TYPE_F32) {
            interp->error = "only float32 tensors can be computed with";
            return nullptr;
        }
        if (!llama_interp_build_room(interp, 2)) {
            return nullptr;
        }

        auto & build = *interp->build;
        llama_interp_build_scope scope(build);

        interp->host_calls.emplace_back(new llama_interp_host_call { interp, build.edit_id });

        auto * ctx0 = build.gctx.ctx0;

        ggml_tensor * res = ggml_map_custom1(ctx0, ggml_is_contiguous(a) ? a : ggml_cont(ctx0, a), run_host, 1, interp->host_calls.back().get());
        build.handles.insert(res);

        // an RPC server claims every operation, and would call an address of this process
        ggml_backend_sched_set_tensor_backend(build.gctx.sched, res, build.gctx.backend_cpu);

        return res;
    });
}

int32_t llama_interp_tensor_get_info(const llama_interp * interp, const ggml_tensor * t, llama_interp_tensor_info * info) {
    if (!interp->build || !interp->build->handles.count(t) || info->size != sizeof(*info)) {
        return -1;
    }
    *info = {};
    info->size     = sizeof(*info);
    info->type     = t->type;
    info->is_input = t->op == GGML_OP_NONE;
    info->rows_axis = interp->build->edit ? interp->build->edit->rows_axis : -1;
    memcpy(info->ne, t->ne, sizeof(info->ne));
    return 0;
}
