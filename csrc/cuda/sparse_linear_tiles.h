// Launchers of sparse_linear for many rows and of its gradients. Arguments are validated, pointers are to
// device memory, the plan is made for them.
#pragma once

#include "cuda/launch.h"
#include "cuda/tile_arguments.h"
#include "cuda/tile_plan.h"

namespace restorelcc::cuda {

// W on tensor cores: the weight's dtype, and the dtype of the dense operands.
LaunchError launch_sparse_linear_tiles(const TileArguments& arguments, const TilePlan& plan, void* stream);
LaunchError launch_sparse_linear_grad_x(const TileArguments& arguments, const TilePlan& plan, void* stream);
// left is grad_y [M, N], right is x [M, K].
LaunchError launch_sparse_linear_grad_values(const GradValuesArguments& arguments, void* stream);
LaunchError launch_sparse_linear_2to4(const SparseTileArguments& arguments, const TilePlan& plan, void* stream);

// Any dtypes.
LaunchError launch_sparse_linear_plain(const TileArguments& arguments, const TilePlan& plan, void* stream);
LaunchError launch_sparse_linear_plain_grad_x(const TileArguments& arguments, const TilePlan& plan,
                                              void* stream);
LaunchError launch_sparse_linear_plain_grad_values(const GradValuesArguments& arguments, void* stream);

// Weight.index, before a kernel that reads it.
LaunchError launch_sparse_linear_index(const Weight& weight, uint32_t* index, void* stream);
// y from output.partials, in the order of the splits.
LaunchError launch_sparse_linear_sum(const Output& output, int splits, void* stream);

}  // namespace restorelcc::cuda
