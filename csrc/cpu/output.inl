// The end of a row of the product: y[m, n] = c[n] + comp_rows[comp_index[m], n] + bias[n] + residual[m, n].
//
// All in fp32, rounded once. Plain loops: the compiler vectorises them for the instruction set at hand,
// and they touch M N elements where the product touched M N K.

namespace restorelcc::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t bits_from_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// To nearest, ties to even; a NaN stays a NaN (made quiet) instead of rounding up into infinity.
inline void narrow(float value, Bf16* to) {
  const uint32_t bits = bits_from_float(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}
inline void narrow(float value, F16* to) {
  const uint32_t bits = bits_from_float(value), magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  // Normal: the exponent's bias moves from 127 to 15, 13 bits are rounded off. Subnormal (below 2^-14): adding
  // 2^-1 leaves the rounded multiple of 2^-24 in the low bits.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
  to->bits = static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? special : finite));
}
inline void narrow(float value, float* to) { *to = value; }

template <class Element>
inline void finish_row_of(const Output& out, int64_t m, int64_t first, int64_t count, float* __restrict c) {
  if (out.residual != nullptr) {
    const Element* residual = static_cast<const Element*>(out.residual) + m * out.residual_stride + first;
    for (int64_t i = 0; i < count; ++i) c[i] += Vector::widen(residual[i]);
  }
  Element* y = static_cast<Element*>(out.y) + m * out.y_stride + first;
  for (int64_t i = 0; i < count; ++i) narrow(c[i], y + i);
}

// c[count] is row m of the product, columns [first, first + count). Overwrites c. One function for all kernels
// of an instruction set: it is called once in some dozens of outputs, and copies of it would be a tenth of the
// library.
__attribute__((noinline)) void finish_row(const Output& out, int64_t m, int64_t first, int64_t count,
                                          float* __restrict c) {
  if (out.comp_rows != nullptr) {
    const int64_t group = out.comp_index != nullptr ? out.comp_index[m] : 0;
    const float* comp = out.comp_rows + group * out.columns + first;
    for (int64_t i = 0; i < count; ++i) c[i] += comp[i];
  }
  if (out.bias != nullptr) {
    for (int64_t i = 0; i < count; ++i) c[i] += out.bias[first + i];
  }
  switch (out.dtype) {
    case RLCC_F32: return finish_row_of<float>(out, m, first, count, c);
    case RLCC_BF16: return finish_row_of<Bf16>(out, m, first, count, c);
    default: return finish_row_of<F16>(out, m, first, count, c);
  }
}

}  // namespace
}  // namespace restorelcc::cpu
