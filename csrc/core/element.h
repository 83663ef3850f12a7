// One element of a strided array, widened to float64 and rounded back.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "restorelcc/params.h"

namespace restorelcc::reference {

inline double element(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_F32) return static_cast<const float*>(data)[index];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To nearest, ties to even; a NaN stays a (quiet) NaN. To bf16 through fp32, as the kernels do.
inline void set_element(void* data, rlcc_dtype dtype, int64_t index, double value) {
  const float narrowed = static_cast<float>(value);
  if (dtype == RLCC_F32) {
    static_cast<float*>(data)[index] = narrowed;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &narrowed, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  static_cast<uint16_t*>(data)[index] =
      static_cast<uint16_t>(std::isnan(narrowed) ? (bits >> 16) | 0x40u : rounded);
}

}  // namespace restorelcc::reference
