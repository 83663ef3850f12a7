// AVX-512 for CPUs without it, by SIMDe (https://github.com/simd-everywhere/simde), and what SIMDe lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstring>

namespace restorelcc::cpu {
namespace {

// Lane i = bit i of keep set ? the next lane of packed : lane i of source.
template <class Lane, class Mask, class Vector>
inline Vector emulated_expand(Vector source, Mask keep, Vector packed) {
  constexpr size_t kLanes = sizeof(Vector) / sizeof(Lane);
  Lane from[kLanes], to[kLanes];
  std::memcpy(from, &packed, sizeof(packed));
  std::memcpy(to, &source, sizeof(source));
  for (size_t lane = 0, next = 0; lane < kLanes; ++lane) {
    if (((keep >> lane) & 1) != 0) to[lane] = from[next++];
  }
  std::memcpy(&packed, to, sizeof(packed));
  return packed;
}

inline float emulated_reduce_add_ps(__m512 v) {
  float lanes[16];
  simde_mm512_storeu_ps(lanes, v);
  for (int half = 8; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

inline __m512i emulated_cvtepi8_epi32(__m128i packed) {
  int8_t from[16];
  int32_t to[16];
  std::memcpy(from, &packed, sizeof(packed));
  for (int lane = 0; lane < 16; ++lane) to[lane] = from[lane];
  return simde_mm512_loadu_si512(to);
}

// sum[i] += a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1] of bf16 pairs, subnormal inputs read as 0, as vdpbf16ps does.
inline __m512 emulated_dpbf16_ps(__m512 sum, __m512i a, __m512i b) {
  uint16_t x[32], y[32];
  float sums[16];
  std::memcpy(x, &a, sizeof(a));
  std::memcpy(y, &b, sizeof(b));
  simde_mm512_storeu_ps(sums, sum);
  const auto widen = [](uint16_t bf16) {
    const uint32_t bits = static_cast<uint32_t>((bf16 & 0x7f80) == 0 ? bf16 & 0x8000 : bf16) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  };
  for (int lane = 0; lane < 16; ++lane) {
    for (int i = 2 * lane + 1; i >= 2 * lane; --i) sums[lane] = std::fma(widen(x[i]), widen(y[i]), sums[lane]);
  }
  return simde_mm512_loadu_ps(sums);
}

// SIMDe stores all sixteen lanes, the others as it has read them: a race with whoever writes those.
inline void emulated_mask_storeu_ps(float* to, uint16_t keep, __m512 v) {
  float lanes[16];
  simde_mm512_storeu_ps(lanes, v);
  for (int lane = 0; lane < 16; ++lane) {
    if (((keep >> lane) & 1) != 0) to[lane] = lanes[lane];
  }
}

// 32 floats, low first, as bf16: to nearest, ties to even, subnormal inputs read as 0, as vcvtne2ps2bf16 does.
inline __m512i emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
  uint32_t from[32];
  uint16_t to[32];
  std::memcpy(from, &low, sizeof(low));
  std::memcpy(from + 16, &high, sizeof(high));
  for (int lane = 0; lane < 32; ++lane) {
    const uint32_t bits = (from[lane] & 0x7f800000u) == 0 ? from[lane] & 0x80000000u : from[lane];
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    to[lane] = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  return simde_mm512_loadu_si512(to);
}

}  // namespace
}  // namespace restorelcc::cpu

#define RLCC_PAIRS(vector) (vector)
#define RLCC_FROM_PAIRS(pairs) (pairs)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(to, keep, v) emulated_mask_storeu_ps(to, static_cast<uint16_t>(keep), v)
#define _mm512_cvtne2ps_pbh(high, low) emulated_cvtne2ps_pbh(high, low)
#define _mm512_mask_expand_epi8(source, keep, packed) \
  emulated_expand<uint8_t>(source, static_cast<uint64_t>(keep), packed)
#define _mm512_mask_expand_epi16(source, keep, packed) \
  emulated_expand<uint16_t>(source, static_cast<uint32_t>(keep), packed)
#define _mm512_mask_expand_epi32(source, keep, packed) \
  emulated_expand<uint32_t>(source, static_cast<uint16_t>(keep), packed)
#define _mm512_mask_expand_ps(source, keep, packed) \
  emulated_expand<float>(source, static_cast<uint16_t>(keep), packed)
#define _mm512_reduce_add_ps(v) emulated_reduce_add_ps(v)
#define _mm512_cvtepi8_epi32(packed) emulated_cvtepi8_epi32(packed)
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(sum, a, b) emulated_dpbf16_ps(sum, a, b)
