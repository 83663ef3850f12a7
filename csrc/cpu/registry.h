// Finds the kernel for an op, a dtype and an instruction set.
#pragma once

#include "core/isa.h"
#include "cpu/kernel_types.h"
#include "cpu/kernels.def"

namespace restorelcc::cpu {

#define RLCC_DECLARE(op, values, shape, isa) \
  extern const op##_##shape##_kernel op##_##values##_##shape##__##isa;
RLCC_KERNELS(RLCC_DECLARE)
#undef RLCC_DECLARE

const sparse_linear_decode_kernel& sparse_linear_decode(rlcc_dtype values, Isa isa);
const panel_kernel& sparse_linear_panel(rlcc_dtype values, Isa isa);
const sparse_linear_spmm_kernel& sparse_linear_spmm(rlcc_dtype values, Isa isa);
// fp32 values only.
const sparse_linear_grad_values_sddmm_kernel& sparse_linear_grad_values_sddmm(rlcc_dtype values, Isa isa);
const dense_linear_decode_kernel& dense_linear_decode(rlcc_dtype values, Isa isa);
const panel_kernel& dense_linear_panel(rlcc_dtype values, Isa isa);
const panel_kernel& sparse_linear_grad_x_panel(rlcc_dtype values, Isa isa);
const panel_kernel& sparse_linear_grad_values_panel(rlcc_dtype values, Isa isa);
const sparse_linear_grad_comp_block_kernel& sparse_linear_grad_comp_block(rlcc_dtype values, Isa isa);
const linear_cross_entropy_panel_kernel& linear_cross_entropy_panel(rlcc_dtype values, Isa isa);
const head_moments_block_kernel& head_moments_block(rlcc_dtype values, Isa isa);

// The rows of rlcc_kernels().
const rlcc_kernel_info* kernel_infos(int64_t* count);

}  // namespace restorelcc::cpu
