// 16-bit floats to and from fp32 under nvcc: one instruction each, to nearest with ties to even. By hand
// because cuda_fp16.h and cuda_bf16.h cost each translation unit seconds, once per architecture.
#pragma once

#include <cstdint>

namespace restorelcc::cuda {

__device__ __forceinline__ float float_of_bf16(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
// The two halves of a register, low and high.
__device__ __forceinline__ float float_of_bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float float_of_bf16_high(uint32_t pair) {
  return __uint_as_float(pair & 0xffff0000u);
}

__device__ __forceinline__ float float_of_f16(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ float float_of_f16_low(uint32_t pair) {
  return float_of_f16(static_cast<uint16_t>(pair));
}
__device__ __forceinline__ float float_of_f16_high(uint32_t pair) {
  return float_of_f16(static_cast<uint16_t>(pair >> 16));
}

__device__ __forceinline__ uint16_t bf16_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ uint16_t f16_of_float(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// {low, high} rounded into one register: an operand of mma.
__device__ __forceinline__ uint32_t bf16x2_of_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ uint32_t f16x2_of_floats(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

}  // namespace restorelcc::cuda
