// what llama.cpp and ggml log: the last warnings are kept

#include "llama-interp-impl.h"

#include <algorithm>
#include <cstring>
#include <mutex>

static std::mutex  log_mutex;
static std::string log_text;
static int32_t     log_level = GGML_LOG_LEVEL_NONE;

static void log_keep(ggml_log_level level, const char * text, void * user_data) {
    GGML_UNUSED(user_data);

    std::lock_guard<std::mutex> lock(log_mutex);

    if (level >= GGML_LOG_LEVEL_WARN && level <= GGML_LOG_LEVEL_ERROR) {
        try {
            log_text += text;
        } catch (const std::bad_alloc &) {
            // what is said of a lack of memory may not fit into it
        }
        if (log_text.size() > 64*1024) {
            log_text.erase(0, log_text.size() - 32*1024);
        }
    }
    if (log_level != GGML_LOG_LEVEL_NONE && level >= log_level) {
        fputs(text, stderr);
    }
}

void llama_interp_log_init(int32_t level) {
    log_level = level;
    llama_log_set(log_keep, nullptr);
}

size_t llama_interp_log_take(char * buf, size_t n_buf) {
    std::lock_guard<std::mutex> lock(log_mutex);

    const size_t n = n_buf > 0 ? std::min(log_text.size(), n_buf - 1) : 0;
    if (n_buf > 0) {
        memcpy(buf, log_text.data(), n);
        buf[n] = '\0';
    }
    log_text.clear();

    return n;
}
