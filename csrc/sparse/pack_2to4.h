// Repacking of the bitmask format for the sparse tensor cores; the layout is drawn in restorelcc/cuda.h.
#pragma once

#include "core/status.h"

namespace restorelcc {

struct Counts2to4 {
  int64_t rows;        // N rounded up to 16
  int64_t row_values;  // K rounded up to 64, halved
  int64_t metadata;    // 32-bit words
};
Counts2to4 counts_2to4(int64_t rows, int64_t columns);

Status pack_2to4_counts(const rlcc_packed_weight& weight, int64_t* value_count, int64_t* metadata_count);
Status pack_2to4(const rlcc_packed_weight& weight, void* values, int64_t value_count, uint32_t* metadata,
                 int64_t metadata_count);

}  // namespace restorelcc
