// AVX-512: sixteen floats, and an instruction that expands. Three translation units include this:
//
//   avx512f      F, BW, DQ, VL: vpexpandps on values widened before
//
//   avx512vbmi2  RLCC_EXPAND_NARROW: vpexpandw and vpexpandb on values as they are stored
//
//   avx512bf16   RLCC_DOT_BF16 too: vdpbf16ps on pairs of bf16, vpdpbusd on fours of int8
#pragma once

#include <cstdint>

#include "cpu/kernel_types.h"

// The tests compile these kernels a second time with an emulation of the instructions, so that their
// source runs on any CPU.
#if defined(RLCC_EMULATE_AVX512)
#include "avx512_emulation.h"
#define RLCC_LOADED(vector) (void)0
#define RLCC_FRESH(vector) (void)0
#else
#include <immintrin.h>
// The vector now is in a register, and the compiler cannot fold the load into the expansion. In its
// memory form vpexpand is microcoded on AMD: measured on Zen 5, a sparse GEMV made of it took twice the
// time of the dense one, and made of the register form three quarters.
#define RLCC_LOADED(vector) __asm__("" : "+v"(vector))
// The vector is written here, and the compiler cannot fold its zeros into the {z} form of the expansion. On Zen
// 4 that form waits for whatever last wrote its destination: 4.65 cycles each in one register against 1.75
// (measured).
#define RLCC_FRESH(vector) __asm__("" : "+v"(vector))
#define RLCC_PAIRS(vector) (__m512bh)(vector)
#define RLCC_FROM_PAIRS(pairs) (__m512i)(pairs)
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
  static constexpr int kDecodeTileRows = 6;  // times four outputs: 24 of the 32 zmm registers accumulate
  static constexpr int kDecodeTileOutputs = 4;
  static constexpr int kInt8TileRows = 3;  // times four outputs: 12 sums of a group and 12 totals
  static constexpr int kInt8TileOutputs = 4;
  static constexpr int kDecodeMaxRows = 16;  // of a decode kernel with floating point values
  static constexpr int kDepthBlock = 256;    // B 32 KiB, A 12 KiB, of 48 KiB
  static constexpr int kGramVectors = 2;     // a 4 x 16 fp64 tile: 8 chains hide the latency of the FMA

  static constexpr float kInt8Unit = 1;  // expand() of an int8 value v gives v / kInt8Unit
#if defined(RLCC_EXPAND_NARROW)
  template <class Value>
  static constexpr int kStepVectors = sizeof(Value) == 2 ? 2 : 1;
  // Which column of a step place i of its vectors holds: bf16 comes as the even columns, then the odd ones.
  template <class Value>
  static constexpr int step_column(int i) {
    return kIsBf16<Value> ? 2 * (i % kLanes) + i / kLanes : i;
  }
#else
  template <class Value>
  static constexpr int kStepVectors = 1;
  template <class Value>
  static constexpr int step_column(int i) {
    return i;
  }
