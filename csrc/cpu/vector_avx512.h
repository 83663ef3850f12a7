// AVX-512 F, BW, DQ, VL, VBMI2: sixteen floats, and an instruction that expands.
#pragma once

#include <cstdint>

// The tests compile these kernels a second time with an emulation of the instructions, so that their
// source runs on any CPU.
#if defined(RLCC_EMULATE_AVX512)
#include "avx512_emulation.h"
#define RLCC_LOADED(vector) (void)0
#else
#include <immintrin.h>
// The vector now is in a register, and the compiler cannot fold the load into the expansion. In its
// memory form vpexpand is microcoded on AMD: measured on Zen 5, a sparse GEMV made of it took twice the
// time of the dense one, and made of the register form three quarters.
#define RLCC_LOADED(vector) __asm__("" : "+v"(vector))
#endif

namespace restorelcc::cpu {
namespace {

struct Vector {
  using F32 = __m512;
  using F64 = __m512d;
  static constexpr int kLanes = 16;       // of F32
  static constexpr int kDoubleLanes = 8;  // of F64
  static constexpr int kTileRows = 12;    // a 12 x 32 tile: 24 of the 32 zmm registers accumulate
  static constexpr int kPanelVectors = 2;
  static constexpr int kDepthBlock = 256;  // B 32 KiB, A 12 KiB, of 48 KiB
  static constexpr int kGramVectors = 2;   // a 4 x 16 fp64 tile: 8 chains hide the latency of the FMA

  static F32 zero() { return _mm512_setzero_ps(); }
  static F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
  static F32 broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static float sum(F32 v) { return _mm512_reduce_add_ps(v); }

  static F64 zero64() { return _mm512_setzero_pd(); }
  static F64 load64(const double* p) { return _mm512_loadu_pd(p); }
  static void store64(double* p, F64 v) { _mm512_storeu_pd(p, v); }
  static F64 broadcast64(const double* p) { return _mm512_set1_pd(*p); }
  static F64 fma64(F64 a, F64 b, F64 c) { return _mm512_fmadd_pd(a, b, c); }

  static int64_t popcount(uint64_t bits) { return __builtin_popcountll(bits); }

  // The bits of lanes 16 group .. 16 group + 15 of a mask word.
  using Pattern = uint64_t;
  static Pattern pattern(uint64_t word, int group) { return (word >> (16 * group)) & 0xffffu; }

  // Lane i = bit i of the pattern set ? the next value : 0. Reads 16 values whatever the pattern: hence the
  // padding behind the last row.
  static F32 expand(Pattern pattern, const float* values) {
    __m512 packed = _mm512_loadu_ps(values);
    RLCC_LOADED(packed);
    return _mm512_maskz_expand_ps(static_cast<__mmask16>(pattern), packed);
  }
  static F32 expand(Pattern pattern, const uint16_t* values) {
    __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
    RLCC_LOADED(packed);
    const __m256i placed = _mm256_maskz_expand_epi16(static_cast<__mmask16>(pattern), packed);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(placed), 16));
  }

  // Four steps, each doubling the run of neighbours in place: 1, 2, 4, 8 rows.
  static void transpose(F32 (&r)[16]) {
    F32 a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    // b[4 q + c]: column 4 h + c of rows 4 q .. 4 q + 3 in its 128-bit quarter h.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      b[i] = _mm512_shuffle_ps(a[i], a[i + 2], _MM_SHUFFLE(1, 0, 1, 0));
      b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], _MM_SHUFFLE(3, 2, 3, 2));
      b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], _MM_SHUFFLE(1, 0, 1, 0));
      b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], _MM_SHUFFLE(3, 2, 3, 2));
    }
    // Then a 4 x 4 transpose of the quarters: quarter h of b[4 q + c] becomes quarter q of r[4 h + c].
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F32 even01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88),
                odd01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
      const F32 even23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
      const F32 odd23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
      r[c] = _mm512_shuffle_f32x4(even01, even23, 0x88);
      r[4 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
      r[8 + c] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
      r[12 + c] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
  }
};

}  // namespace
}  // namespace restorelcc::cpu
