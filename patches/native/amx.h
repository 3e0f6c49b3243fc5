// Included before ggml's kernels for AMX, by build.cmake.
//
// GCC's intrinsic says that ldtilecfg reads 8 bytes. It reads 64: the stores to the others are dead to the optimiser, the
// tiles have no shape, and the first multiplication ends the process (ggml-org/llama.cpp#20824 and #26954).
#include <immintrin.h>

static inline void llama_interp_tile_loadconfig(const void * config) {
    __asm__ volatile("" : : "r"(config) : "memory");
    _tile_loadconfig(config);
}
#define _tile_loadconfig llama_interp_tile_loadconfig
