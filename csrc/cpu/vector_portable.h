// Vectors of four floats in the compiler's own vector extension: correct on any CPU, and what the fast
// instruction sets are compared with.
#pragma once

#include <cstdint>
#include <cstring>

namespace restorelcc::cpu {
namespace {

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));

inline float widen(float value) { return value; }
inline float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct Vector {
  using F32 = Float4;
  using F64 = Double2;
  static constexpr int kLanes = 4;        // of F32
  static constexpr int kDoubleLanes = 2;  // of F64
  static constexpr int kTileRows = 4;     // a 4 x 8 tile: 8 of the 16 xmm registers accumulate
  static constexpr int kPanelVectors = 2;
  static constexpr int kDepthBlock = 320;  // B 10 KiB, A 5 KiB
  static constexpr int kGramVectors = 2;   // a 4 x 4 fp64 tile

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
  static float sum(F32 v) { return (v[0] + v[1]) + (v[2] + v[3]); }

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

  static void transpose(F32 (&rows)[kLanes]) {
    const F32 r0 = rows[0], r1 = rows[1], r2 = rows[2], r3 = rows[3];
    rows[0] = F32{r0[0], r1[0], r2[0], r3[0]};
    rows[1] = F32{r0[1], r1[1], r2[1], r3[1]};
    rows[2] = F32{r0[2], r1[2], r2[2], r3[2]};
    rows[3] = F32{r0[3], r1[3], r2[3], r3[3]};
  }
};

}  // namespace
}  // namespace restorelcc::cpu
