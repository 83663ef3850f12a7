// What a lane of the decode kernel multiplies: values out of shared memory, and x.
#pragma once

#include "cuda/device.cuh"
#include "cuda/elements.cuh"
#include "cuda/sparse_linear.h"
#include "cuda/tile_arguments.h"

namespace restorelcc::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kLane = 32;
constexpr int kColumns = 8;                  // of one lane at a time
constexpr int kStep = kLane * kColumns;      // of a warp
constexpr int kWords = kDecodeSegment / 32;  // of mask, 32 bits each
constexpr int kStageWords = kWords / 2;
constexpr int kPlaces = 3;                      // for the words of a stage
constexpr int kRowLanes = kLane / kDecodeRows;  // lanes that count and copy for one row
constexpr int kLaneWords = kWords / kRowLanes;  // of mask per lane: 16 bytes
static_assert(kLaneWords == 4 && kDecodeStage % kStep == 0, "one 16-byte load; whole steps");

struct Arguments {
  rlcc_sparse_linear_params p;
  int columns, part_columns, warps_along_k;
  int words, scale_groups;  // 64-bit words of mask, and scales, per row
  int last_wide_x;          // the last column from which x may be read 16 bytes at a time; below 0: from none
  bool wide_mask;           // may be loaded 16 bytes at a time
  Output output;
};

// ---- Values: from shared memory to fp32.

// Raw, so that loads can be under way while nothing waits for them; raw 0 means +0.
template <rlcc_dtype kDtype>
struct Value;
template <>
struct Value<RLCC_F32> {
  using Raw = uint32_t;
  static constexpr int kBytes = 4;
  static __device__ __forceinline__ float of(uint32_t raw) { return __uint_as_float(raw); }
};
template <>
struct Value<RLCC_BF16> {
  using Raw = uint16_t;
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ float of(uint32_t raw) { return float_of_bf16_low(raw); }
};
template <>
struct Value<RLCC_F16> {
  using Raw = uint16_t;
  static constexpr int kBytes = 2;
  static __device__ __forceinline__ float of(uint32_t raw) { return float_of_f16_low(raw); }
};
template <>
struct Value<RLCC_I8> {
  using Raw = uint8_t;
  static constexpr int kBytes = 1;
  // 2^23 + (value + 128), whose low byte is value + 128, less what was added.
  static __device__ __forceinline__ float of(uint32_t raw) {
    return __uint_as_float((raw ^ 0x80u) | 0x4b000000u) - 8388736.0f;
  }
};

// ---- x.

// Kernels for one row of x are for the x that goes with the values, others for any x.
constexpr rlcc_dtype natural_x(rlcc_dtype values) { return values == RLCC_I8 ? RLCC_BF16 : values; }

// x as one warp reads it. Behind `end`, where its columns end, it is 0: the warp's last step may reach into the
// next part of the columns, and 0 * Inf is NaN.
template <rlcc_dtype kDtype, int kRowsOfX>
struct X {
  const Arguments& a;
  int end, last_wide;  // last_wide: the last column from which 16 bytes may be read at a time

  __device__ __forceinline__ X(const Arguments& arguments, int end_)
      : a(arguments), end(end_), last_wide(min(arguments.last_wide_x, end_ - 16 / bytes())) {}

  __device__ __forceinline__ rlcc_dtype dtype() const {
    return kRowsOfX == 1 ? natural_x(kDtype) : static_cast<rlcc_dtype>(a.p.x_dtype);
  }
  __device__ __forceinline__ int bytes() const { return dtype() == RLCC_F32 ? 4 : 2; }

  // 16 bytes from element (m, k) on.
  __device__ __forceinline__ void load(int m, int k, uint32_t (&words)[4]) const {
    const int64_t row = kRowsOfX == 1 ? 0 : m * a.p.x_stride;
    const auto* const at = static_cast<const unsigned char*>(a.p.x) + (row + k) * bytes();
    if (k <= last_wide) {
      const uint4 loaded = ptx::load_cached_16(at);
      words[0] = loaded.x;
      words[1] = loaded.y;
      words[2] = loaded.z;
      words[3] = loaded.w;
      return;
    }
    const auto* const halves = reinterpret_cast<const uint16_t*>(at);
    const int valid = (end - k) * (bytes() / 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = 0;
    const int halves_to_come = valid > 0 ? 8 : 1;  // all behind the end: one 0 is as good as eight
    int i = 0;
#pragma unroll 1
    do {  // rare, so short: the next half comes in at the top
      const uint32_t half = i < valid ? halves[i] : 0;
      words[0] = __funnelshift_r(words[0], words[1], 16);
      words[1] = __funnelshift_r(words[1], words[2], 16);
      words[2] = __funnelshift_r(words[2], words[3], 16);
      words[3] = __funnelshift_r(words[3], half, 16);
    } while (++i < halves_to_come);
  }

  // x[m, k .. k + 8) in fp32, from what `load` gave for k.
  __device__ __forceinline__ void unpack(int m, int k, const uint32_t (&words)[4], float (&x)[kColumns]) const {
    if (dtype() == RLCC_BF16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[2 * i] = float_of_bf16_low(words[i]);
        x[2 * i + 1] = float_of_bf16_high(words[i]);
      }
    } else if (dtype() == RLCC_F16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[2 * i] = float_of_f16_low(words[i]);
        x[2 * i + 1] = float_of_f16_high(words[i]);
      }
    } else {
      uint32_t others[4];
      load(m, k + 4, others);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = __uint_as_float(words[i]);
        x[4 + i] = __uint_as_float(others[i]);
      }
    }
  }
};

}  // namespace restorelcc::cuda
