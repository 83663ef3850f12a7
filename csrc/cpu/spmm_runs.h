// How the products that skip zeros are cut for threads.
#pragma once

#include "cpu/kernel_types.h"

namespace restorelcc::cpu {

// y = x Wᵀ for many rows. tile_rows and tiles of whole.x are set inside. False, with nothing done, where x
// holds NaN or infinity.
bool run_spmm(const sparse_linear_spmm_kernel& kernel, const SpmmJob& whole, const rlcc_parallel* parallel);

// The gradient of the surviving values. tile_rows, tiles and accumulate are set inside.
void run_sddmm(const sparse_linear_grad_values_sddmm_kernel& kernel, const SddmmJob& whole,
               const rlcc_parallel* parallel);

}  // namespace restorelcc::cpu
