#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/element.h"
#include "sparse/layout.h"

namespace restorelcc {
namespace {

// "!= 0" on the storage bits: everything but the sign. NaN and Inf survive, -0.0 does not.
bool survives(uint32_t f32_bits) { return (f32_bits << 1) != 0; }
bool survives(uint16_t half_bits) { return static_cast<uint16_t>(half_bits << 1) != 0; }  // bf16 and f16

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

template <class Bits>
int64_t count_survivors(const Bits* row, int64_t columns) {
  int64_t survivors = 0;
  for (int64_t k = 0; k < columns; ++k) survivors += survives(row[k]) ? 1 : 0;
  return survivors;
}

template <class Bits>
int64_t count_values(const Bits* weight, int64_t rows, int64_t columns, int64_t stride,
                     rlcc_dtype values_dtype) {
  int64_t values = 0;
  for (int64_t n = 0; n < rows; ++n) {
    values += round_up(count_survivors(weight + n * stride, columns), alignment_elements(values_dtype));
  }
  return values + padding_elements(values_dtype);
}

// keep(k, cursor) stores the value of column k of row n at place `cursor`.
template <class Bits, class Keep>
int64_t pack_row(const Bits* row, int64_t columns, uint64_t* mask_row, int64_t cursor, const Keep& keep) {
  for (int64_t j = 0; j < words_of(columns); ++j) {
    const int64_t end = std::min(columns - j * kWordBits, kWordBits);
    uint64_t word = 0;
    for (int64_t i = 0; i < end; ++i) {
      if (!survives(row[j * kWordBits + i])) continue;
      word |= uint64_t{1} << i;
      keep(j * kWordBits + i, cursor++);
    }
    mask_row[j] = word;
  }
  return cursor;
}

// max |W| / 127 over a group of one row, rounded up to bf16, so that no quotient is above 127.
template <class Bits>
uint16_t group_scale(const Bits* row, rlcc_dtype dtype, int64_t begin, int64_t end) {
  double largest = 0;
  for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::fabs(element(row, dtype, k)));
  uint16_t scale = static_cast<uint16_t>(bits_of_float(static_cast<float>(largest / 127)) >> 16);
  while (127 * static_cast<double>(float_of_bf16(scale)) < largest) ++scale;
  return scale;
}

template <class Bits>
void pack_rows(const Bits* weight, int64_t rows, int64_t columns, int64_t stride, rlcc_dtype dtype,
               rlcc_dtype values_dtype, uint64_t* mask, void* values, int64_t* row_offsets, uint16_t* scales) {
  const int64_t groups = scale_groups_of(columns);
  int64_t cursor = 0;
  for (int64_t n = 0; n < rows; ++n) {
    const Bits* row = weight + n * stride;
    uint64_t* mask_row = mask + n * words_of(columns);
    row_offsets[n] = cursor;
    if (values_dtype == RLCC_I8) {
      uint16_t* row_scales = scales + n * groups;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * RLCC_SCALE_COLUMNS;
        row_scales[g] = group_scale(row, dtype, begin, std::min<int64_t>(begin + RLCC_SCALE_COLUMNS, columns));
      }
      int8_t* quantised = static_cast<int8_t*>(values);
      cursor = pack_row(row, columns, mask_row, cursor, [&](int64_t k, int64_t place) {
        const double quotient = element(row, dtype, k) / float_of_bf16(row_scales[k / RLCC_SCALE_COLUMNS]);
        quantised[place] = static_cast<int8_t>(std::clamp(std::nearbyint(quotient), -127.0, 127.0));
      });
    } else {
      Bits* kept = static_cast<Bits*>(values);
      cursor =
          pack_row(row, columns, mask_row, cursor, [&](int64_t k, int64_t place) { kept[place] = row[k]; });
    }
    cursor = round_up(cursor, alignment_elements(values_dtype));
  }
  row_offsets[rows] = cursor;
}

Status validate_finite(const void* weight, int64_t rows, int64_t columns, int64_t stride, rlcc_dtype dtype) {
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < columns; ++k) {
      const double value = element(weight, dtype, n * stride + k);
      if (std::isfinite(value)) continue;
      return invalid("weight[", n, ", ", k, "] is ", value,
                     ", which int8 values cannot hold; keep the weight's own dtype");
    }
  }
  return {};
}

Status validate_pack(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
                     rlcc_dtype values_dtype) {
  RLCC_RETURN_IF_FAILED(validate_dtype("dtype", dtype));
  if (values_dtype != dtype && values_dtype != RLCC_I8) {
    return invalid("values_dtype is ", values_dtype, ", must be the weight's dtype (", dtype,
                   ") or RLCC_I8 (3)");
  }
  return validate_matrix("weight", weight, rows, columns, weight_stride, dtype);
}

