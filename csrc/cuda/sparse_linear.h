// Launchers of sparse_linear. The params are validated, device pointers; the plan is made for them.
#pragma once

#include "cuda/launch.h"
#include "cuda/plan.h"

namespace restorelcc::cuda {

// At most kDecodeMostRowsOfX rows of x. workspace: decode_workspace_bytes(plan, ...), may be null when that is
// 0.
LaunchError launch_sparse_linear_decode(const rlcc_sparse_linear_params& params, const DecodePlan& plan,
                                        float* workspace, void* stream);

}  // namespace restorelcc::cuda
