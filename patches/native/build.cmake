# Included by both builds, with and without the patches, through CMAKE_PROJECT_llama.cpp_INCLUDE: what both must
# share for their results to be compared bit for bit. The code that computes, ggml, keeps its own settings.

# Without this, GGML_ASSERT would print, and the library hold, the path of the machine that compiled it.
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-ffile-prefix-map=${CMAKE_SOURCE_DIR}=llama.cpp>")
    add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffile-prefix-map=${CMAKE_SOURCE_DIR}=llama.cpp>")
endif()

option(LLAMA_INTERP_QUICK "compile libllama in a few large units, and what runs once a model without -O3" ON)
set(LLAMA_INTERP_ONCE -O1 CACHE STRING "then: how what runs once a model is optimised")
set(LLAMA_INTERP_HOT -O2 CACHE STRING "then: how what runs at every token is optimised")

# libllama builds graphs and reads files, so its compile time goes into headers and into optimising what runs once.
# Files compiled as one unit share the headers. What runs at every token is "hot".
set(LLAMA_INTERP_UNITS memory files model text hot_graph hot_data)
set(LLAMA_INTERP_memory
    llama-memory llama-memory-hybrid llama-memory-hybrid-idx llama-memory-hybrid-iswa llama-memory-recurrent
    llama-kv-cache-dsa llama-kv-cache-dsa-iswa llama-kv-cache-dsv4 llama-kv-cache-iswa llama-kv-cache-msa)
set(LLAMA_INTERP_files
    llama llama-adapter llama-arch llama-chat llama-cparams llama-hparams llama-impl llama-io llama-mmap)
# not llama-model-loader: it specialises templates that a file before it in the unit would have instantiated
set(LLAMA_INTERP_model llama-model llama-model-saver llama-quant)
set(LLAMA_INTERP_text llama-grammar llama-vocab unicode unicode-data)
set(LLAMA_INTERP_hot_graph llama-batch llama-context llama-graph)
set(LLAMA_INTERP_hot_data llama-kv-cache llama-sampler)

function(llama_interp_quicken)
    set(src "${CMAKE_SOURCE_DIR}/src")
    get_target_property(sources llama SOURCES)
    foreach(unit IN LISTS LLAMA_INTERP_UNITS)
        set(content "")
        foreach(name IN LISTS LLAMA_INTERP_${unit})
            # another commit may lack a file; one that it has more is compiled by itself
            if("${name}.cpp" IN_LIST sources)
                string(APPEND content "#include \"${src}/${name}.cpp\"\n")
                set_property(SOURCE "${src}/${name}.cpp" DIRECTORY "${src}" PROPERTY HEADER_FILE_ONLY ON)
            endif()
        endforeach()
        set(file "${CMAKE_BINARY_DIR}/llama-${unit}.cpp")
        file(CONFIGURE OUTPUT "${file}" CONTENT "${content}" @ONLY)
        target_sources(llama PRIVATE "${file}")
        set_property(SOURCE "${file}" DIRECTORY "${src}" PROPERTY SKIP_UNITY_BUILD_INCLUSION ON)
        if(unit MATCHES "^hot")
            set_property(SOURCE "${file}" DIRECTORY "${src}" PROPERTY COMPILE_OPTIONS ${LLAMA_INTERP_HOT})
        endif()
    endforeach()
    target_compile_options(llama PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${LLAMA_INTERP_ONCE}>")
endfunction()

# ours run at every token too
function(llama_interp_quicken_native)
    get_target_property(sources llama SOURCES)
    list(FILTER sources INCLUDE REGEX "/llama-interp[^/]*[.]cpp$")
    set_property(SOURCE ${sources} DIRECTORY "${CMAKE_SOURCE_DIR}/src" PROPERTY COMPILE_OPTIONS ${LLAMA_INTERP_HOT})
endfunction()

# What GCC makes of AMX kernels without the header, the header says.
function(llama_interp_mend_amx)
    set(src "${CMAKE_SOURCE_DIR}/ggml/src")
    set_property(SOURCE "${src}/ggml-cpu/amx/mmq.cpp" DIRECTORY "${src}"
        PROPERTY COMPILE_OPTIONS -include "${LLAMA_INTERP_NATIVE}/amx.h")
endfunction()
set(LLAMA_INTERP_NATIVE "${CMAKE_CURRENT_LIST_DIR}")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL llama_interp_mend_amx)
endif()

# What the sanitizer for undefined behaviour would not live to see past, in two files of upstream's: the number of a type is read
# into its enum and checked in the line after; RPC's messages are read where they lie (ggml-org/llama.cpp#7948 mended some).
function(llama_interp_allow_known)
    set(src "${CMAKE_SOURCE_DIR}/ggml/src")
    set_property(SOURCE "${src}/gguf.cpp" DIRECTORY "${src}" PROPERTY COMPILE_OPTIONS -fno-sanitize=enum)
    if(GGML_RPC)
        set_property(SOURCE "${src}/ggml-rpc/ggml-rpc.cpp" DIRECTORY "${src}/ggml-rpc"
            PROPERTY COMPILE_OPTIONS -fno-sanitize=alignment)
    endif()
endfunction()
if(GGML_SANITIZE_UNDEFINED)
    cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL llama_interp_allow_known)
endif()

if(LLAMA_INTERP_QUICK AND CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" AND CMAKE_BUILD_TYPE STREQUAL "Release")
    set(LLAMA_INTERP_QUICKEN ON)
else()
    set(LLAMA_INTERP_QUICKEN OFF)
endif()

# before the small files of ours, so that the large units do not start last and run alone
if(LLAMA_INTERP_QUICKEN)
    cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL llama_interp_quicken)
endif()
if(LLAMA_INTERP_PATCHED)
    include("${CMAKE_CURRENT_LIST_DIR}/hook.cmake")
    if(LLAMA_INTERP_QUICKEN)
        cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL llama_interp_quicken_native)
    endif()
endif()
