#include <cstdint>

#include "sparse/layout.h"

namespace restorelcc {
namespace {

bool multiply(int64_t a, int64_t b, int64_t* product) { return !__builtin_mul_overflow(a, b, product); }
bool add(int64_t a, int64_t b, int64_t* sum) { return !__builtin_add_overflow(a, b, sum); }

}  // namespace

Status validate_dtype(const char* name, rlcc_dtype dtype) {
  if (dtype == RLCC_F32 || dtype == RLCC_BF16 || dtype == RLCC_F16) return {};
  return invalid(name, " is ", static_cast<int>(dtype),
                 ", must be RLCC_F32 (0), RLCC_BF16 (1) or RLCC_F16 (2)");
}

Status validate_array(const char* name, const void* data, int64_t count, int64_t element_bytes) {
  int64_t bytes = 0;
  if (count < 0) return invalid(name, " has a negative size, ", count);
  if (!multiply(count, element_bytes, &bytes)) return invalid(name, " has too many elements, ", count);
  if (count == 0) return {};
  if (data == nullptr) return invalid(name, " is null, but has ", count, " elements");
  if (reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(element_bytes) != 0) {
    return invalid(name, " is not aligned to its ", element_bytes, "-byte elements");
  }
  return {};
}

Status validate_matrix(const char* name, const void* data, int64_t rows, int64_t columns, int64_t stride,
                       rlcc_dtype dtype) {
  if (rows < 0 || columns < 0) return invalid(name, " has a negative size, [", rows, ", ", columns, "]");
  if (rows == 0 || columns == 0) return {};
  int64_t last_row = 0, elements = columns;
  if (rows > 1) {
    if (stride < columns)
      return invalid(name, " has row stride ", stride, ", less than its ", columns, " columns");
    if (!multiply(rows - 1, stride, &last_row) || !add(last_row, columns, &elements)) {
      return invalid(name, " of [", rows, ", ", columns, "] with row stride ", stride, " overflows 64 bits");
    }
  }
  return validate_array(name, data, elements, bytes_of(dtype));
}

Status validate_shape(const rlcc_packed_weight& packed) {
  if (packed.dtype != RLCC_I8) RLCC_RETURN_IF_FAILED(validate_dtype("weight.dtype", packed.dtype));
  const int64_t rows = packed.rows, columns = packed.columns;
  if (rows < 0 || columns < 0) return invalid("weight has a negative size, [", rows, ", ", columns, "]");
  int64_t elements = 0, mask_words = 0;
  // rows * columns too: unpacking and the gradients address a dense matrix of that size.
  if (!multiply(rows, columns, &elements) || !multiply(elements, 8, &elements) || rows == INT64_MAX ||
      !multiply(rows, words_of(columns), &mask_words)) {
    return invalid("weight of [", rows, ", ", columns, "] overflows 64 bits");
  }
  RLCC_RETURN_IF_FAILED(validate_array("weight.mask", packed.mask, mask_words, 8));
  RLCC_RETURN_IF_FAILED(validate_array("weight.row_offsets", packed.row_offsets, rows + 1, 8));
  RLCC_RETURN_IF_FAILED(
      validate_array("weight.values", packed.values, packed.value_count, bytes_of(packed.dtype)));
  if (packed.dtype == RLCC_I8) {  // rows * groups cannot overflow where rows * columns does not
    RLCC_RETURN_IF_FAILED(validate_array("weight.scales", packed.scales, rows * scale_groups_of(columns), 2));
  } else if (packed.scales != nullptr) {
    return invalid("weight.scales is set, but weight.dtype is ", packed.dtype,
                   "; only RLCC_I8 values have scales");
  }
  if (packed.value_count < padding_elements(packed.dtype)) {
    return invalid("weight.values has ", packed.value_count, " elements, fewer than the ",
                   padding_elements(packed.dtype), " of its padding");
  }
  return {};
}

Status validate(const rlcc_packed_weight& packed) {
  RLCC_RETURN_IF_FAILED(validate_shape(packed));
  const int64_t words = words_of(packed.columns), alignment = alignment_elements(packed.dtype);
  const int64_t capacity = packed.value_count - padding_elements(packed.dtype);
  const int64_t tail_bits = packed.columns % kWordBits;
  const uint64_t beyond_last_column = tail_bits == 0 ? 0 : ~uint64_t{0} << tail_bits;

  int64_t row_end = 0;  // where the values of the row before end
  for (int64_t n = 0; n <= packed.rows; ++n) {
    const int64_t offset = packed.row_offsets[n];
    if (offset < row_end) {
      return invalid("weight.row_offsets[", n, "] is ", offset, ", must be at least ", row_end,
                     n == 0 ? "" : ", where the row before ends");
    }
    if (offset > capacity) {
      return invalid("weight.row_offsets[", n, "] is ", offset, ", past the ", capacity,
                     " values (truncated, or its padding is missing)");
    }
    if (offset % alignment != 0) {
      return invalid("weight.row_offsets[", n, "] is ", offset, ", not a multiple of ", alignment,
                     " elements (", RLCC_VALUE_ALIGNMENT_BYTES, " bytes)");
    }
    if (n == packed.rows) break;
    const uint64_t* mask_row = packed.mask + n * words;
    int64_t survivors = 0;
    for (int64_t j = 0; j < words; ++j) survivors += popcount64(mask_row[j]);
    if (words > 0 && (mask_row[words - 1] & beyond_last_column) != 0) {
      return invalid("weight.mask row ", n, " has a bit set beyond column ", packed.columns - 1);
    }
    row_end = offset + survivors;  // cannot overflow: survivors <= columns, and 8 rows columns fits
  }
  return {};
}

}  // namespace restorelcc
