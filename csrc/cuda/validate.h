// What must hold before a launcher may trust a parameter struct whose arrays are in device memory: everything
// that the CPU's validation asks for and a host can see.
#pragma once

#include <cstddef>

#include "core/status.h"

namespace restorelcc::cuda {

Status validate(const rlcc_sparse_linear_params& params);
Status validate(const rlcc_head_moments_params& params);
Status validate(const rlcc_sparse_linear_grad_x_params& params);
Status validate(const rlcc_sparse_linear_grad_values_params& params);
Status validate(const rlcc_sparse_linear_grad_comp_params& params);
// Labels and segments are indices in device memory: the kernels look after them.
Status validate(const rlcc_linear_cross_entropy_params& params);
Status validate(const rlcc_linear_cross_entropy_backward_params& params);
Status validate(const rlcc_head_contrast_params& params);

// out[rows, columns] of the tile kernels, summed over depth.
Status validate_tile_sizes(int64_t rows, int64_t columns, int64_t depth);

// Of a size that the CPU's op takes and the CUDA kernels do not.
template <class... Parts>
Status too_large(const Parts&... parts) {
  return failure(RLCC_UNSUPPORTED, parts...);
}

constexpr size_t kWorkspaceAlignment = 16;
Status validate_workspace(const void* workspace, size_t bytes, size_t needed);

}  // namespace restorelcc::cuda
