// devices: those of this machine and of RPC servers, what a model has on each of them, and serving them to others

#include "llama-interp-impl.h"

#include "llama-context.h"
#include "llama-model.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <sstream>
#include <stdexcept>

void llama_interp_backends_load() {
    // what it does not find it looks for each time, and without memory that ends the process
    static std::once_flag once;
    std::call_once(once, [] { ggml_backend_load_all(); });
}

//
// records
//

static llama_interp_device make_device(ggml_backend_dev_t dev) {
    size_t free  = 0;
    size_t total = 0;
    ggml_backend_dev_memory(dev, &free, &total);

    llama_interp_device res = {};
    res.size         = sizeof(res);
    res.type         = ggml_backend_dev_type(dev);
    res.memory_free  = free;
    res.memory_total = total;
    snprintf(res.name,        sizeof(res.name),        "%s", ggml_backend_dev_name(dev));
    snprintf(res.description, sizeof(res.description), "%s", ggml_backend_dev_description(dev));
    snprintf(res.backend,     sizeof(res.backend),     "%s", ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)));
    return res;
}

static int32_t write_devices(const std::vector<llama_interp_device> & found, llama_interp_device * devices, int32_t n_max) {
    for (int32_t i = 0; i < (int32_t) found.size() && i < n_max; ++i) {
        if (devices[i].size != sizeof(*devices)) {
            throw std::runtime_error("wrong size of llama_interp_device");
        }
        devices[i] = found[i];
    }
    return (int32_t) found.size();
}

static ggml_backend_dev_t cpu_device() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

// where memory of a type lies: memory of the host that a GPU can read is the host's
static ggml_backend_dev_t device_of(ggml_backend_buffer_type_t buft) {
    ggml_backend_dev_t dev = ggml_backend_buft_is_host(buft) ? nullptr : ggml_backend_buft_get_device(buft);
    return dev ? dev : cpu_device();
}

static std::vector<llama_interp_device> count_bytes(const llama_model & model, const llama_context & ctx) {
    std::vector<ggml_backend_dev_t> order;
    for (const auto & device : model.devices) {
        order.push_back(device.dev);
    }
    order.push_back(cpu_device());

    std::vector<llama_interp_device> res;
    for (auto * dev : order) {
        res.push_back(make_device(dev));
        for (const auto & [buft, data] : ctx.memory_breakdown()) {
            if (device_of(buft) == dev) {
                res.back().n_weights += data.model;
                res.back().n_cache   += data.context;
                res.back().n_compute += data.compute;
            }
        }
    }
    return res;
}

//
// listing
//

int32_t llama_interp_devices_list(llama_interp_device * devices, int32_t n_max) {
    return llama_interp_guard(nullptr, -1, [&] {
        llama_interp_backends_load();

        std::vector<llama_interp_device> found;
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            found.push_back(make_device(ggml_backend_dev_get(i)));
        }
        return write_devices(found, devices, n_max);
    });
}

int32_t llama_interp_devices_used(const llama_interp * interp, llama_interp_device * devices, int32_t n_max) {
    return llama_interp_guard(nullptr, -1, [&] {
        return write_devices(count_bytes(interp->lctx->get_model(), *interp->lctx), devices, n_max);
    });
}

int32_t llama_interp_devices_needed(
        const char * path, const llama_interp_params * params, llama_interp_device * devices, int32_t n_max, int32_t * n_layer) {
    if (!path || !params || params->size != sizeof(*params)) {
        llama_interp_init_error() = "wrong size of llama_interp_params";
        return -1;
    }
    return llama_interp_guard(nullptr, -1, [&] {
        llama_model_ptr   model;
        llama_context_ptr ctx;
        llama_interp_load(path, *params, true, model, ctx);

        *n_layer = model->hparams.n_layer();
        return write_devices(count_bytes(*model, *ctx), devices, n_max);
    });
}

