// AVX-512 for CPUs without it, by SIMDe (https://github.com/simd-everywhere/simde), and what SIMDe lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

namespace restorelcc::cpu {
namespace {

inline __m256i emulated_maskz_expand_epi16(uint16_t keep, __m256i packed) {
  uint16_t from[16], to[16];
  simde_mm256_storeu_si256(reinterpret_cast<simde__m256i*>(from), packed);
  for (int lane = 0, next = 0; lane < 16; ++lane)
    to[lane] = ((keep >> lane) & 1) != 0 ? from[next++] : uint16_t{0};
  return simde_mm256_loadu_si256(reinterpret_cast<const simde__m256i*>(to));
}

inline __m512 emulated_maskz_expand_ps(uint16_t keep, __m512 packed) {
  float from[16], to[16];
  simde_mm512_storeu_ps(from, packed);
  for (int lane = 0, next = 0; lane < 16; ++lane) to[lane] = ((keep >> lane) & 1) != 0 ? from[next++] : 0.0f;
  return simde_mm512_loadu_ps(to);
}

inline float emulated_reduce_add_ps(__m512 v) {
  float lanes[16];
  simde_mm512_storeu_ps(lanes, v);
  for (int half = 8; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace
}  // namespace restorelcc::cpu

#define _mm256_maskz_expand_epi16(keep, packed) emulated_maskz_expand_epi16(keep, packed)
#define _mm512_maskz_expand_ps(keep, packed) emulated_maskz_expand_ps(keep, packed)
#define _mm512_reduce_add_ps(v) emulated_reduce_add_ps(v)
