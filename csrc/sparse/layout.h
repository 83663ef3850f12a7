// The `bitmask` format, drawn for W [N=2, K=70] in fp32:
//
//            columns 0..63 (word 0)         columns 64..69 (word 1)
//   row 0    1 0 1 1 0 ... 0                0 1 0 0 0 0 | 58 zero bits      popcount 4
//   row 1    0 0 0 0 0 ... 0                1 0 0 0 0 0 | 58 zero bits      popcount 1
//
//   mask         [N, words = 2]  bit i of word j of row n  <=>  W[n, 64 j + i] != 0
//
//   values       | w w w w | w 0 0 0 | 0 ... 0 (64 bytes) |
//                ^         ^         ^
//   row_offsets  0         4         8                       elements, each a multiple of 16 bytes
//
// The mask is dense and never compressed, so one row's words lie at a fixed place; the values are
// not, so random access along K counts bits from the row's start. The padding lets a kernel load a
// whole vector at any value: at most 64 bytes past the last one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/status.h"

namespace restorelcc {

constexpr int64_t kWordBits = 64;

constexpr int64_t words_of(int64_t columns) { return columns / kWordBits + (columns % kWordBits != 0 ? 1 : 0); }

constexpr int64_t scale_groups_of(int64_t columns) {
  return columns / RLCC_SCALE_COLUMNS + (columns % RLCC_SCALE_COLUMNS != 0 ? 1 : 0);
}

constexpr int64_t bytes_of(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 4 : dtype == RLCC_I8 ? 1 : 2; }

constexpr int64_t alignment_elements(rlcc_dtype dtype) { return RLCC_VALUE_ALIGNMENT_BYTES / bytes_of(dtype); }
constexpr int64_t padding_elements(rlcc_dtype dtype) { return RLCC_VALUE_PADDING_BYTES / bytes_of(dtype); }

inline int64_t popcount64(uint64_t word) { return __builtin_popcountll(word); }

Status pack_count(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
                  rlcc_dtype values_dtype, int64_t* value_count);
Status pack(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride, rlcc_dtype dtype,
            rlcc_dtype values_dtype, uint64_t* mask, void* values, int64_t value_count, int64_t* row_offsets,
            uint16_t* scales);
Status unpack(const rlcc_packed_weight& packed, void* weight, int64_t weight_stride);

// Whether every index stays inside its arrays, whatever the bytes. O(N words).
Status validate(const rlcc_packed_weight& packed);
// The same without the walk over the mask: sizes and pointers only.
Status validate_shape(const rlcc_packed_weight& packed);

// A strided [rows, columns] matrix of `dtype` called `name`: sizes that do not overflow, a stride that
// does not overlap rows, a pointer that is set and aligned to its elements unless nothing is there.
Status validate_matrix(const char* name, const void* data, int64_t rows, int64_t columns, int64_t stride,
                       rlcc_dtype dtype);
// A contiguous array of `count` elements of `element_bytes`.
Status validate_array(const char* name, const void* data, int64_t count, int64_t element_bytes);
// A floating point type: what x, y and a dense weight may be.
Status validate_dtype(const char* name, rlcc_dtype dtype);

}  // namespace restorelcc
