#include "elements.h"

#include <cmath>
#include <cstring>

namespace decode {
namespace {

float float_of_f16(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 31u, fraction = half & 1023u;
  float value = 0;
  if (exponent == 31) {
    value = fraction == 0 ? HUGE_VALF : std::nanf("");
  } else if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    value = std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
  }
  return (half & 0x8000u) != 0 ? -value : value;
}

float float_of_bf16(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

void widen_row(const void* row, rlcc_dtype dtype, int64_t n, float* to) {
  const uint16_t* halves = static_cast<const uint16_t*>(row);
  switch (dtype) {
    case RLCC_F32: std::memcpy(to, row, static_cast<size_t>(n) * sizeof(float)); return;
    case RLCC_BF16:
      for (int64_t i = 0; i < n; ++i) to[i] = float_of_bf16(halves[i]);
      return;
    default:
      for (int64_t i = 0; i < n; ++i) to[i] = float_of_f16(halves[i]);
  }
}

void narrow_row(const float* row, int64_t n, rlcc_dtype dtype, void* to) {
  if (dtype == RLCC_F32) {
    std::memcpy(to, row, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(std::isnan(row[i]) ? (bits >> 16) | 0x40u : rounded);
  }
}

}  // namespace decode
