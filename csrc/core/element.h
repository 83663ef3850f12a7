// One element of an array of any storage type, widened to float64 and rounded back. Scalar: for the oracles and
// for packing; kernels have conversions of their own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "restorelcc/params.h"

namespace restorelcc {

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_of_bf16(uint16_t bf16) { return float_of_bits(static_cast<uint32_t>(bf16) << 16); }

inline double double_of_f16(uint16_t f16) {
  const int exponent = (f16 >> 10) & 31;
  const double fraction = f16 & 1023;
  double value = 0;
  if (exponent == 31) {
    value = fraction == 0 ? HUGE_VAL : std::nan("");
  } else if (exponent == 0) {
    value = std::ldexp(fraction, -24);
  } else {
    value = std::ldexp(1024 + fraction, exponent - 25);
  }
  return (f16 & 0x8000) != 0 ? -value : value;
}

// To nearest, ties to even; a NaN stays a (quiet) NaN.
inline uint16_t bf16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(std::isnan(value) ? (bits >> 16) | 0x40u : rounded);
}

inline uint16_t f16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude == 0) return sign;
  if (magnitude >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00u);
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude < 2^exponent
  const int unit =
      std::max(exponent, -13) - 11;  // of the last place: 11 significant bits, subnormal below 2^-14
  const uint32_t units = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, -unit)));
  // units counts from the bottom of the binade, so a carry into the next one is a carry into the exponent.
  const uint32_t binade = static_cast<uint32_t>(unit + 24);
  return static_cast<uint16_t>(sign | (units + (binade << 10)));
}

inline double element(const void* data, rlcc_dtype dtype, int64_t index) {
  switch (dtype) {
    case RLCC_F32: return static_cast<const float*>(data)[index];
    case RLCC_BF16: return float_of_bf16(static_cast<const uint16_t*>(data)[index]);
    case RLCC_F16: return double_of_f16(static_cast<const uint16_t*>(data)[index]);
    default: return static_cast<const int8_t*>(data)[index];
  }
}

// To nearest, ties to even, through fp32, as the kernels do. Not for RLCC_I8.
inline void set_element(void* data, rlcc_dtype dtype, int64_t index, double value) {
  const float narrowed = static_cast<float>(value);
  if (dtype == RLCC_F32) {
    static_cast<float*>(data)[index] = narrowed;
  } else {
    static_cast<uint16_t*>(data)[index] = dtype == RLCC_BF16 ? bf16_of_float(narrowed) : f16_of_float(narrowed);
  }
}

}  // namespace restorelcc
