// The C border of linear_cross_entropy, its gradient and head_contrast: guard -> validate -> plan -> launch.
#include "cuda/calls.h"
#include "cuda/cross_entropy_ops.h"
#include "cuda/validate.h"
#include "restorelcc/cuda.h"

namespace restorelcc::cuda {
namespace {

// The plan and the bytes it needs; nothing was launched when this fails.
template <class Params>
Status prepare(const Params& p, LossPlan* plan, size_t* bytes) {
  RLCC_RETURN_IF_FAILED(validate(p));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  *plan = plan_of(p, device);
  *bytes = workspace_bytes_of(p, *plan);
  return {};
}

template <class Params>
rlcc_status workspace_size(const Params* params, size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || bytes == nullptr) return invalid("params or bytes is null");
    LossPlan plan{};
    return prepare(*params, &plan, bytes);
  });
}

template <class Params>
rlcc_status run_on_device(const char* op, const Params* params, void* workspace, size_t workspace_bytes,
                          void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    LossPlan plan{};
    size_t needed = 0;
    RLCC_RETURN_IF_FAILED(prepare(*params, &plan, &needed));
    RLCC_RETURN_IF_FAILED(validate_workspace(workspace, workspace_bytes, needed));
    return launched(op, run(*params, plan, workspace, stream));
  });
}

}  // namespace
}  // namespace restorelcc::cuda

using namespace restorelcc::cuda;

extern "C" {

rlcc_status rlcc_cuda_linear_cross_entropy_workspace(const rlcc_linear_cross_entropy_params* params,
                                                     size_t* bytes) {
  return workspace_size(params, bytes);
}

rlcc_status rlcc_cuda_linear_cross_entropy(const rlcc_linear_cross_entropy_params* params, void* workspace,
                                           size_t workspace_bytes, void* stream) {
  return run_on_device("linear_cross_entropy", params, workspace, workspace_bytes, stream);
}

rlcc_status rlcc_cuda_linear_cross_entropy_backward_workspace(
    const rlcc_linear_cross_entropy_backward_params* params, size_t* bytes) {
  return workspace_size(params, bytes);
}

rlcc_status rlcc_cuda_linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params* params,
                                                    void* workspace, size_t workspace_bytes, void* stream) {
  return run_on_device("linear_cross_entropy_backward", params, workspace, workspace_bytes, stream);
}

rlcc_status rlcc_cuda_head_contrast_workspace(const rlcc_head_contrast_params* params, size_t* bytes) {
  return workspace_size(params, bytes);
}

rlcc_status rlcc_cuda_head_contrast(const rlcc_head_contrast_params* params, void* workspace,
                                    size_t workspace_bytes, void* stream) {
  return run_on_device("head_contrast", params, workspace, workspace_bytes, stream);
}

}  // extern "C"
