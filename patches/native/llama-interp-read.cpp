// reading back: the tensors of a computed graph as memory of the host

#include "llama-interp-impl.h"

#include "llama-context.h"

// enough to keep a bus busy, and little beside what pinned memory is for
static const size_t MAX_STAGED = 64*1024*1024;

uint8_t * llama_interp_staging::reserve(ggml_backend_dev_t dev, size_t n_bytes) {
    if (pinned && ggml_backend_buffer_get_size(pinned.get()) >= n_bytes) {
        return (uint8_t *) ggml_backend_buffer_get_base(pinned.get());
    }
    ggml_backend_buffer_type_t buft = n_bytes <= MAX_STAGED ? ggml_backend_dev_host_buffer_type(dev) : nullptr;
    if (buft) {
        pinned.reset(ggml_backend_buft_alloc_buffer(buft, n_bytes));
        if (pinned) {
            return (uint8_t *) ggml_backend_buffer_get_base(pinned.get());
        }
    }
    plain.reset(new uint8_t[n_bytes]);
    return plain.get();
}

// in memory of the CPU, which has computed by the time that we look
static bool is_readable(const ggml_tensor * t, ggml_backend_t backend) {
    return ggml_backend_buffer_is_host(t->buffer) &&
        ggml_backend_dev_type(ggml_backend_get_device(backend)) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

namespace {

// a run of tensors whose copies fit into the staging memory together
struct read_group {
    struct copy {
        ggml_tensor  * t;
        ggml_backend_t backend; // null: readable where it is
        size_t         offset;  // in the memory of its device
    };
    std::vector<copy>                copies;
    std::map<ggml_backend_t, size_t> n_bytes;
    size_t                           n_total = 0;

    bool has_room(size_t n) const {
        return n_total == 0 || n_total + n <= MAX_STAGED;
    }

    void add(ggml_tensor * t, ggml_backend_t backend) {
        if (is_readable(t, backend)) {
            copies.push_back({ t, nullptr, 0 });
            return;
        }
        // aligned as a tensor is in any buffer of the host
        const size_t n = GGML_PAD(ggml_nbytes(t), 64);
        copies.push_back({ t, backend, n_bytes[backend] });
        n_bytes[backend] += n;
        n_total          += n;
    }
};

} // namespace

static void read(llama_interp * interp, const read_group & group, size_t i0, const std::function<void(size_t, const void *)> & fn) {
    std::map<ggml_backend_t, uint8_t *> base;
    for (const auto & [backend, n_bytes] : group.n_bytes) {
        base[backend] = interp->staging[backend].reserve(ggml_backend_get_device(backend), n_bytes);
    }
    for (const auto & copy : group.copies) {
        if (copy.backend) {
            ggml_backend_tensor_get_async(copy.backend, copy.t, base[copy.backend] + copy.offset, 0, ggml_nbytes(copy.t));
        }
    }
    for (const auto & entry : base) {
        ggml_backend_synchronize(entry.first);
    }
    for (size_t i = 0; i < group.copies.size(); ++i) {
        const auto & copy = group.copies[i];
        fn(i0 + i, copy.backend ? base[copy.backend] + copy.offset : (const uint8_t *) copy.t->data);
    }
    for (const auto & entry : base) {
        interp->staging[entry.first].plain.reset();
    }
}

void llama_interp_read_tensors(
        llama_interp * interp, const std::vector<ggml_tensor *> & tensors,
        const std::function<void(size_t i, const void * data)> & fn) {
    read_group group;
    size_t     i0 = 0;

    for (size_t i = 0; i < tensors.size(); ++i) {
        if (!group.has_room(ggml_nbytes(tensors[i]))) {
            read(interp, group, i0, fn);
            group = {};
            i0    = i;
        }
        group.add(tensors[i], ggml_backend_sched_get_tensor_backend(interp->lctx->get_sched(), tensors[i]));
    }
    read(interp, group, i0, fn);
}