template <class Bits>
void unpack_rows(const rlcc_packed_weight& packed, Bits* weight, int64_t stride) {
  const int64_t words = words_of(packed.columns);
  for (int64_t n = 0; n < packed.rows; ++n) {
    const Bits* value = static_cast<const Bits*>(packed.values) + packed.row_offsets[n];
    const uint64_t* mask_row = packed.mask + n * words;
    for (int64_t k = 0; k < packed.columns; ++k) {
      const bool survived = ((mask_row[k / kWordBits] >> (k % kWordBits)) & 1) != 0;
      weight[n * stride + k] = survived ? *value++ : Bits{0};
    }
  }
}

void unpack_scaled_rows(const rlcc_packed_weight& packed, float* weight, int64_t stride) {
  const int64_t words = words_of(packed.columns), groups = scale_groups_of(packed.columns);
  for (int64_t n = 0; n < packed.rows; ++n) {
    const int8_t* value = static_cast<const int8_t*>(packed.values) + packed.row_offsets[n];
    for (int64_t k = 0; k < packed.columns; ++k) {
      const bool survived = ((packed.mask[n * words + k / kWordBits] >> (k % kWordBits)) & 1) != 0;
      const float scale = float_of_bf16(packed.scales[n * groups + k / RLCC_SCALE_COLUMNS]);
      weight[n * stride + k] = survived ? static_cast<float>(*value++) * scale : 0.0f;
    }
  }
}

}  // namespace

Status pack_count(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
                  rlcc_dtype values_dtype, int64_t* value_count) {
  if (value_count == nullptr) return invalid("value_count is null");
  RLCC_RETURN_IF_FAILED(validate_pack(weight, rows, columns, weight_stride, dtype, values_dtype));
  *value_count =
      dtype == RLCC_F32
          ? count_values(static_cast<const uint32_t*>(weight), rows, columns, weight_stride, values_dtype)
          : count_values(static_cast<const uint16_t*>(weight), rows, columns, weight_stride, values_dtype);
  return {};
}

Status pack(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
            rlcc_dtype values_dtype, uint64_t* mask, void* values, int64_t value_count, int64_t* row_offsets,
            uint16_t* scales) {
  int64_t needed = 0;
  RLCC_RETURN_IF_FAILED(pack_count(weight, rows, columns, weight_stride, dtype, values_dtype, &needed));
  if (value_count < needed) {
    return invalid("values has room for ", value_count, " elements, needs ", needed, " (ask rlcc_pack_count)");
  }
  RLCC_RETURN_IF_FAILED(validate_array("mask", mask, rows * words_of(columns), 8));
  RLCC_RETURN_IF_FAILED(validate_array("row_offsets", row_offsets, rows + 1, 8));
  RLCC_RETURN_IF_FAILED(validate_array("values", values, value_count, bytes_of(values_dtype)));
  if (values_dtype == RLCC_I8) {
    RLCC_RETURN_IF_FAILED(validate_array("scales", scales, rows * scale_groups_of(columns), 2));
    RLCC_RETURN_IF_FAILED(validate_finite(weight, rows, columns, weight_stride, dtype));
  } else if (scales != nullptr) {
    return invalid("scales is set, but values_dtype is ", values_dtype, "; only RLCC_I8 values have scales");
  }
  if (reinterpret_cast<uintptr_t>(values) % RLCC_VALUE_ALIGNMENT_BYTES != 0) {
    return invalid("values is not aligned to ", RLCC_VALUE_ALIGNMENT_BYTES, " bytes");
  }
  std::memset(values, 0, static_cast<size_t>(value_count * bytes_of(values_dtype)));
  if (dtype == RLCC_F32) {
    pack_rows(static_cast<const uint32_t*>(weight), rows, columns, weight_stride, dtype, values_dtype, mask,
              values, row_offsets, scales);
  } else {
    pack_rows(static_cast<const uint16_t*>(weight), rows, columns, weight_stride, dtype, values_dtype, mask,
              values, row_offsets, scales);
  }
  return {};
}

Status unpack(const rlcc_packed_weight& packed, void* weight, int64_t weight_stride) {
  RLCC_RETURN_IF_FAILED(packed.trusted != 0 ? validate_shape(packed) : validate(packed));
  const rlcc_dtype dtype = packed.dtype == RLCC_I8 ? RLCC_F32 : packed.dtype;
  RLCC_RETURN_IF_FAILED(validate_matrix("weight", weight, packed.rows, packed.columns, weight_stride, dtype));
  if (packed.dtype == RLCC_I8) {
    unpack_scaled_rows(packed, static_cast<float*>(weight), weight_stride);
  } else if (packed.dtype == RLCC_F32) {
    unpack_rows(packed, static_cast<uint32_t*>(weight), weight_stride);
  } else {
    unpack_rows(packed, static_cast<uint16_t*>(weight), weight_stride);
  }
  return {};
}

}  // namespace restorelcc
