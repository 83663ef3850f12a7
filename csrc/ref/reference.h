// The oracles: each op as its equation, in float64, one thread. Slow on purpose.
#pragma once

#include "restorelcc/params.h"

namespace restorelcc::reference {

void sparse_linear(const rlcc_sparse_linear_params& params);
void dense_linear(const rlcc_dense_linear_params& params);
void sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params& params);
void sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params& params);
void sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& params);
void head_moments(const rlcc_head_moments_params& params);
void linear_cross_entropy(const rlcc_linear_cross_entropy_params& params);
void linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params& params);
void head_contrast(const rlcc_head_contrast_params& params);

}  // namespace restorelcc::reference
