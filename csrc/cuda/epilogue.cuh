// The end of a sparse_linear sum, for every kernel that forms one; and single elements of x, y and residual.
#pragma once

#include "cuda/device.cuh"
#include "restorelcc/params.h"

namespace restorelcc::cuda {

__device__ __forceinline__ float load_element(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_F32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == RLCC_BF16 ? float_of_bf16(bits) : float_of_f16(bits);
}

__device__ __forceinline__ void store_element(void* data, rlcc_dtype dtype, int64_t index, float value) {
  if (dtype == RLCC_F32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] = dtype == RLCC_BF16 ? bf16_of_float(value) : f16_of_float(value);
  }
}

// sum + comp + bias + residual, rounded once. A comp_index from outside of [0, G) gives NaN.
__device__ __forceinline__ void finish(const rlcc_sparse_linear_params& p, int m, int64_t n, float sum) {
  if (p.comp_rows != nullptr) {
    const int64_t group = p.comp_index != nullptr ? p.comp_index[m] : 0;
    const bool known = group >= 0 && group < p.groups;
    sum += known ? p.comp_rows[group * p.weight.rows + n] : __uint_as_float(0x7fc00000u);
  }
  if (p.bias != nullptr) sum += p.bias[n];
  if (p.residual != nullptr) sum += load_element(p.residual, p.x_dtype, m * p.residual_stride + n);
  store_element(p.y, p.x_dtype, m * p.y_stride + n, sum);
}

}  // namespace restorelcc::cuda
