// The end of a row of the product: y[m, n] = c[n] + comp_rows[comp_index[m], n] + bias[n] + residual[m, n].
//
// All in fp32, rounded once. Plain loops: the compiler vectorises them for the instruction set at hand,
// and they touch M N elements where the product touched M N K.

namespace restorelcc::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline float widen_bf16(uint16_t bf16) {
  const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// To nearest, ties to even; a NaN stays a NaN (made quiet) instead of rounding up into infinity.
inline uint16_t narrow_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// c[count] is row m of the product, columns [first, first + count). Overwrites c.
inline void finish_row(const Output& out, int64_t m, int64_t first, int64_t count, float* __restrict c) {
  if (out.comp_rows != nullptr) {
    const int64_t group = out.comp_index != nullptr ? out.comp_index[m] : 0;
    const float* comp = out.comp_rows + group * out.columns + first;
    for (int64_t i = 0; i < count; ++i) c[i] += comp[i];
  }
  if (out.bias != nullptr) {
    for (int64_t i = 0; i < count; ++i) c[i] += out.bias[first + i];
  }
  if (out.dtype == RLCC_F32) {
    if (out.residual != nullptr) {
      const float* residual = static_cast<const float*>(out.residual) + m * out.residual_stride + first;
      for (int64_t i = 0; i < count; ++i) c[i] += residual[i];
    }
    float* y = static_cast<float*>(out.y) + m * out.y_stride + first;
    for (int64_t i = 0; i < count; ++i) y[i] = c[i];
  } else {
    if (out.residual != nullptr) {
      const uint16_t* residual = static_cast<const uint16_t*>(out.residual) + m * out.residual_stride + first;
      for (int64_t i = 0; i < count; ++i) c[i] += widen_bf16(residual[i]);
    }
    uint16_t* y = static_cast<uint16_t*>(out.y) + m * out.y_stride + first;
    for (int64_t i = 0; i < count; ++i) y[i] = narrow_bf16(c[i]);
  }
}

}  // namespace
}  // namespace restorelcc::cpu
