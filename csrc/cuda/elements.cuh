// Elements in the tile kernels: by a run-time dtype (epilogue.cuh) where the time goes elsewhere, by a
// compile-time one (Bf16, F16) where they are operands of the tensor cores.
#pragma once

#include "cuda/epilogue.cuh"

namespace restorelcc::cuda {

// Of the packed values, which may be int8 too.
__device__ __forceinline__ float load_value(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_I8) return static_cast<float>(static_cast<const int8_t*>(data)[index]);
  return load_element(data, dtype, index);
}

struct Bf16 {
  static constexpr rlcc_dtype kDtype = RLCC_BF16;
  static __device__ __forceinline__ float low(uint32_t pair) { return float_of_bf16_low(pair); }
  static __device__ __forceinline__ float high(uint32_t pair) { return float_of_bf16_high(pair); }
  static __device__ __forceinline__ uint32_t pair(float low, float high) { return bf16x2_of_floats(low, high); }
  // sums += a b
  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_bf16(sums, a, b, sums);
  }
  template <int kSelector>
  static __device__ __forceinline__ void multiply_sparse(float (&sums)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[4], uint32_t metadata) {
    ptx::mma_sp_m16n8k32_bf16<kSelector>(sums, a, b, sums, metadata);
  }
};

struct F16 {
  static constexpr rlcc_dtype kDtype = RLCC_F16;
  static __device__ __forceinline__ float low(uint32_t pair) { return float_of_f16_low(pair); }
  static __device__ __forceinline__ float high(uint32_t pair) { return float_of_f16_high(pair); }
  static __device__ __forceinline__ uint32_t pair(float low, float high) { return f16x2_of_floats(low, high); }
  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_f16(sums, a, b, sums);
  }
  template <int kSelector>
  static __device__ __forceinline__ void multiply_sparse(float (&sums)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[4], uint32_t metadata) {
    ptx::mma_sp_m16n8k32_f16<kSelector>(sums, a, b, sums, metadata);
  }
};

}  // namespace restorelcc::cuda
