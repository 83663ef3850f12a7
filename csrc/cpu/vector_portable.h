// Vectors of four floats in the compiler's own vector extension: correct on any CPU, and what the fast
// instruction sets are compared with.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernel_types.h"

namespace restorelcc::cpu {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));

struct Vector {
  using F32 = Float4;
  using F64 = Double2;
  static constexpr int kLanes = 4;        // of F32
  static constexpr int kDoubleLanes = 2;  // of F64
  static constexpr int kTileRows = 4;     // a 4 x 8 tile: 8 of the 16 xmm registers accumulate
  static constexpr int kPanelVectors = 2;
  static constexpr int kDecodeTileRows = 4;  // times two outputs: 8 of the 16 xmm registers accumulate
  static constexpr int kDecodeTileOutputs = 2;
  static constexpr int kInt8TileRows = 2;  // times two outputs: 4 sums of a group and 4 totals
  static constexpr int kInt8TileOutputs = 2;
  static constexpr int kDecodeMaxRows = 8;  // of a decode kernel with floating point values
  static constexpr int kDepthBlock = 320;   // B 10 KiB, A 5 KiB
  static constexpr int kGramVectors = 2;    // a 4 x 4 fp64 tile

  static constexpr float kInt8Unit = 1;  // expand() of an int8 value v gives v / kInt8Unit
  template <class Value>
  static constexpr int kStepVectors = 1;
  template <class Value>
  static constexpr int step_column(int i) {
    return i;
  }

  static float widen(float value) { return value; }
  static float widen(int8_t value) { return value; }
  static float widen(Bf16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }
  static float widen(F16 value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fffu;
    // Exponent and fraction moved into place are 2^-112 times the number; Inf and NaN get the top exponent.
    const float scaled = from_bits(magnitude << 13) * 0x1p112f;
    const float special = from_bits((magnitude << 13) | 0x7f800000u);
    const float positive = magnitude >= 0x7c00u ? special : scaled;
    uint32_t bits;
    std::memcpy(&bits, &positive, sizeof(bits));
    return from_bits(bits | sign);
  }

  static F32 zero() { return F32{0, 0, 0, 0}; }
  static F32 load(const float* p) {
    F32 v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, F32 v) { std::memcpy(p, &v, sizeof(v)); }
  static F32 broadcast(const float* p) { return F32{*p, *p, *p, *p}; }
  static F32 fma(F32 a, F32 b, F32 c) { return a * b + c; }
  static F32 add(F32 a, F32 b) { return a + b; }
  static F32 sub(F32 a, F32 b) { return a - b; }
  // The second where either is NaN.
  static F32 max(F32 a, F32 b) {
    F32 v;
    for (int i = 0; i < kLanes; ++i) v[i] = a[i] > b[i] ? a[i] : b[i];
    return v;
  }
  // To nearest, ties to even; for magnitudes below 2^22.
  static F32 round(F32 v) {
    F32 shift = {0x1.8p23f, 0x1.8p23f, 0x1.8p23f, 0x1.8p23f};
    return (v + shift) - shift;
  }
  // v 2^n, for whole numbers n from -126 to 127.
  static F32 times_power_of_two(F32 v, F32 n) {
    for (int i = 0; i < kLanes; ++i) {
      // A NaN in n came from a NaN in v, which the product keeps.
      const int32_t exponent = n[i] == n[i] ? static_cast<int32_t>(n[i]) : 0;
      v[i] *= from_bits(static_cast<uint32_t>(exponent + 127) << 23);
    }
    return v;
  }
  template <class Value>
  static F32 load_lanes(const Value* p) {
    return F32{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
  }
  // The first kTileRows lanes.
  static void store_tile_rows(float* p, F32 v) {
    static_assert(kTileRows == kLanes, "all of them");
    store(p, v);
  }
  static F32 mul(F32 a, F32 b) { return a * b; }
  static float sum(F32 v) { return (v[0] + v[1]) + (v[2] + v[3]); }
  // Lane i: the sum of the lanes of r[i].
  static F32 lane_sums(const F32 (&r)[kLanes]) { return F32{sum(r[0]), sum(r[1]), sum(r[2]), sum(r[3])}; }

  static F64 zero64() { return F64{0, 0}; }
  static F64 load64(const double* p) {
    F64 v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store64(double* p, F64 v) { std::memcpy(p, &v, sizeof(v)); }
  static F64 broadcast64(const double* p) { return F64{*p, *p}; }
  static F64 fma64(F64 a, F64 b, F64 c) { return a * b + c; }

  static int64_t popcount(uint64_t bits) { return __builtin_popcountll(bits); }

  // The bits of lanes 4 group .. 4 group + 3 of a mask word.
  using Pattern = uint64_t;
  static Pattern pattern(uint64_t word, int group) { return (word >> (4 * group)) & 0xfu; }

  // Lane i = bit i of the pattern set ? the next value : 0.
  template <class Value>
  static F32 expand(Pattern pattern, const Value* values) {
    F32 v = zero();
    for (int i = 0; i < kLanes; ++i) {
      if (((pattern >> i) & 1u) != 0) v[i] = widen(*values++);
    }
    return v;
  }

  template <class Value>
  static int64_t expand_step(uint64_t word, int step, const Value* values, F32 (&w)[1]) {
    const Pattern bits = pattern(word, step);
    w[0] = expand(bits, values);
    return popcount(bits);
  }

  // int8: four columns in int32 lanes.
  struct Int8 {
    using X = int32_t;
    using W = Int4;
    using Sum = Int4;
    static constexpr int kColumns = 4;
    static constexpr float kUnit = 1;

    static Sum zero() { return Sum{0, 0, 0, 0}; }
    static X encode(int32_t quantised) { return quantised; }
    static W expand(uint64_t word, int step, const int8_t* values) {
      W w = zero();
      for (int i = 0; i < kColumns; ++i) {
        if (((word >> (4 * step + i)) & 1u) != 0) w[i] = *values++;
      }
      return w;
    }
    static int64_t taken(uint64_t word, int step) { return popcount(pattern(word, step)); }
    static Sum add_offset(Sum offset, W) { return offset; }
    static Sum dot(Sum sum, W w, const X* x) {
      Int4 x_four;
      std::memcpy(&x_four, x, sizeof(x_four));
      return sum + w * x_four;
    }
    static F32 to_float(Sum sum, Sum) {
      return F32{static_cast<float>(sum[0]), static_cast<float>(sum[1]), static_cast<float>(sum[2]),
                 static_cast<float>(sum[3])};
    }
  };

  static void transpose(F32 (&rows)[kLanes]) {
    const F32 r0 = rows[0], r1 = rows[1], r2 = rows[2], r3 = rows[3];
    rows[0] = F32{r0[0], r1[0], r2[0], r3[0]};
    rows[1] = F32{r0[1], r1[1], r2[1], r3[1]};
    rows[2] = F32{r0[2], r1[2], r2[2], r3[2]};
    rows[3] = F32{r0[3], r1[3], r2[3], r3[3]};
  }

 private:
  static float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

}  // namespace
}  // namespace restorelcc::cpu