#endif

  static float widen(float value) { return value; }
  static float widen(Bf16 value) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(value.bits << 16)));
  }
  static float widen(F16 value) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(value.bits))); }

  static F32 zero() { return _mm512_setzero_ps(); }
  static F32 load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F32 v) { _mm512_storeu_ps(p, v); }
  static F32 broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a, b, c); }
  static F32 mul(F32 a, F32 b) { return _mm512_mul_ps(a, b); }
  static F32 add(F32 a, F32 b) { return _mm512_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm512_sub_ps(a, b); }
  // The second where either is NaN.
  static F32 max(F32 a, F32 b) { return _mm512_max_ps(a, b); }
  static F32 round(F32 v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // v 2^n, for whole numbers n from -126 to 127.
  static F32 times_power_of_two(F32 v, F32 n) { return _mm512_scalef_ps(v, n); }
  static F32 load_lanes(const float* p) { return widen16(p); }
  static F32 load_lanes(const Bf16* p) { return widen16(p); }
  static F32 load_lanes(const F16* p) { return widen16(p); }
  // The first kTileRows lanes.
  static void store_tile_rows(float* p, F32 v) { _mm512_mask_storeu_ps(p, (1 << kTileRows) - 1, v); }
  static float sum(F32 v) { return _mm512_reduce_add_ps(v); }
  // Lane i: the sum of the lanes of r[i].
  static F32 lane_sums(const F32 (&r)[kLanes]) {
    F32 column[kLanes];
    for (int i = 0; i < kLanes; ++i) column[i] = r[i];
    transpose(column);
    F32 sums = column[0];
    for (int i = 1; i < kLanes; ++i) sums = add(sums, column[i]);
    return sums;
  }

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
  template <class Value>
  static F32 expand(Pattern pattern, const Value* values) {
    F32 packed = widen16(values);
    RLCC_LOADED(packed);
    F32 zeros = zero();
    RLCC_FRESH(zeros);
    return _mm512_mask_expand_ps(zeros, static_cast<__mmask16>(pattern), packed);
  }

  template <class Value>
  static int64_t expand_step(uint64_t word, int step, const Value* values, F32 (&w)[1]) {
    const Pattern bits = pattern(word, step);
    w[0] = expand(bits, values);
    return popcount(bits);
  }

#if defined(RLCC_EXPAND_NARROW)
  // 32 columns: the even ones, then the odd ones.
  static int64_t expand_step(uint64_t word, int step, const Bf16* values, F32 (&w)[2]) {
    const uint32_t bits = static_cast<uint32_t>(word >> (32 * step));
    const __m512i pairs = expand_pairs(bits, values);
    w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    w[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
    return popcount(bits);
  }
  static int64_t expand_step(uint64_t word, int step, const F16* values, F32 (&w)[2]) {
    const uint32_t bits = static_cast<uint32_t>(word >> (32 * step));
    const __m512i halves = expand_pairs(bits, values);
    w[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
    w[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
    return popcount(bits);
  }
  template <class Half>
  static __m512i expand_pairs(uint32_t bits, const Half* values) {
    __m512i packed = _mm512_loadu_si512(values);
    RLCC_LOADED(packed);
    __m512i zeros = _mm512_setzero_si512();
    RLCC_FRESH(zeros);
    return _mm512_mask_expand_epi16(zeros, static_cast<__mmask32>(bits), packed);
  }
#endif
#if defined(RLCC_DOT_BF16)
  using Pairs = __m512i;  // of bf16
  static F32 as_lanes(Pairs pairs) { return _mm512_castsi512_ps(pairs); }
  // sum + the two products of each lane's pairs.
  static F32 dot_lanes(F32 a, F32 b, F32 sum) {
    return _mm512_dpbf16_ps(sum, RLCC_PAIRS(_mm512_castps_si512(a)), RLCC_PAIRS(_mm512_castps_si512(b)));
  }
  // int8 values as bf16: the upper halves of floats, which such integers fill with room to spare.
  static Pairs expand_pairs(uint32_t bits, const int8_t* values) {
    const __m512i bytes = expand_bytes(bits, values);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_castsi512_si128(bytes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(bytes, 1)));
    const __m512i upper = _mm512_add_epi32(
        _mm512_set1_epi32((3 << 16) | 1), _mm512_mullo_epi32(lane_numbers(), _mm512_set1_epi32((4 << 16) | 4)));
    return _mm512_permutex2var_epi16(_mm512_castps_si512(low), upper, _mm512_castps_si512(high));
  }
  // Pairs (even[i], odd[i]) of places 0 .. 15, and of 16 .. 31.
  static F32 weave_low(Pairs even, Pairs odd) { return weave(even, odd, 0); }
  static F32 weave_high(Pairs even, Pairs odd) { return weave(even, odd, 16); }
  static Pairs load_pairs(const Bf16* p) { return _mm512_loadu_si512(p); }
  // Lane i = the neighbours 2 i and 2 i + 1 of the 32 floats (low, high), rounded to bf16.
  static F32 narrow_to_pairs(F32 low, F32 high) {
    return _mm512_castsi512_ps(RLCC_FROM_PAIRS(_mm512_cvtne2ps_pbh(high, low)));
  }
  static F32 dot_pairs(F32 sum, Pairs w, const Bf16* x) {
    return _mm512_dpbf16_ps(sum, RLCC_PAIRS(w), RLCC_PAIRS(_mm512_loadu_si512(x)));
  }
#endif

#if defined(RLCC_DOT_BF16)
  // int8: 64 columns by vpdpbusd, which wants one side unsigned: x + 128, and 128 sum(w) taken off again.
  struct Int8 {
    using X = uint8_t;
    using W = __m512i;
    using Sum = __m512i;
    static constexpr int kColumns = 64;
    static constexpr float kUnit = 1;

    static Sum zero() { return _mm512_setzero_si512(); }
    static X encode(int32_t quantised) { return static_cast<X>(quantised + 128); }
    static W expand(uint64_t word, int, const int8_t* values) { return expand_bytes(word, values); }
    static int64_t taken(uint64_t word, int) { return popcount(word); }
    static Sum add_offset(Sum offset, W w) {
      return _mm512_dpbusd_epi32(offset, _mm512_set1_epi8(static_cast<char>(0x80)), w);
    }
    static Sum dot(Sum sum, W w, const X* x) { return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(x), w); }
    static F32 to_float(Sum sum, Sum offset) { return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset)); }
  };
