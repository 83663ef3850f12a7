// linear_cross_entropy, its gradient and head_contrast as a whole: plan, workspace, launches. The params are
// validated, device pointers; the plan is made for them.
#pragma once

#include "cuda/cross_entropy.h"

namespace restorelcc::cuda {

LossPlan plan_of(const rlcc_linear_cross_entropy_params& params, const DeviceInfo& device);
LossPlan plan_of(const rlcc_linear_cross_entropy_backward_params& params, const DeviceInfo& device);
LossPlan plan_of(const rlcc_head_contrast_params& params, const DeviceInfo& device);

size_t workspace_bytes_of(const rlcc_linear_cross_entropy_params& params, const LossPlan& plan);
size_t workspace_bytes_of(const rlcc_linear_cross_entropy_backward_params& params, const LossPlan& plan);
size_t workspace_bytes_of(const rlcc_head_contrast_params& params, const LossPlan& plan);

LaunchError run(const rlcc_linear_cross_entropy_params& params, const LossPlan& plan, void* workspace,
                void* stream);
LaunchError run(const rlcc_linear_cross_entropy_backward_params& params, const LossPlan& plan, void* workspace,
                void* stream);
LaunchError run(const rlcc_head_contrast_params& params, const LossPlan& plan, void* workspace, void* stream);

}  // namespace restorelcc::cuda
