// The storage types of a tile's operands: widened, narrowed, multiplied. One class each, chosen at compile
// time.
#pragma once

#include "cuda/device.cuh"

namespace restorelcc::cuda {

struct Bf16 {
  static constexpr int kBytes = 2;
  using Bits = uint16_t;
  static __device__ __forceinline__ float widen(Bits bits) { return float_of_bf16(bits); }
  static __device__ __forceinline__ Bits narrow(float value) { return bf16_of_float(value); }
  static __device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
    return bf16x2_of_floats(low, high);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_bf16(d, a, b, d);
  }
};

struct F16 {
  static constexpr int kBytes = 2;
  using Bits = uint16_t;
  static __device__ __forceinline__ float widen(Bits bits) { return float_of_f16(bits); }
  static __device__ __forceinline__ Bits narrow(float value) { return f16_of_float(value); }
  static __device__ __forceinline__ uint32_t narrow_pair(float low, float high) {
    return f16x2_of_floats(low, high);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    ptx::mma_m16n8k16_f16(d, a, b, d);
  }
};

struct F32 {
  static constexpr int kBytes = 4;
  using Bits = float;
  static __device__ __forceinline__ float widen(Bits bits) { return bits; }
  static __device__ __forceinline__ Bits narrow(float value) { return value; }
};

}  // namespace restorelcc::cuda
