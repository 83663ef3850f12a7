// The C border of the CUDA ops: guard -> validate -> plan -> launch.
#include "core/build_info.h"
#include "cuda/calls.h"
#include "cuda/grad_comp.h"
#include "cuda/head_moments.h"
#include "cuda/sparse_linear.h"
#include "cuda/validate.h"
#include "restorelcc/cuda.h"
#include "sparse/layout.h"

#if !defined(RLCC_CUDA_ARCHITECTURES)
#error "the build says which architectures the kernels were compiled for"
#endif

namespace restorelcc {

const char* cuda_architectures() { return RLCC_CUDA_ARCHITECTURES; }

namespace cuda {
namespace {

DecodePlan decode_plan(const rlcc_sparse_linear_params& p, const DeviceInfo& device) {
  return plan_decode(p.weight.rows, p.weight.columns, static_cast<int>(bytes_of(p.weight.dtype)), device);
}

Status sparse_linear_workspace(const rlcc_sparse_linear_params& p, size_t* bytes) {
  RLCC_RETURN_IF_FAILED(validate(p));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  if (p.x_rows > kDecodeMostRowsOfX) return sparse_linear_tiles_workspace(p, device, bytes);
  *bytes = decode_workspace_bytes(decode_plan(p, device), p.x_rows, p.weight.rows);
  return {};
}

Status sparse_linear(const rlcc_sparse_linear_params& p, void* workspace, size_t workspace_bytes,
                     void* stream) {
  RLCC_RETURN_IF_FAILED(validate(p));
  if (p.x_rows == 0 || p.weight.rows == 0) return {};
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  if (p.x_rows > kDecodeMostRowsOfX) return sparse_linear_tiles(p, device, workspace, workspace_bytes, stream);
  const DecodePlan plan = decode_plan(p, device);
  RLCC_RETURN_IF_FAILED(
      validate_workspace(workspace, workspace_bytes, decode_workspace_bytes(plan, p.x_rows, p.weight.rows)));
  return launched("sparse_linear_decode",
                  launch_sparse_linear_decode(p, plan, static_cast<float*>(workspace), stream));
}

struct GradComp {
  GradCompSums sums;
  GradCompPlan plan;
  size_t workspace_bytes;
  bool empty;  // nothing to write
};

Status prepare(const rlcc_sparse_linear_grad_comp_params& p, GradComp* g) {
  RLCC_RETURN_IF_FAILED(validate(p));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  g->sums = grad_comp_sums(p);
  g->empty = p.columns == 0 || g->sums.count() == 0;
  g->plan = plan_grad_comp(p.rows, p.columns, g->sums, device);
  g->workspace_bytes = g->empty ? 0 : grad_comp_workspace_bytes(g->plan, p.columns, g->sums);
  return {};
}

Status sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& p, void* workspace,
                               size_t workspace_bytes, void* stream) {
  GradComp g{};
  RLCC_RETURN_IF_FAILED(prepare(p, &g));
  if (g.empty) return {};
  RLCC_RETURN_IF_FAILED(validate_workspace(workspace, workspace_bytes, g.workspace_bytes));
  return launched("sparse_linear_grad_comp",
                  launch_sparse_linear_grad_comp(p, g.plan, static_cast<float*>(workspace), stream));
}

HeadMomentsPlan moments_plan(const rlcc_head_moments_params& p) {
  return plan_head_moments(p.tokens, p.heads, p.head_dim);
}

Status head_moments_workspace(const rlcc_head_moments_params& p, size_t* bytes) {
  RLCC_RETURN_IF_FAILED(validate(p));
  *bytes = head_moments_workspace_bytes(moments_plan(p), p.heads);
  return {};
}

Status head_moments(const rlcc_head_moments_params& p, void* workspace, size_t workspace_bytes, void* stream) {
  RLCC_RETURN_IF_FAILED(validate(p));
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return {};
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  const HeadMomentsPlan plan = moments_plan(p);
  RLCC_RETURN_IF_FAILED(
      validate_workspace(workspace, workspace_bytes, head_moments_workspace_bytes(plan, p.heads)));
  return launched("head_moments", launch_head_moments(p, plan, static_cast<double*>(workspace), stream));
}

}  // namespace
}  // namespace cuda
}  // namespace restorelcc

using namespace restorelcc;

extern "C" {

rlcc_status rlcc_cuda_sparse_linear_workspace(const rlcc_sparse_linear_params* params, size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || bytes == nullptr) return invalid("params or bytes is null");
    return cuda::sparse_linear_workspace(*params, bytes);
  });
}

rlcc_status rlcc_cuda_sparse_linear(const rlcc_sparse_linear_params* params, void* workspace,
                                    size_t workspace_bytes, void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    return cuda::sparse_linear(*params, workspace, workspace_bytes, stream);
  });
}

rlcc_status rlcc_cuda_sparse_linear_grad_comp_workspace(const rlcc_sparse_linear_grad_comp_params* params,
                                                        size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || bytes == nullptr) return invalid("params or bytes is null");
    cuda::GradComp g{};
    RLCC_RETURN_IF_FAILED(cuda::prepare(*params, &g));
    *bytes = g.workspace_bytes;
    return {};
  });
}

rlcc_status rlcc_cuda_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params* params,
                                              void* workspace, size_t workspace_bytes, void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    return cuda::sparse_linear_grad_comp(*params, workspace, workspace_bytes, stream);
  });
}

rlcc_status rlcc_cuda_head_moments_workspace(const rlcc_head_moments_params* params, size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || bytes == nullptr) return invalid("params or bytes is null");
    return cuda::head_moments_workspace(*params, bytes);
  });
}

rlcc_status rlcc_cuda_head_moments(const rlcc_head_moments_params* params, void* workspace,
                                   size_t workspace_bytes, void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    return cuda::head_moments(*params, workspace, workspace_bytes, stream);
  });
}

}  // extern "C"
