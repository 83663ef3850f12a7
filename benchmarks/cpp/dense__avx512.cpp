// AVX-512 with BF16 and VNNI (Zen 4, Sapphire Rapids). Four rows at once, as in dense__avx2.cpp. No CPU has run
// this yet: its results are checked under emulation, its speed is unknown.
#if defined(RLCC_EMULATE_AVX512)
#include "avx512_emulation.h"
#else
#include <immintrin.h>
#define RLCC_PAIRS(vector) ((__m512bh)(vector))
#endif

#include "dense.h"

namespace restorelcc::bench {
namespace {

#if defined(RLCC_EMULATE_AVX512)
using namespace restorelcc::cpu;  // the emulated instructions
#endif

constexpr int64_t kAheadBytes = 512;

inline void ahead(const void* from) { __builtin_prefetch(static_cast<const char*>(from) + kAheadBytes); }

constexpr int kStreams = 4;

// several(n) for kStreams rows from n on, one(n) for the rest.
template <class Several, class One>
inline void by_streams(int64_t begin, int64_t end, const Several& several, const One& one) {
  for (; begin + kStreams <= end; begin += kStreams) several(begin);
  for (; begin < end; ++begin) one(begin);
}

template <int Rows>
inline void fp32_rows(const float* w, const float* x, float* y, int64_t k) {
  __m512 sums[Rows][2];
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 32) {
    const __m512 x0 = _mm512_loadu_ps(x + i), x1 = _mm512_loadu_ps(x + i + 16);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const float* row = w + r * k + i;
      ahead(row);
      ahead(row + 16);
      sums[r][0] = _mm512_fmadd_ps(_mm512_loadu_ps(row), x0, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(_mm512_loadu_ps(row + 16), x1, sums[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r) y[r] = _mm512_reduce_add_ps(_mm512_add_ps(sums[r][0], sums[r][1]));
}

void fp32(const float* w, const float* x, float* y, int64_t k, int64_t begin, int64_t end) {
  by_streams(
      begin, end, [&](int64_t n) { fp32_rows<kStreams>(w + n * k, x, y + n, k); },
      [&](int64_t n) { fp32_rows<1>(w + n * k, x, y + n, k); });
}

template <int Rows>
inline void bf16_rows(const uint16_t* w, const uint16_t* x, float* y, int64_t k) {
  __m512 sums[Rows][2];
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 64) {
    const __m512i x0 = _mm512_loadu_si512(x + i), x1 = _mm512_loadu_si512(x + i + 32);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const uint16_t* row = w + r * k + i;
      ahead(row);
      ahead(row + 32);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], RLCC_PAIRS(_mm512_loadu_si512(row)), RLCC_PAIRS(x0));
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], RLCC_PAIRS(_mm512_loadu_si512(row + 32)), RLCC_PAIRS(x1));
    }
  }
  for (int r = 0; r < Rows; ++r) y[r] = _mm512_reduce_add_ps(_mm512_add_ps(sums[r][0], sums[r][1]));
}

void bf16(const uint16_t* w, const uint16_t* x, const float*, float* y, int64_t k, int64_t begin, int64_t end) {
  by_streams(
      begin, end, [&](int64_t n) { bf16_rows<kStreams>(w + n * k, x, y + n, k); },
      [&](int64_t n) { bf16_rows<1>(w + n * k, x, y + n, k); });
}

// vpdpbusd wants one unsigned side: |w|, and x with w's sign.
inline __m512i dot64(__m512i sum, const int8_t* w, const int8_t* x) {
  const __m512i a = _mm512_loadu_si512(w), b = _mm512_loadu_si512(x);
  const __m512i signed_x = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
  return _mm512_dpbusd_epi32(sum, _mm512_abs_epi8(a), signed_x);
}

template <int Rows>
inline void int8_rows(const int8_t* w, const uint16_t* scales, const int8_t* x, const float* x_scales, float* y,
                      int64_t k) {
  const int64_t groups = k / kScaleColumns;
  __m512 sums[Rows];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    const int8_t* x_group = x + g * kScaleColumns;
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const int8_t* row = w + r * k + g * kScaleColumns;
      ahead(row);
      ahead(row + 64);
      const __m512i dot = dot64(dot64(_mm512_setzero_si512(), row, x_group), row + 64, x_group + 64);
      const auto scale_bits = static_cast<int32_t>(uint32_t{scales[r * groups + g]} << 16);
      const __m512 scale =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_set1_epi32(scale_bits)), _mm512_set1_ps(x_scales[g]));
      sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) y[r] = _mm512_reduce_add_ps(sums[r]);
}

void int8(const int8_t* w, const uint16_t* scales, const int8_t* x, const float* x_scales, float* y, int64_t k,
          int64_t begin, int64_t end) {
  const int64_t groups = k / kScaleColumns;
  by_streams(
      begin, end,
      [&](int64_t n) { int8_rows<kStreams>(w + n * k, scales + n * groups, x, x_scales, y + n, k); },
      [&](int64_t n) { int8_rows<1>(w + n * k, scales + n * groups, x, x_scales, y + n, k); });
}

uint64_t read(const char* from, int64_t bytes) {
  __m512i sums[kStreams][2];
  for (auto& stream : sums) stream[0] = stream[1] = _mm512_setzero_si512();
  const int64_t part = bytes / kStreams;
  for (int64_t i = 0; i < part; i += 128) {
#pragma GCC unroll 4
    for (int r = 0; r < kStreams; ++r) {
      const char* stream = from + r * part + i;
      ahead(stream);
      ahead(stream + 64);
      sums[r][0] = _mm512_add_epi64(sums[r][0], _mm512_loadu_si512(stream));
      sums[r][1] = _mm512_add_epi64(sums[r][1], _mm512_loadu_si512(stream + 64));
    }
  }
  __m512i total_lanes = _mm512_setzero_si512();
  for (auto& stream : sums) {
    total_lanes = _mm512_add_epi64(total_lanes, _mm512_add_epi64(stream[0], stream[1]));
  }
  uint64_t lanes[8], total = 0;
  _mm512_storeu_si512(lanes, total_lanes);
  for (uint64_t lane : lanes) total += lane;
  return total;
}

}  // namespace

const DenseKernels kDenseAvx512{"avx512bf16", fp32, bf16, int8, read};

}  // namespace restorelcc::bench
