// The end of a sum: comp, bias and residual in fp32, one rounding, y; or the sum itself to the partial sums.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/tile_plan.h"

namespace restorelcc::cuda {

// Tiles of the output, and the splits.
inline dim3 grid_of(const Output& output, const TilePlan& plan) {
  return dim3(static_cast<unsigned>(divide_up(output.rows, tile_rows(plan.tile))),
              static_cast<unsigned>(divide_up(output.columns, tile_columns(plan.tile))),
              static_cast<unsigned>(plan.splits));
}

// What row m adds to each sum; a comp_index from outside of [0, groups) makes the row NaN.
struct OutputRow {
  const float* comp;  // [columns], or null
  float rest;         // 0 or NaN
};

__device__ __forceinline__ OutputRow output_row(const Output& o, int m) {
  if (o.comp_rows == nullptr) return {nullptr, 0.0f};
  const int64_t group = o.comp_index != nullptr ? o.comp_index[m] : 0;
  if (group < 0 || group >= o.groups) return {nullptr, __uint_as_float(0x7fc00000u)};
  return {o.comp_rows + group * o.columns, 0.0f};
}

__device__ __forceinline__ float finished(const Output& o, const OutputRow& row, int n, float sum) {
  if (row.comp != nullptr) sum += row.comp[n];
  if (o.bias != nullptr) sum += o.bias[n];
  return sum + row.rest;
}

// One sum; m and n lie inside.
__device__ __forceinline__ void store_sum(const Output& o, int split, int m, int n, float sum) {
  if (o.partials != nullptr) {
    o.partials[(static_cast<int64_t>(split) * o.rows + m) * o.columns + n] = sum;
    return;
  }
  float value = finished(o, output_row(o, m), n, sum);
  if (o.residual != nullptr) value += load_element(o.residual, o.dtype, m * o.residual_stride + n);
  store_element(o.y, o.dtype, m * o.stride + n, value);
}

// Eight neighbouring sums, at (m, n) and right of it; those outside of the matrix are dropped. Where y is the
// residual each element is read and written by one thread, in this order.
template <class Half>
__device__ __forceinline__ void store_sums(const Output& o, int split, int m, int n, float (&sums)[8]) {
  if (m >= o.rows || n >= o.columns) return;
  const int valid = min(o.columns - n, 8);
  if (o.partials != nullptr) {
    float* const to = o.partials + (static_cast<int64_t>(split) * o.rows + m) * o.columns + n;
    if (valid == 8 && o.columns % 4 == 0) {
      reinterpret_cast<float4*>(to)[0] = make_float4(sums[0], sums[1], sums[2], sums[3]);
      reinterpret_cast<float4*>(to)[1] = make_float4(sums[4], sums[5], sums[6], sums[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i < valid) to[i] = sums[i];
      }
    }
    return;
  }
  const OutputRow row = output_row(o, m);
  const bool wide = o.wide && valid == 8;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i < valid) sums[i] = finished(o, row, n + i, sums[i]);
  }
  if (wide) {
    if (o.residual != nullptr) {  // by a plain load: y may be the residual
      const uint4 r =
          *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(o.residual) + m * o.residual_stride + n);
      const uint32_t pairs[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[2 * i] += Half::low(pairs[i]);
        sums[2 * i + 1] += Half::high(pairs[i]);
      }
    }
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(o.y) + m * o.stride + n) =
        make_uint4(Half::pair(sums[0], sums[1]), Half::pair(sums[2], sums[3]), Half::pair(sums[4], sums[5]),
                   Half::pair(sums[6], sums[7]));
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i >= valid) continue;
    if (o.residual != nullptr) sums[i] += load_element(o.residual, Half::kDtype, m * o.residual_stride + n + i);
    store_element(o.y, Half::kDtype, m * o.stride + n + i, sums[i]);
  }
}

}  // namespace restorelcc::cuda
