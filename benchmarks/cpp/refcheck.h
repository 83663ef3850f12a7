// Results of timed calls against rlcc_*_reference. "" where they agree, else what differs.
//
// Budget: 32 2^-24 S + one rounding of the result's dtype, S an upper bound of the sum of |products|. Of many
// rows of x only the first and the last are computed by the float64 reference, and of the gradient of the
// values a few rows of W: a reference of everything would take longer than the benchmark.
#pragma once

#include <string>

#include "restorelcc/restorelcc.h"

namespace restorelcc::bench {

std::string check_forward(const rlcc_sparse_linear_params& done);
std::string check_grad_x(const rlcc_sparse_linear_grad_x_params& done);
std::string check_grad_values(const rlcc_sparse_linear_grad_values_params& done);
// y [N] in fp32 of one row x [K] of dtype.
std::string check_dense(const rlcc_packed_weight& weight, const void* x, rlcc_dtype dtype, const float* y);

}  // namespace restorelcc::bench