int32_t llama_interp_layer_get(const llama_interp * interp, int32_t il, llama_interp_layer * layer) {
    return llama_interp_guard<int32_t>(interp, -1, [&]() -> int32_t {
        const auto &  model   = interp->lctx->get_model();
        const int32_t n_layer = model.hparams.n_layer();
        if (il < -1 || il > n_layer || layer->size != sizeof(*layer)) {
            return -1;
        }

        ggml_backend_dev_t dev = il >= 0 && il < n_layer ? model.dev_layer(il) : model.dev_output();
        if (il == -1) {
            dev = model.tok_embd ? device_of(ggml_backend_buffer_get_type(model.tok_embd->buffer)) : cpu_device();
        }

        *layer = {};
        layer->size = sizeof(*layer);
        layer->il   = il;
        snprintf(layer->device, sizeof(layer->device), "%s", ggml_backend_dev_name(dev));

        for (const auto & [name, t] : model.tensors_by_name) {
            int32_t owner = n_layer;
            if (t == model.tok_embd) {
                owner = -1;
            } else if (sscanf(name.c_str(), "blk.%d.", &owner) != 1) {
                owner = n_layer;
            }
            if (owner == il) {
                layer->n_weights += ggml_nbytes(t);
            }
        }
        return 0;
    });
}

//
// RPC
//

namespace {

// ggml keeps a server's devices for ever, but not in its list of devices: a model that asks for none must not get one
struct held_server {
    ggml_backend_reg_t reg = nullptr;
    ggml_backend_ptr   held; // the connection
};

} // namespace

static std::mutex                        rpc_mutex;
static std::map<std::string, held_server> rpc_servers;

template <typename fn_t>
static fn_t rpc_function(const char * name) {
    llama_interp_backends_load();

    ggml_backend_reg_t reg = ggml_backend_reg_by_name("RPC");
    void * fn = reg ? ggml_backend_reg_get_proc_address(reg, name) : nullptr;
    if (!fn) {
        throw std::runtime_error("the library was built without RPC");
    }
    return (fn_t) fn;
}

static ggml_backend_dev_t find_device(const std::string & name) {
    std::lock_guard<std::mutex> lock(rpc_mutex);

    for (const auto & [endpoint, server] : rpc_servers) {
        for (size_t i = 0; i < ggml_backend_reg_dev_count(server.reg); ++i) {
            ggml_backend_dev_t dev = ggml_backend_reg_dev_get(server.reg, i);
            if (name == ggml_backend_dev_name(dev)) {
                return dev;
            }
        }
    }
    return ggml_backend_dev_by_name(name.c_str());
}

std::vector<ggml_backend_dev_t> llama_interp_devices_find(const std::string & names) {
    std::vector<ggml_backend_dev_t> res;

    std::istringstream stream(names);
    for (std::string name; std::getline(stream, name, ','); ) {
        ggml_backend_dev_t dev = find_device(name);
        if (!dev) {
            throw std::runtime_error("there is no device " + name);
        }
        res.push_back(dev);
    }
    return res;
}

int32_t llama_interp_rpc_connect(const char * endpoint, llama_interp_device * devices, int32_t n_max) {
    return llama_interp_guard(nullptr, -1, [&] {
        llama_interp_abort_allow_loss();

        const auto add_server = rpc_function<ggml_backend_reg_t (*)(const char *)>("ggml_backend_rpc_add_server");

        held_server server;
        server.reg = add_server(endpoint);
        if (!server.reg || ggml_backend_reg_dev_count(server.reg) == 0) {
            throw std::runtime_error("the RPC server offers no device");
        }
        server.held.reset(ggml_backend_dev_init(ggml_backend_reg_dev_get(server.reg, 0), nullptr));

        std::vector<llama_interp_device> found;
        for (size_t i = 0; i < ggml_backend_reg_dev_count(server.reg); ++i) {
            found.push_back(make_device(ggml_backend_reg_dev_get(server.reg, i)));
        }

        std::lock_guard<std::mutex> lock(rpc_mutex);
        rpc_servers[endpoint] = std::move(server);
        return write_devices(found, devices, n_max);
    });
}

void llama_interp_rpc_disconnect(const char * endpoint) {
    std::lock_guard<std::mutex> lock(rpc_mutex);

    const auto it = rpc_servers.find(endpoint);
    if (it != rpc_servers.end()) {
        it->second.held.reset();
    }
}

int32_t llama_interp_rpc_serve(const char * endpoint, const char * devices, int32_t n_threads) {
    try {
        const auto start = rpc_function<void (*)(const char *, const char *, size_t, size_t, ggml_backend_dev_t *)>("ggml_backend_rpc_start_server");

        auto found = llama_interp_devices_find(devices);
        start(endpoint, nullptr, n_threads, found.size(), found.data());
        throw std::runtime_error("the server ended");
    } catch (const std::exception & err) {
        llama_interp_error_keep(nullptr, err);
        return -1;
    }
}
