// assertions and lost servers: what would end the process, as an error

#include "llama-interp-impl.h"

#include "ggml.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>

static thread_local int abort_guards = 0;

static ggml_abort_callback_t abort_next = nullptr;

static std::atomic<bool>    loss_allowed { false };
static std::atomic<int64_t> n_lost       { 0 };

static void on_abort(const char * message) {
    // thrown on whatever thread speaks with the server: the series catches it there
    if (loss_allowed && strstr(message, "RPC server crashed")) {
        n_lost++;
        throw std::runtime_error(message);
    }
    if (abort_guards > 0) {
        const char * reason =
            strstr(message, "ggml-rpc") ? "the RPC server does not answer as one: " :
            errno == ENOMEM             ? "llama.cpp is out of memory: " : "llama.cpp gave up, the model file may be damaged: ";
        throw std::runtime_error(reason + std::string(message));
    }
    if (abort_next) {
        abort_next(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

static void set_callback() {
    static std::once_flag once;
    std::call_once(once, [] { abort_next = ggml_set_abort_callback(on_abort); });
}

llama_interp_abort_guard::llama_interp_abort_guard() {
    set_callback();
    abort_guards++;
    errno = 0;
}

llama_interp_abort_guard::~llama_interp_abort_guard() {
    abort_guards--;
}

void llama_interp_abort_allow_loss() {
    set_callback();
    loss_allowed = true;
}

int64_t llama_interp_rpc_n_lost(void) {
    return n_lost;
}

std::string & llama_interp_init_error() {
    static thread_local std::string error;
    return error;
}

void llama_interp_error_keep(const llama_interp * interp, const std::exception & err) noexcept {
    auto & error = interp ? interp->error : llama_interp_init_error();
    try {
        error = dynamic_cast<const std::bad_alloc *>(&err) ? LLAMA_INTERP_NO_MEMORY : err.what();
    } catch (const std::exception &) {
        error.clear();
        error = LLAMA_INTERP_NO_MEMORY;
    }
}
