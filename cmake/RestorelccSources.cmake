# The one list of sources. Each instruction set is a translation unit of its own with flags of its own;
# nothing is compiled for the machine that builds.

set(RLCC_SOURCES
    csrc/core/api.cpp
    csrc/core/build_info.cpp
    csrc/core/cpu_features.cpp
    csrc/core/isa.cpp
    csrc/core/parallel.cpp
    csrc/core/status.cpp
    csrc/core/thread_pool.cpp
    csrc/core/validate_params.cpp
    csrc/sparse/pack.cpp
    csrc/sparse/validate.cpp
    csrc/ref/head_moments.cpp
    csrc/ref/sparse_linear.cpp
    csrc/cpu/head_moments.cpp
    csrc/cpu/registry.cpp
    csrc/cpu/sparse_linear.cpp
    csrc/cpu/kernels__scalar.cpp)

set(RLCC_AVX2_FLAGS -mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt)
# -Wno-...: gcc 12's own avx512fintrin.h initialises its "undefined" vectors with themselves (gcc PR 105593).
set(RLCC_AVX512_FLAGS ${RLCC_AVX2_FLAGS} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi2
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(RLCC_X86_KERNELS 1)
  list(APPEND RLCC_SOURCES csrc/cpu/kernels__avx2.cpp csrc/cpu/kernels__avx512.cpp)
  set_source_files_properties(csrc/cpu/kernels__avx2.cpp PROPERTIES COMPILE_OPTIONS "${RLCC_AVX2_FLAGS}")
  set_source_files_properties(csrc/cpu/kernels__avx512.cpp PROPERTIES COMPILE_OPTIONS "${RLCC_AVX512_FLAGS}")
else()
  set(RLCC_X86_KERNELS 0)
endif()
