// Loaded before everything else (LD_PRELOAD): lets chosen allocations of the library and of what it is linked with fail.
//
// An allocation counts where whoever called malloc lies in libllama, libggml or the C++ runtime: Python's own do not.

#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>

static struct { uintptr_t begin, end; } ranges[64];
static int n_ranges = 0;

static bool armed = false;
static long counted = 0, failed = 0, first_failing = 0, last_failing = 0;

static void * stack[64];
static int    n_stack = 0;
static int    watch_fd = 2;

static int keep_range(dl_phdr_info * info, size_t, void *) {
    const char * name = info->dlpi_name;
    if (!strstr(name, "libllama") && !strstr(name, "libggml") && !strstr(name, "libstdc++")) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum && n_ranges < 64; ++i) {
        const auto & header = info->dlpi_phdr[i];
        if (header.p_type == PT_LOAD && (header.p_flags & PF_X)) {
            const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
            ranges[n_ranges++] = { begin, begin + header.p_memsz };
        }
    }
    return 0;
}

// the places where allocations are asked for: of each the first and the last one, by their numbers
static const int N_PLACES = 1 << 16, N_FRAMES = 4;

static struct failing_place { uint64_t hash; int64_t first, last; } places[N_PLACES];

// the function that called malloc, and the three above it
static void keep_place(long i_this) {
    void * frames[N_FRAMES + 3]; // of this file: keep_place, fails, and malloc

    armed = false;
    const int n = backtrace(frames, N_FRAMES + 3);
    armed = true;

    uint64_t hash = 1;
    for (int i = 3; i < n; ++i) {
        hash = (hash ^ (uintptr_t) frames[i])*0x9e3779b97f4a7c15u;
    }
    for (int i = hash >> 48; i < N_PLACES; ++i) {
        if (places[i].first == 0) {
            places[i] = { hash, i_this, i_this };
        }
        if (places[i].hash == hash) {
            places[i].last = i_this;
            return;
        }
    }
}

static bool fails(void * caller) {
    if (!armed) {
        return false;
    }
    for (int i = 0; i < n_ranges; ++i) {
        if (ranges[i].begin <= (uintptr_t) caller && (uintptr_t) caller < ranges[i].end) {
            const long i_this = ++counted;
            if (last_failing == 0) {
                keep_place(i_this);
            }
            if (i_this < first_failing || i_this > last_failing) {
                return false;
            }
            if (failed++ == 0) {
                armed   = false;
                n_stack = backtrace(stack, 64);
                armed   = true;
            }
            errno = ENOMEM;
            return true;
        }
    }
    return false;
}

extern "C" {

// from here on the allocations from `first` to `last`, counted from 1, fail; up to 0: none does, and places are kept
void failing_arm(long first, long last) {
    void * one[1];
    backtrace(one, 1); // loads what it needs
    n_ranges = 0;
    dl_iterate_phdr(keep_range, nullptr);
    counted = failed = n_stack = 0;
    first_failing = first;
    last_failing  = last;
    armed = true;
}

// returns how many were counted
long failing_disarm(void) {
    armed = false;
    return counted;
}

long failing_count(void) {
    return failed;
}

// copies at most n places, and returns how many
long failing_places(failing_place * dst, long n) {
    long i = 0;
    for (const auto & place : places) {
        if (place.first > 0 && i < n) {
            dst[i++] = place;
        }
    }
    return i;
}

// where the first of those that failed was asked for, and, where that ends the process, where it ends: into a file
static void show(int signal) {
    static void * here[64];
    const int n_here = backtrace(here, 64);

    backtrace_symbols_fd(stack, n_stack, watch_fd);
    if (write(watch_fd, "died in\n", 8) == 8) {
        backtrace_symbols_fd(here, n_here, watch_fd);
    }
    ::signal(signal, SIG_DFL);
    raise(signal);
}

void failing_watch(int fd) {
    watch_fd = fd;
    signal(SIGSEGV, show);
    signal(SIGABRT, show);
    signal(SIGBUS,  show);
}

void * __libc_malloc  (size_t);
void * __libc_calloc  (size_t, size_t);
void * __libc_realloc (void *, size_t);
void * __libc_memalign(size_t, size_t);

void * malloc(size_t size) {
    return fails(__builtin_return_address(0)) ? nullptr : __libc_malloc(size);
}

void * calloc(size_t n, size_t size) {
    return fails(__builtin_return_address(0)) ? nullptr : __libc_calloc(n, size);
}

void * realloc(void * old, size_t size) {
    return fails(__builtin_return_address(0)) ? nullptr : __libc_realloc(old, size);
}

void * aligned_alloc(size_t alignment, size_t size) {
    return fails(__builtin_return_address(0)) ? nullptr : __libc_memalign(alignment, size);
}

int posix_memalign(void ** res, size_t alignment, size_t size) {
    if (fails(__builtin_return_address(0))) {
        return ENOMEM;
    }
    *res = __libc_memalign(alignment, size);
    return *res || size == 0 ? 0 : ENOMEM;
}

}
