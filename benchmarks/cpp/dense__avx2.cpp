// AVX2 + FMA. Reading W is what takes the time. Four rows at once are four streams, which one core of Zen 2
// reads half as fast again as one stream (measured: 21 GB/s against 14), and share the loads of x. Lines are
// asked for ahead.
#include <immintrin.h>

#include "dense.h"

namespace restorelcc::bench {
namespace {

constexpr int64_t kAheadBytes = 512;

inline void ahead(const void* from) { _mm_prefetch(static_cast<const char*>(from) + kAheadBytes, _MM_HINT_T0); }

inline float sum_of(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

constexpr int kStreams = 4;

// kernel<Rows>(n) over [begin, end): kStreams rows at a time, the rest one by one.
template <class Several, class One>
inline void by_streams(int64_t begin, int64_t end, const Several& several, const One& one) {
  for (; begin + kStreams <= end; begin += kStreams) several(begin);
  for (; begin < end; ++begin) one(begin);
}

template <int Rows>
inline void fp32_rows(const float* w, const float* x, float* y, int64_t k) {
  __m256 sums[Rows][2];
  for (auto& row : sums) row[0] = row[1] = _mm256_setzero_ps();
  for (int64_t i = 0; i < k; i += 16) {
    const __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + 8);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const float* row = w + r * k + i;
      ahead(row);
      sums[r][0] = _mm256_fmadd_ps(_mm256_loadu_ps(row), x0, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(_mm256_loadu_ps(row + 8), x1, sums[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r) y[r] = sum_of(_mm256_add_ps(sums[r][0], sums[r][1]));
}

void fp32(const float* w, const float* x, float* y, int64_t k, int64_t begin, int64_t end) {
  by_streams(
      begin, end, [&](int64_t n) { fp32_rows<kStreams>(w + n * k, x, y + n, k); },
      [&](int64_t n) { fp32_rows<1>(w + n * k, x, y + n, k); });
}

template <int Rows>
inline void bf16_rows(const uint16_t* w, const float* x, float* y, int64_t k) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  __m256 sums[Rows][2];
  for (auto& row : sums) row[0] = row[1] = _mm256_setzero_ps();
  for (int64_t i = 0; i < k; i += 32) {
    const __m256 x0 = _mm256_loadu_ps(x + i), x1 = _mm256_loadu_ps(x + i + 8);
    const __m256 x2 = _mm256_loadu_ps(x + i + 16), x3 = _mm256_loadu_ps(x + i + 24);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const uint16_t* row = w + r * k + i;
      ahead(row);
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 16));
      sums[r][0] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), x0, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, high)), x1, sums[r][1]);
      sums[r][0] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(b, 16)), x2, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(b, high)), x3, sums[r][1]);
    }
  }
  for (int r = 0; r < Rows; ++r) y[r] = sum_of(_mm256_add_ps(sums[r][0], sums[r][1]));
}

void bf16(const uint16_t* w, const uint16_t*, const float* x, float* y, int64_t k, int64_t begin, int64_t end) {
  by_streams(
      begin, end, [&](int64_t n) { bf16_rows<kStreams>(w + n * k, x, y + n, k); },
      [&](int64_t n) { bf16_rows<1>(w + n * k, x, y + n, k); });
}

// |x| (w with x's sign): both in [-127, 127], so the pair sums of vpmaddubsw stay below 2^15. |x| serves all
// rows.
inline __m256i dot32(const int8_t* w, __m256i x) {
  const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  return _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(row, x));
}

inline __m256i load(const int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }

template <int Rows>
inline void int8_rows(const int8_t* w, const uint16_t* scales, const int8_t* x, const float* x_scales, float* y,
                      int64_t k) {
  const __m256i ones = _mm256_set1_epi16(1);
  const int64_t groups = k / kScaleColumns;
  __m256 sums[Rows];
  for (auto& sum : sums) sum = _mm256_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    const int8_t* x_group = x + g * kScaleColumns;
    const __m256i x0 = load(x_group), x1 = load(x_group + 32), x2 = load(x_group + 64), x3 = load(x_group + 96);
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const int8_t* row = w + r * k + g * kScaleColumns;
      ahead(row);
      ahead(row + 64);
      const __m256i a = _mm256_madd_epi16(dot32(row, x0), ones);
      const __m256i b = _mm256_madd_epi16(dot32(row + 32, x1), ones);
      const __m256i c = _mm256_madd_epi16(dot32(row + 64, x2), ones);
      const __m256i d = _mm256_madd_epi16(dot32(row + 96, x3), ones);
      const __m256i dot = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
      const __m128i scale_bits = _mm_cvtsi32_si128(static_cast<int>(uint32_t{scales[r * groups + g]} << 16));
      const float scale = _mm_cvtss_f32(_mm_castsi128_ps(scale_bits)) * x_scales[g];
      sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_set1_ps(scale), sums[r]);
    }
  }
  for (int r = 0; r < Rows; ++r) y[r] = sum_of(sums[r]);
}

void int8(const int8_t* w, const uint16_t* scales, const int8_t* x, const float* x_scales, float* y, int64_t k,
          int64_t begin, int64_t end) {
  const int64_t groups = k / kScaleColumns;
  by_streams(
      begin, end,
      [&](int64_t n) { int8_rows<kStreams>(w + n * k, scales + n * groups, x, x_scales, y + n, k); },
      [&](int64_t n) { int8_rows<1>(w + n * k, scales + n * groups, x, x_scales, y + n, k); });
}

template <int Streams>
uint64_t read(const char* from, int64_t bytes) {
  __m256i sums[Streams][4];
  for (auto& stream : sums) {
    for (auto& sum : stream) sum = _mm256_setzero_si256();
  }
  const int64_t part = bytes / Streams;
  for (int64_t i = 0; i < part; i += 128) {
#pragma GCC unroll 4
    for (int r = 0; r < Streams; ++r) {
      const char* stream = from + r * part + i;
      if (Streams > 1) ahead(stream);
      if (Streams > 1) ahead(stream + 64);
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) {
        const __m256i loaded = _mm256_load_si256(reinterpret_cast<const __m256i*>(stream + 32 * s));
        sums[r][s] = _mm256_add_epi64(sums[r][s], loaded);
      }
    }
  }
  __m256i total = _mm256_setzero_si256();
  for (auto& stream : sums) {
    for (auto& sum : stream) total = _mm256_add_epi64(total, sum);
  }
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  return static_cast<uint64_t>(_mm_extract_epi64(half, 0)) + static_cast<uint64_t>(_mm_extract_epi64(half, 1));
}

}  // namespace

const DenseKernels kDenseAvx2{"avx2", fp32, bf16, int8, read<kStreams>, read<1>};

}  // namespace restorelcc::bench
