#include <cstring>

#include "sparse/layout.h"

namespace restorelcc {
namespace {

// "!= 0" on the storage bits: everything but the sign. NaN and Inf survive, -0.0 does not.
bool survives(uint32_t f32_bits) { return (f32_bits << 1) != 0; }
bool survives(uint16_t bf16_bits) { return static_cast<uint16_t>(bf16_bits << 1) != 0; }

int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

template <class Bits>
int64_t count_survivors(const Bits* row, int64_t columns) {
  int64_t survivors = 0;
  for (int64_t k = 0; k < columns; ++k) survivors += survives(row[k]) ? 1 : 0;
  return survivors;
}

template <class Bits>
int64_t count_values(const Bits* weight, int64_t rows, int64_t columns, int64_t stride, rlcc_dtype dtype) {
  int64_t values = 0;
  for (int64_t n = 0; n < rows; ++n) {
    values += round_up(count_survivors(weight + n * stride, columns), alignment_elements(dtype));
  }
  return values + padding_elements(dtype);
}

template <class Bits>
void pack_rows(const Bits* weight, int64_t rows, int64_t columns, int64_t stride, rlcc_dtype dtype,
               uint64_t* mask, Bits* values, int64_t value_count, int64_t* row_offsets) {
  std::memset(values, 0, static_cast<size_t>(value_count) * sizeof(Bits));
  int64_t cursor = 0;
  for (int64_t n = 0; n < rows; ++n) {
    const Bits* row = weight + n * stride;
    row_offsets[n] = cursor;
    for (int64_t j = 0; j < words_of(columns); ++j) {
      const int64_t end = columns - j * kWordBits < kWordBits ? columns - j * kWordBits : kWordBits;
      uint64_t word = 0;
      for (int64_t i = 0; i < end; ++i) {
        const Bits bits = row[j * kWordBits + i];
        if (!survives(bits)) continue;
        word |= uint64_t{1} << i;
        values[cursor++] = bits;
      }
      mask[n * words_of(columns) + j] = word;
    }
    cursor = round_up(cursor, alignment_elements(dtype));
  }
  row_offsets[rows] = cursor;
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

}  // namespace

Status pack_count(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
                  int64_t* value_count) {
  if (value_count == nullptr) return invalid("value_count is null");
  RLCC_RETURN_IF_FAILED(validate_dtype("dtype", dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("weight", weight, rows, columns, weight_stride, dtype));
  *value_count = dtype == RLCC_F32
                     ? count_values(static_cast<const uint32_t*>(weight), rows, columns, weight_stride, dtype)
                     : count_values(static_cast<const uint16_t*>(weight), rows, columns, weight_stride, dtype);
  return {};
}

Status pack(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
            uint64_t* mask, void* values, int64_t value_count, int64_t* row_offsets) {
  int64_t needed = 0;
  RLCC_RETURN_IF_FAILED(pack_count(weight, rows, columns, weight_stride, dtype, &needed));
  if (value_count < needed) {
    return invalid("values has room for ", value_count, " elements, needs ", needed, " (ask rlcc_pack_count)");
  }
  RLCC_RETURN_IF_FAILED(validate_array("mask", mask, rows * words_of(columns), 8));
  RLCC_RETURN_IF_FAILED(validate_array("row_offsets", row_offsets, rows + 1, 8));
  RLCC_RETURN_IF_FAILED(validate_array("values", values, value_count, bytes_of(dtype)));
  if (reinterpret_cast<uintptr_t>(values) % RLCC_VALUE_ALIGNMENT_BYTES != 0) {
    return invalid("values is not aligned to ", RLCC_VALUE_ALIGNMENT_BYTES, " bytes");
  }
  if (dtype == RLCC_F32) {
    pack_rows(static_cast<const uint32_t*>(weight), rows, columns, weight_stride, dtype, mask,
              static_cast<uint32_t*>(values), value_count, row_offsets);
  } else {
    pack_rows(static_cast<const uint16_t*>(weight), rows, columns, weight_stride, dtype, mask,
              static_cast<uint16_t*>(values), value_count, row_offsets);
  }
  return {};
}

Status unpack(const rlcc_packed_weight& packed, void* weight, int64_t weight_stride) {
  RLCC_RETURN_IF_FAILED(packed.trusted != 0 ? validate_shape(packed) : validate(packed));
  RLCC_RETURN_IF_FAILED(
      validate_matrix("weight", weight, packed.rows, packed.columns, weight_stride, packed.dtype));
  if (packed.dtype == RLCC_F32) {
    unpack_rows(packed, static_cast<uint32_t*>(weight), weight_stride);
  } else {
    unpack_rows(packed, static_cast<uint16_t*>(weight), weight_stride);
  }
  return {};
}

}  // namespace restorelcc
