// The ops on validated parameters: choose a loop, split it over threads, run the kernels.
#pragma once

#include "core/isa.h"
#include "restorelcc/params.h"

namespace restorelcc::cpu {

void sparse_linear(const rlcc_sparse_linear_params& params, Isa isa);
void dense_linear(const rlcc_dense_linear_params& params, Isa isa);
void sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params& params, Isa isa);
void sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params& params, Isa isa);
void sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& params, Isa isa);
void head_moments(const rlcc_head_moments_params& params, Isa isa);
void linear_cross_entropy(const rlcc_linear_cross_entropy_params& params, Isa isa);
void linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params& params, Isa isa);
void head_contrast(const rlcc_head_contrast_params& params, Isa isa);

}  // namespace restorelcc::cpu
