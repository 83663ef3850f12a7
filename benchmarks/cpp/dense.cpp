#include "dense.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "restorelcc/restorelcc.h"

namespace restorelcc::bench {
namespace {

float widen(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void fp32(const float* w, const float* x, float* y, int64_t k, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    float sum[8] = {};
    for (int64_t i = 0; i < k; ++i) sum[i % 8] += w[n * k + i] * x[i];
    y[n] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
}

void bf16(const uint16_t* w, const uint16_t* x, const float*, float* y, int64_t k, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    float sum[8] = {};
    for (int64_t i = 0; i < k; ++i) sum[i % 8] += widen(w[n * k + i]) * widen(x[i]);
    y[n] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
  }
}

void int8(const int8_t* w, const uint16_t* scales, const int8_t* x, const float* x_scales, float* y, int64_t k,
          int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    float sum = 0;
    for (int64_t g = 0; g < k / kScaleColumns; ++g) {
      int32_t dot = 0;
      for (int64_t i = g * kScaleColumns; i < (g + 1) * kScaleColumns; ++i) dot += w[n * k + i] * x[i];
      sum += static_cast<float>(dot) * widen(scales[n * (k / kScaleColumns) + g]) * x_scales[g];
    }
    y[n] = sum;
  }
}

uint64_t read(const char* from, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, from + i, sizeof(word));
    sum += word;
  }
  return sum;
}

// The library's own look at the CPU.
[[maybe_unused]] bool cpu_has(const char* isa) {
  const rlcc_kernel_info* kernels = nullptr;
  int64_t count = 0;
  if (rlcc_kernels(&kernels, &count) != RLCC_OK) return false;
  return std::any_of(kernels, kernels + count, [&](const rlcc_kernel_info& kernel) {
    return kernel.available != 0 && std::strcmp(kernel.isa, isa) == 0;
  });
}

}  // namespace

const DenseKernels kDensePortable{"portable", fp32, bf16, int8, read, read};

const DenseKernels& dense_kernels() {
#if RLCC_X86_KERNELS
  if (cpu_has("avx512bf16")) return kDenseAvx512;
  if (cpu_has("avx2")) return kDenseAvx2;
#endif
  return kDensePortable;
}

void order_x(const uint16_t* x, int64_t k, float* ordered) {
  for (int64_t i = 0; i < k; i += 16) {
    for (int64_t j = 0; j < 8; ++j) {
      ordered[i + j] = widen(x[i + 2 * j]);
      ordered[i + 8 + j] = widen(x[i + 2 * j + 1]);
    }
  }
}

void quantise_x(const float* x, int64_t k, int8_t* quantised, float* scales) {
  for (int64_t g = 0; g < k / kScaleColumns; ++g) {
    const float* group = x + g * kScaleColumns;
    float largest = 0;
    for (int64_t i = 0; i < kScaleColumns; ++i) largest = std::max(largest, std::fabs(group[i]));
    scales[g] = largest / 127;
    const float inverse = largest > 0 ? 127 / largest : 0;
    for (int64_t i = 0; i < kScaleColumns; ++i) {
      quantised[g * kScaleColumns + i] = static_cast<int8_t>(std::lrint(group[i] * inverse));
    }
  }
}

}  // namespace restorelcc::bench
