// What must hold before a kernel may trust a parameter struct.
#pragma once

#include "core/status.h"

namespace restorelcc {

Status validate(const rlcc_sparse_linear_params& params);
Status validate(const rlcc_dense_linear_params& params);
Status validate(const rlcc_sparse_linear_grad_x_params& params);
Status validate(const rlcc_sparse_linear_grad_values_params& params);
Status validate(const rlcc_sparse_linear_grad_comp_params& params);
Status validate(const rlcc_head_moments_params& params);
Status validate(const rlcc_linear_cross_entropy_params& params);
Status validate(const rlcc_linear_cross_entropy_backward_params& params);
Status validate(const rlcc_head_contrast_params& params);

// The same without a look into arrays (labels, segments, weights), which may be in another memory.
Status validate_visible(const rlcc_linear_cross_entropy_params& params);
Status validate_visible(const rlcc_linear_cross_entropy_backward_params& params);
Status validate_visible(const rlcc_head_contrast_params& params);

Status validate_parallel(const rlcc_parallel* parallel);

}  // namespace restorelcc
