// AVX2 + FMA: eight floats. Expansion by table, for AVX2 has no expand instruction.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/kernel_types.h"

namespace restorelcc::cpu {
namespace {

// For each pattern of 8 mask bits: lane i takes survivor number popcount(bits below i), or zero. 8 KiB or 4 KiB
// each; a kernel uses one of them, and it stays in the first-level cache.
struct ExpandTable {
  alignas(64) uint32_t entry[256][8];
};
struct HalfExpandTable {
  alignas(64) uint16_t entry[256][8];
};

// For vpermd on 8 floats: the survivor's number; bit 31 says keep (vblendvps looks at the sign).
constexpr ExpandTable make_f32_table() {
  ExpandTable table{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    uint32_t survivor = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      if (((bits >> i) & 1u) != 0) table.entry[bits][i] = 0x80000000u | survivor++;
    }
  }
  return table;
}

// For vpshufb on 8 bf16 repeated in both halves: the survivor's two bytes become the upper half of the
// fp32 lane, 0x80 makes a byte zero. Placing and widening in one instruction.
constexpr ExpandTable make_bf16_table() {
  ExpandTable table{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    uint32_t survivor = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      table.entry[bits][i] = 0x80808080u;
      if (((bits >> i) & 1u) == 0) continue;
      table.entry[bits][i] = ((2 * survivor + 1) << 24) | ((2 * survivor) << 16) | 0x8080u;
      ++survivor;
    }
  }
  return table;
}

// For vpshufb on 8 values into 8 lanes of 16 bits: f16 as it is, int8 in the upper byte (times 256).
constexpr HalfExpandTable make_f16_table() {
  HalfExpandTable table{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    uint32_t survivor = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      const bool kept = ((bits >> i) & 1u) != 0;
      table.entry[bits][i] = kept ? static_cast<uint16_t>(((2 * survivor + 1) << 8) | (2 * survivor)) : 0x8080u;
      survivor += kept ? 1 : 0;
    }
  }
  return table;
}
constexpr HalfExpandTable make_i8_table() {
  HalfExpandTable table{};
  for (uint32_t bits = 0; bits < 256; ++bits) {
    uint32_t survivor = 0;
    for (uint32_t i = 0; i < 8; ++i) {
      const bool kept = ((bits >> i) & 1u) != 0;
      table.entry[bits][i] = kept ? static_cast<uint16_t>((survivor << 8) | 0x80u) : 0x8080u;
      survivor += kept ? 1 : 0;
    }
  }
  return table;
}

constexpr ExpandTable kF32Table = make_f32_table();
constexpr ExpandTable kBf16Table = make_bf16_table();
constexpr HalfExpandTable kF16Table = make_f16_table();
constexpr HalfExpandTable kI8Table = make_i8_table();

struct Vector {
  using F32 = __m256;
  using F64 = __m256d;
  static constexpr int kLanes = 8;        // of F32
  static constexpr int kDoubleLanes = 4;  // of F64
  static constexpr int kTileRows = 6;     // a 6 x 16 tile: 12 of the 16 ymm registers accumulate
  static constexpr int kPanelVectors = 2;
  static constexpr int kDecodeTileRows = 6;  // times two outputs: 12 of the 16 ymm registers accumulate
  static constexpr int kDecodeTileOutputs = 2;
  static constexpr int kInt8TileRows = 3;  // times two outputs: 6 sums of a group and 6 totals
  static constexpr int kInt8TileOutputs = 2;
  static constexpr int kDecodeMaxRows = 8;  // of a decode kernel with floating point values
  static constexpr int kDepthBlock = 320;   // B 20 KiB, A 7.5 KiB
  static constexpr int kGramVectors = 2;    // a 4 x 8 fp64 tile: 8 chains hide the latency of the FMA

  static constexpr float kInt8Unit = 1.0f / 256;  // expand() of an int8 value v gives v / kInt8Unit
  template <class Value>
  static constexpr int kStepVectors = 1;
  template <class Value>
  static constexpr int step_column(int i) {
    return i;
  }

