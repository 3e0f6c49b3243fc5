# Included by both builds, with and without the patches, through CMAKE_PROJECT_llama.cpp_INCLUDE: what both must
# share for their results to be compared bit for bit. The code that computes, ggml, keeps its own settings.

# Without this, GGML_ASSERT would print, and the library hold, the path of the machine that compiled it.
if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-ffile-prefix-map=${CMAKE_SOURCE_DIR}=llama.cpp>")
endif()

if(LLAMA_INTERP_PATCHED)
    include("${CMAKE_CURRENT_LIST_DIR}/hook.cmake")
endif()

# libllama builds graphs and reads files, so most of it runs once a model and gains nothing from -O3, which costs
# a third of the time to compile it. What runs at every token keeps -O2.
set(LLAMA_INTERP_HOT llama-batch llama-context llama-kv-cache llama-sampler llama-vocab)

function(llama_interp_quicken)
    if(NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang" OR NOT CMAKE_BUILD_TYPE STREQUAL "Release")
        return()
    endif()
    target_compile_options(llama PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-O1>")
    get_target_property(sources llama SOURCES)
    list(TRANSFORM LLAMA_INTERP_HOT APPEND ".cpp")
    foreach(source IN LISTS sources)
        get_filename_component(name "${source}" NAME)
        get_filename_component(source "${source}" ABSOLUTE BASE_DIR "${CMAKE_SOURCE_DIR}/src")
        if(name IN_LIST LLAMA_INTERP_HOT OR name MATCHES "^llama-interp.*[.]cpp$")
            set_property(SOURCE "${source}" DIRECTORY "${CMAKE_SOURCE_DIR}/src" APPEND PROPERTY COMPILE_OPTIONS -O2)
        endif()
    endforeach()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL llama_interp_quicken)
