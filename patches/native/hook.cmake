# Compiles this folder into libllama without patching a CMake file of llama.cpp:
#   cmake -DCMAKE_PROJECT_llama.cpp_INCLUDE=<path>/hook.cmake
# The target exists only after the top-level file has run, so the work is deferred.
set(LLAMA_INTERP_DIR "${CMAKE_CURRENT_LIST_DIR}")
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL include "${LLAMA_INTERP_DIR}/add.cmake")

# the call sites include llama-interp-hook.h, so the folder must be known before the target is made
include_directories("${LLAMA_INTERP_DIR}")