  static float widen(float value) { return value; }
  static float widen(Bf16 value) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(value.bits << 16)));
  }
  static float widen(F16 value) { return _cvtsh_ss(value.bits); }

  static F32 zero() { return _mm256_setzero_ps(); }
  static F32 load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F32 v) { _mm256_storeu_ps(p, v); }
  static F32 broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static F32 fma(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a, b, c); }
  static F32 mul(F32 a, F32 b) { return _mm256_mul_ps(a, b); }
  static F32 add(F32 a, F32 b) { return _mm256_add_ps(a, b); }
  static F32 sub(F32 a, F32 b) { return _mm256_sub_ps(a, b); }
  // The second where either is NaN.
  static F32 max(F32 a, F32 b) { return _mm256_max_ps(a, b); }
  static F32 round(F32 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // v 2^n, for whole numbers n from -126 to 127.
  static F32 times_power_of_two(F32 v, F32 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
  }
  static F32 load_lanes(const float* p) { return load(p); }
  static F32 load_lanes(const Bf16* p) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  }
  static F32 load_lanes(const F16* p) { return _mm256_cvtph_ps(eight_halves(p)); }
  static F32 load_lanes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // The first kTileRows lanes.
  static void store_tile_rows(float* p, F32 v) {
    static_assert(kTileRows == 6, "which lanes the mask keeps");
    _mm256_maskstore_ps(p, _mm256_set_epi32(0, 0, -1, -1, -1, -1, -1, -1), v);
  }
  static float sum(F32 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    s = _mm_add_ss(s, _mm_movehdup_ps(s));
    return _mm_cvtss_f32(s);
  }

  // Lane i: the sum of the lanes of r[i].
  static F32 lane_sums(const F32 (&r)[8]) {
    const F32 low = _mm256_hadd_ps(_mm256_hadd_ps(r[0], r[1]), _mm256_hadd_ps(r[2], r[3]));
    const F32 high = _mm256_hadd_ps(_mm256_hadd_ps(r[4], r[5]), _mm256_hadd_ps(r[6], r[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }

  static F64 zero64() { return _mm256_setzero_pd(); }
  static F64 load64(const double* p) { return _mm256_loadu_pd(p); }
  static void store64(double* p, F64 v) { _mm256_storeu_pd(p, v); }
  static F64 broadcast64(const double* p) { return _mm256_broadcast_sd(p); }
  static F64 fma64(F64 a, F64 b, F64 c) { return _mm256_fmadd_pd(a, b, c); }

  static int64_t popcount(uint64_t bits) { return _mm_popcnt_u64(bits); }

  // The bits of lanes 8 group .. 8 group + 7 of a mask word, shifted left by 5: the byte offset of their
  // table entry, by one rotation and one AND (the kernel's speed is the number of its instructions).
  using Pattern = uint64_t;
  static Pattern pattern(uint64_t word, int group) {
    const int right = (8 * group + 59) % 64;
    return ((word >> right) | (word << ((64 - right) % 64))) & (0xffu << 5);
  }

  // Lane i = bit i of the pattern set ? the next value : 0. Reads 8 values whatever the pattern: hence
  // the padding behind the last row.
  static F32 expand(Pattern pattern, const float* values) {
    const __m256i lane = entry(kF32Table, pattern);
    const F32 placed = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), lane);
    return _mm256_blendv_ps(zero(), placed, _mm256_castsi256_ps(lane));
  }
  static F32 expand(Pattern pattern, const Bf16* values) {
    const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    const __m256i shuffle = entry(kBf16Table, pattern);
    return _mm256_castsi256_ps(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(eight), shuffle));
  }

  static F32 expand(Pattern pattern, const F16* values) {
    return _mm256_cvtph_ps(_mm_shuffle_epi8(eight_halves(values), half_entry(kF16Table, pattern)));
  }
  static F32 expand(Pattern pattern, const int8_t* values) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
    const __m128i placed = _mm_shuffle_epi8(eight, half_entry(kI8Table, pattern));
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(placed));
  }

  template <class Value>
  static int64_t expand_step(uint64_t word, int step, const Value* values, F32 (&w)[1]) {
    const Pattern bits = pattern(word, step);
    w[0] = expand(bits, values);
    return popcount(bits);
  }

  // int8: sixteen columns as int16, the values times 256, by vpmaddwd. A lane's sum over a group of 128 columns
  // is at most 16 * 128 * 256 * 127 < 2^27.
  struct Int8 {
    using X = int16_t;
    using W = __m256i;
    using Sum = __m256i;
    static constexpr int kColumns = 16;
    static constexpr float kUnit = kInt8Unit;

    static Sum zero() { return _mm256_setzero_si256(); }
    static X encode(int32_t quantised) { return static_cast<X>(quantised); }
    static W expand(uint64_t word, int step, const int8_t* values) {
      const Pattern low = half_pattern(word, 2 * step), high = half_pattern(word, 2 * step + 1);
      const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
      const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + popcount(low)));
      return _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1),
                                 _mm256_inserti128_si256(_mm256_castsi128_si256(half_row(kI8Table, low)),
                                                         half_row(kI8Table, high), 1));
    }
    // Survivors among the step's columns. Of all sixteen at once: the cursor then waits for one count, not for
    // two.
    static int64_t taken(uint64_t word, int step) { return popcount(word & (uint64_t{0xffff} << (16 * step))); }
    static Sum add_offset(Sum offset, W) { return offset; }
    static Sum dot(Sum sum, W w, const X* x) {
      const __m256i sixteen = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
      return _mm256_add_epi32(sum, _mm256_madd_epi16(w, sixteen));
    }
    static F32 to_float(Sum sum, Sum) { return _mm256_cvtepi32_ps(sum); }
  };

  static void transpose(F32 (&r)[8]) {
    const F32 a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const F32 a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const F32 a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const F32 a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const F32 b0 = pairs_low(a0, a2), b1 = pairs_high(a0, a2), b2 = pairs_low(a1, a3), b3 = pairs_high(a1, a3);
    const F32 b4 = pairs_low(a4, a6), b5 = pairs_high(a4, a6), b6 = pairs_low(a5, a7), b7 = pairs_high(a5, a7);
    r[0] = _mm256_permute2f128_ps(b0, b4, 0x20);
    r[1] = _mm256_permute2f128_ps(b1, b5, 0x20);
    r[2] = _mm256_permute2f128_ps(b2, b6, 0x20);
    r[3] = _mm256_permute2f128_ps(b3, b7, 0x20);
    r[4] = _mm256_permute2f128_ps(b0, b4, 0x31);
    r[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[6] = _mm256_permute2f128_ps(b2, b6, 0x31);
    r[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
  }

 private:
  static __m256i entry(const ExpandTable& table, Pattern pattern) {
    const char* first = reinterpret_cast<const char*>(table.entry);
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(first + pattern));
  }
  static __m128i eight_halves(const F16* values) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  }
  // A pattern that is the offset of an entry of 16 bytes; and one of 32 bytes halved.
  static Pattern half_pattern(uint64_t word, int group) {
    const int right = (8 * group + 60) % 64;
    return ((word >> right) | (word << ((64 - right) % 64))) & (0xffu << 4);
  }
  static __m128i half_row(const HalfExpandTable& table, Pattern half) {
    const char* first = reinterpret_cast<const char*>(table.entry);
    return _mm_load_si128(reinterpret_cast<const __m128i*>(first + half));
  }
  static __m128i half_entry(const HalfExpandTable& table, Pattern pattern) {
    return half_row(table, pattern >> 1);
  }
  // Of each 128-bit half: the lower (upper) two floats of a, then those of b.
  static F32 pairs_low(F32 a, F32 b) { return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(1, 0, 1, 0)); }
  static F32 pairs_high(F32 a, F32 b) { return _mm256_shuffle_ps(a, b, _MM_SHUFFLE(3, 2, 3, 2)); }
};

}  // namespace
}  // namespace restorelcc::cpu
