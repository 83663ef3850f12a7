// Elements of x's dtype in the tile kernels: by a run-time dtype where the time goes elsewhere, by a compile-time one
// (Bf16, F16) where it is an operand of the tensor cores.
#pragma once

#include "cuda/device.cuh"
#include "restorelcc/params.h"

namespace restorelcc::cuda {

__device__ __forceinline__ float load_element(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_F32) return static_cast<const float*>(data)[index];
  if (dtype == RLCC_I8) return static_cast<float>(static_cast<const int8_t*>(data)[index]);
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == RLCC_BF16 ? float_of_bf16(bits) : float_of_f16(bits);
}

__device__ __forceinline__ void store_element(void* data, rlcc_dtype dtype, int64_t index, float value) {
  if (dtype == RLCC_F32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = dtype == RLCC_BF16 ? bf16_of_float(value) : f16_of_float(value);
  }
}

struct Bf16 {
  static constexpr rlcc_dtype kDtype = RLCC_BF16;
  static __device__ __forceinline__ float low(uint32_t pair) { return float_of_bf16_low(pair); }
  static __device__ __forceinline__ float high(uint32_t pair) { return float_of_bf16_high(pair); }
  static __device__ __forceinline__ uint32_t pair(float low, float high) { return bf16x2_of_floats(low, high); }
  // sums += a b
  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
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
  static __device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_f16(sums, a, b, sums);
  }
  template <int kSelector>
  static __device__ __forceinline__ void multiply_sparse(float (&sums)[4], const uint32_t (&a)[4],
                                                         const uint32_t (&b)[4], uint32_t metadata) {
    ptx::mma_sp_m16n8k32_f16<kSelector>(sums, a, b, sums, metadata);
  }
};

}  // namespace restorelcc::cuda
