// what llama.cpp and ggml log: the last warnings are kept

#include "llama-interp-impl.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <string_view>

// as much as is kept: the end of what was logged. its memory is there from the beginning, so that it neither grows with
// the errors of a long session nor is missing when something has to be said about a lack of memory
static const size_t LOG_SIZE = 32*1024;

static std::mutex  log_mutex;
static std::string log_text;
static int32_t     log_level = GGML_LOG_LEVEL_NONE;

static void log_append(std::string_view text) {
    if (text.size() > LOG_SIZE/2) {
        text.remove_prefix(text.size() - LOG_SIZE/2);
    }
    if (log_text.size() + text.size() > LOG_SIZE) {
        log_text.erase(0, log_text.size() - LOG_SIZE/2);
        log_text.erase(0, log_text.find('\n') + 1); // no half a line
    }
    log_text += text;
}

static void log_keep(ggml_log_level level, const char * text, void * user_data) {
    GGML_UNUSED(user_data);

    std::lock_guard<std::mutex> lock(log_mutex);

    if (level >= GGML_LOG_LEVEL_WARN && level <= GGML_LOG_LEVEL_ERROR) {
        try {
            log_append(text);
        } catch (const std::bad_alloc &) {
            // only where there was no memory at the beginning
        }
    }
    if (log_level != GGML_LOG_LEVEL_NONE && level >= log_level) {
        fputs(text, stderr);
    }
}

void llama_interp_log_init(int32_t level) {
    llama_interp_guard(nullptr, 0, [level] {
        std::lock_guard<std::mutex> lock(log_mutex);
        log_level = level;
        log_text.reserve(LOG_SIZE);
        return 0;
    });
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