#elif defined(RLCC_EXPAND_NARROW)
  // int8: 64 columns, widened to int16 and multiplied by vpmaddwd.
  struct Int8 {
    using X = int16_t;
    using W = __m512i;
    using Sum = __m512i;
    static constexpr int kColumns = 64;
    static constexpr float kUnit = 1;

    static Sum zero() { return _mm512_setzero_si512(); }
    static X encode(int32_t quantised) { return static_cast<X>(quantised); }
    static W expand(uint64_t word, int, const int8_t* values) { return expand_bytes(word, values); }
    static int64_t taken(uint64_t word, int) { return popcount(word); }
    static Sum add_offset(Sum offset, W) { return offset; }
    static Sum dot(Sum sum, W w, const X* x) {
      const __m512i low = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(w));
      const __m512i high = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(w, 1));
      sum = _mm512_add_epi32(sum, _mm512_madd_epi16(low, _mm512_loadu_si512(x)));
      return _mm512_add_epi32(sum, _mm512_madd_epi16(high, _mm512_loadu_si512(x + 32)));
    }
    static F32 to_float(Sum sum, Sum) { return _mm512_cvtepi32_ps(sum); }
  };
#else
  // int8: sixteen columns in int32 lanes. vpmaddwd on (value, its sign) and (x, 0) is the product.
  struct Int8 {
    using X = int32_t;
    using W = __m512i;
    using Sum = __m512i;
    static constexpr int kColumns = 16;
    static constexpr float kUnit = 1;

    static Sum zero() { return _mm512_setzero_si512(); }
    static X encode(int32_t quantised) { return quantised & 0xffff; }
    static W expand(uint64_t word, int step, const int8_t* values) {
      const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
      __m512i zeros = _mm512_setzero_si512();
      RLCC_FRESH(zeros);
      return _mm512_mask_expand_epi32(zeros, static_cast<__mmask16>(pattern(word, step)),
                                      _mm512_cvtepi8_epi32(packed));
    }
    static int64_t taken(uint64_t word, int step) { return popcount(pattern(word, step)); }
    static Sum add_offset(Sum offset, W) { return offset; }
    static Sum dot(Sum sum, W w, const X* x) {
      return _mm512_add_epi32(sum, _mm512_madd_epi16(w, _mm512_loadu_si512(x)));
    }
    static F32 to_float(Sum sum, Sum) { return _mm512_cvtepi32_ps(sum); }
  };
#endif

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

 private:
#if defined(RLCC_DOT_BF16)
  static __m512i lane_numbers() {
    return _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  }
  static F32 weave(Pairs even, Pairs odd, int first) {
    const __m512i lane = lane_numbers();
    // Place first + i of even, then (32 further on) the same of odd, in the two halves of lane i.
    const __m512i place = _mm512_add_epi32(_mm512_or_si512(lane, _mm512_slli_epi32(lane, 16)),
                                           _mm512_set1_epi32((32 << 16) | (first << 16) | first));
    return _mm512_castsi512_ps(_mm512_permutex2var_epi16(even, place, odd));
  }
#endif
  static F32 widen16(const float* values) { return _mm512_loadu_ps(values); }
  static F32 widen16(const Bf16* values) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen_halves(values)), 16));
  }
  static F32 widen16(const F16* values) { return _mm512_cvtph_ps(sixteen_halves(values)); }
  static F32 widen16(const int8_t* values) {
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(packed));
  }
  static __m256i sixteen_halves(const void* values) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(values));
  }
#if defined(RLCC_EXPAND_NARROW)
  static __m512i expand_bytes(uint64_t word, const int8_t* values) {
    __m512i packed = _mm512_loadu_si512(values);
    RLCC_LOADED(packed);
    __m512i zeros = _mm512_setzero_si512();
    RLCC_FRESH(zeros);
    return _mm512_mask_expand_epi8(zeros, static_cast<__mmask64>(word), packed);
  }
#endif
};

}  // namespace
}  // namespace restorelcc::cpu
