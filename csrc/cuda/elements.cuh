// Storage types of x, y, gradients, operands and values: by a run-time dtype where the time goes elsewhere, by
// a class chosen at compile time where it goes here, or where they are operands of the tensor cores.
#pragma once

#include "cuda/device.cuh"
#include "restorelcc/params.h"

namespace restorelcc::cuda {

__device__ __forceinline__ float load_element(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_F32) return static_cast<const float*>(data)[index];
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

// Of the packed values, which may be int8 too.
__device__ __forceinline__ float load_value(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_I8) return static_cast<float>(static_cast<const int8_t*>(data)[index]);
  return load_element(data, dtype, index);
}

struct F32 {
  static constexpr int kBytes = 4;
  using Bits = float;
  static __device__ __forceinline__ float widen(Bits bits) { return bits; }
  static __device__ __forceinline__ Bits narrow(float value) { return value; }
};

struct Bf16 {
  static constexpr rlcc_dtype kDtype = RLCC_BF16;
  static constexpr int kBytes = 2;
  using Bits = uint16_t;
  static __device__ __forceinline__ float widen(Bits bits) { return float_of_bf16(bits); }
  static __device__ __forceinline__ Bits narrow(float value) { return bf16_of_float(value); }
  // Two in a register.
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
  static constexpr int kBytes = 2;
  using Bits = uint16_t;
  static __device__ __forceinline__ float widen(Bits bits) { return float_of_f16(bits); }
  static __device__ __forceinline__ Bits narrow(float value) { return f16_of_float(value); }
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
