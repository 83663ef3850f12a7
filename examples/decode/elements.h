// Rows of the storage types, one element after the other: for what is read once, or a row a token.
#pragma once

#include <cstdint>

#include "restorelcc/params.h"

namespace decode {

inline int64_t element_bytes(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 4 : dtype == RLCC_I8 ? 1 : 2; }

// A row [n] of dtype RLCC_F32, RLCC_BF16 or RLCC_F16, widened to fp32.
void widen_row(const void* row, rlcc_dtype dtype, int64_t n, float* to);
// A row [n] rounded to dtype RLCC_F32 or RLCC_BF16, to nearest, ties to even.
void narrow_row(const float* row, int64_t n, rlcc_dtype dtype, void* to);

}  // namespace decode
