// A gradient's way to the places of the surviving values.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/tile_arguments.h"

namespace restorelcc::cuda {

// Sums at row n, columns [k, k + kCount), a multiple of kCount: those that survive are rounded and stored, the
// others dropped.
template <int kCount>
__device__ __forceinline__ void store_survivors(const Weight& w, void* values, int n, int k,
                                                const float (&sums)[kCount]) {
  static_assert(32 % kCount == 0, "in one word of the mask");
  if (n >= w.rows || k >= w.columns) return;
  const uint32_t* const mask = w.mask + n * w.words;
  uint32_t before = w.index[static_cast<int64_t>(k / kIndexColumns) * w.rows + n];
  for (int word = k / kIndexColumns * (kIndexColumns / 32); word < k / 32; ++word) {
    before += static_cast<uint32_t>(__popc(mask[word]));
  }
  const uint32_t bits = mask[k / 32];
  int64_t at = w.row_offsets[n] + before + static_cast<uint32_t>(__popc(bits & ((1u << k % 32) - 1)));
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if ((bits >> (k % 32 + i) & 1) != 0) store_element(values, w.dtype, at++, sums[i]);
  }
}

}  // namespace restorelcc::cuda
