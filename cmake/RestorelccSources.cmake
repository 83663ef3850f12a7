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
    csrc/core/validate_cross_entropy.cpp
    csrc/core/validate_params.cpp
    csrc/model/api.cpp
    csrc/model/configuration.cpp
    csrc/model/file_bytes.cpp
    csrc/model/json.cpp
    csrc/model/llama.cpp
    csrc/model/packed_model.cpp
    csrc/model/record.cpp
    csrc/model/tensor_file.cpp
    csrc/sparse/pack.cpp
    csrc/sparse/pack_2to4.cpp
    csrc/sparse/validate.cpp
    csrc/ref/cross_entropy.cpp
    csrc/ref/dense_linear.cpp
    csrc/ref/head_moments.cpp
    csrc/ref/sparse_linear.cpp
    csrc/cpu/cross_entropy.cpp
    csrc/cpu/dense_linear.cpp
    csrc/cpu/head_moments.cpp
    csrc/cpu/panel_runs.cpp
    csrc/cpu/registry.cpp
    csrc/cpu/sparse_linear.cpp
    csrc/cpu/spmm_runs.cpp
    csrc/cpu/kernels__scalar.cpp
    csrc/cuda/unavailable.cpp)

# The CUDA back-end. In the shared library the host sources and what nvcc makes of the kernels take the place of
# RLCC_CUDA_UNAVAILABLE (RestorelccCuda.cmake); the tests compile the same kernels for an emulator (tests/simt).
set(RLCC_CUDA_UNAVAILABLE csrc/cuda/unavailable.cpp)
set(RLCC_CUDA_HOST_SOURCES
    csrc/cuda/api.cpp
    csrc/cuda/api_cross_entropy.cpp
    csrc/cuda/api_tiles.cpp
    csrc/cuda/architectures.cpp
    csrc/cuda/cross_entropy.cpp
    csrc/cuda/tile_arguments.cpp
    csrc/cuda/validate.cpp
    csrc/cuda/validate_cross_entropy.cpp)
set(RLCC_CUDA_DEVICE_INFO csrc/cuda/device_info.cu)
set(RLCC_CUDA_KERNELS
    csrc/cuda/cross_entropy_chunk.cu
    csrc/cuda/cross_entropy_finish.cu
    csrc/cuda/cross_entropy_products.cu
    csrc/cuda/cross_entropy_rows.cu
    csrc/cuda/cross_entropy_states.cu
    csrc/cuda/head_moments.cu
    csrc/cuda/sparse_linear_2to4.cu
    csrc/cuda/sparse_linear_decode.cu
    csrc/cuda/sparse_linear_grad_comp.cu
    csrc/cuda/sparse_linear_grad_values.cu
    csrc/cuda/sparse_linear_grad_x.cu
    csrc/cuda/sparse_linear_index.cu
    csrc/cuda/sparse_linear_plain.cu
    csrc/cuda/sparse_linear_tiles.cu)

set(RLCC_AVX2_FLAGS -mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt)
# -Wno-...: gcc 12's own avx512fintrin.h initialises its "undefined" vectors with themselves (gcc PR 105593).
set(RLCC_AVX512F_FLAGS ${RLCC_AVX2_FLAGS} -mavx512f -mavx512bw -mavx512dq -mavx512vl
    "$<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized;-Wno-uninitialized>")
set(RLCC_AVX512VBMI2_FLAGS ${RLCC_AVX512F_FLAGS} -mavx512vbmi2)
set(RLCC_AVX512BF16_FLAGS ${RLCC_AVX512VBMI2_FLAGS} -mavx512vnni -mavx512bf16)

if(RLCC_X86_VECTORS AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  set(RLCC_X86_KERNELS 1)
  set(RLCC_X86_ISAS avx2 avx512f avx512vbmi2 avx512bf16)
  list(APPEND RLCC_SOURCES
       csrc/cpu/kernels__avx2.cpp
       csrc/cpu/kernels__avx512f.cpp
       csrc/cpu/kernels__avx512vbmi2.cpp
       csrc/cpu/kernels__avx512bf16.cpp)
else()
  set(RLCC_X86_KERNELS 0)
  set(RLCC_X86_ISAS)
endif()
foreach(isa ${RLCC_X86_ISAS})
  string(TOUPPER ${isa} upper_isa)
  set_source_files_properties(csrc/cpu/kernels__${isa}.cpp PROPERTIES COMPILE_OPTIONS "${RLCC_${upper_isa}_FLAGS}")
endforeach()

# For size, where no time is spent: checks and sentences; the oracles, which are read, not timed; and, where there are
# others, the kernels for processors without AVX2.
set(rlcc_small_sources ${RLCC_SOURCES})
list(FILTER rlcc_small_sources INCLUDE REGEX
  "csrc/(model|core|ref)/|csrc/sparse/(pack_2to4|validate)|csrc/cpu/registry|csrc/cuda/unavailable")
if(RLCC_X86_KERNELS)
  list(APPEND rlcc_small_sources csrc/cpu/kernels__scalar.cpp)
endif()
set_source_files_properties(${rlcc_small_sources} PROPERTIES COMPILE_OPTIONS "$<$<CONFIG:Release>:-Os>")
