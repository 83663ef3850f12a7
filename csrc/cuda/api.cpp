// The C border of the CUDA ops: guard -> validate -> plan -> launch.
#include <algorithm>

#include "core/build_info.h"
#include "cuda/device_info.h"
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

Status current_device(DeviceInfo* device) {
  const LaunchError error = query_device(device);
  if (error == nullptr) return {};
  return failure(RLCC_UNSUPPORTED, "no usable CUDA device: ", error);
}

Status launched(const char* kernel, LaunchError error) {
  if (error == nullptr) return {};
  return failure(RLCC_INTERNAL, "launching ", kernel, " failed: ", error);
}

DecodePlan decode_plan(const rlcc_sparse_linear_params& p, const DeviceInfo& device) {
  return plan_decode(p.weight.rows, p.weight.columns, static_cast<int>(bytes_of(p.weight.dtype)), device);
}

// Rows m .. m + rows of x and of what belongs to them.
rlcc_sparse_linear_params rows_of(rlcc_sparse_linear_params p, int64_t m, int64_t rows) {
  const int64_t bytes = bytes_of(p.x_dtype);
  const auto at = [&](const void* data, int64_t stride) {
    return static_cast<const char*>(data) + m * stride * bytes;
  };
  if (p.x != nullptr) p.x = at(p.x, p.x_stride);
  if (p.residual != nullptr) p.residual = at(p.residual, p.residual_stride);
  if (p.comp_index != nullptr) p.comp_index += m;
  p.y = const_cast<char*>(at(p.y, p.y_stride));
  p.x_rows = rows;
  return p;
}

Status sparse_linear_workspace(const rlcc_sparse_linear_params& p, size_t* bytes) {
  RLCC_RETURN_IF_FAILED(validate(p));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  *bytes = decode_workspace_bytes(decode_plan(p, device), p.x_rows, p.weight.rows);
  return {};
}

Status sparse_linear(const rlcc_sparse_linear_params& p, void* workspace, size_t workspace_bytes,
                     void* stream) {
  RLCC_RETURN_IF_FAILED(validate(p));
  if (p.x_rows == 0 || p.weight.rows == 0) return {};
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  const DecodePlan plan = decode_plan(p, device);
  RLCC_RETURN_IF_FAILED(
      validate_workspace(workspace, workspace_bytes, decode_workspace_bytes(plan, p.x_rows, p.weight.rows)));
  // Many rows take several passes over W.
  for (int64_t m = 0; m < p.x_rows; m += kDecodeMostRowsOfX) {
    const auto rows = rows_of(p, m, std::min<int64_t>(kDecodeMostRowsOfX, p.x_rows - m));
    RLCC_RETURN_IF_FAILED(
        launched("sparse_linear_decode",
                 launch_sparse_linear_decode(rows, plan, static_cast<float*>(workspace), stream)));
  }
  return {};
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

}  // extern "C"
