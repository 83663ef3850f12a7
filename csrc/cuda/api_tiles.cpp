// The C border of sparse_linear for many rows, of its gradients and of the 2:4 weight: guard -> validate ->
// plan -> launch.
#include "cuda/calls.h"
#include "cuda/sparse_linear_tiles.h"
#include "cuda/validate.h"
#include "restorelcc/cuda.h"
#include "sparse/layout.h"
#include "sparse/pack_2to4.h"

namespace restorelcc::cuda {
namespace {

// The workspace in order: the partial sums, the index.
template <class T>
T* at_offset(void* workspace, size_t bytes) {
  return reinterpret_cast<T*>(static_cast<char*>(workspace) + bytes);
}

Status make_index(Weight& weight, uint32_t* index, void* stream) {
  weight.index = index;
  if (weight.rows == 0) return {};
  return launched("sparse_linear_index", launch_sparse_linear_index(weight, index, stream));
}

Status sum_splits(const Output& output, const TilePlan& plan, void* stream) {
  if (plan.splits == 1) return {};
  return launched("sparse_linear_sum", launch_sparse_linear_sum(output, plan.splits, stream));
}

// ---- The gradient of x.

size_t workspace_of(const rlcc_sparse_linear_grad_x_params& p, const TilePlan& plan) {
  return partials_bytes(plan, p.y_rows, p.weight.columns) + index_bytes(p.weight.rows, p.weight.columns);
}

Status prepare(const rlcc_sparse_linear_grad_x_params& p, TilePlan* plan) {
  RLCC_RETURN_IF_FAILED(validate(p));
  RLCC_RETURN_IF_FAILED(validate_tile_sizes(p.y_rows, p.weight.columns, p.weight.rows));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  *plan = plan_grad_x(p.y_rows, p.weight, p.dtype, device);
  return {};
}

Status grad_x(const rlcc_sparse_linear_grad_x_params& p, void* workspace, size_t workspace_bytes,
              void* stream) {
  TilePlan plan{};
  RLCC_RETURN_IF_FAILED(prepare(p, &plan));
  if (p.y_rows == 0 || p.weight.columns == 0) return {};
  RLCC_RETURN_IF_FAILED(validate_workspace(workspace, workspace_bytes, workspace_of(p, plan)));
  const size_t partials = partials_bytes(plan, p.y_rows, p.weight.columns);
  TileArguments a{operand_of(p.grad_y, p.y_rows, p.weight.rows, p.grad_y_stride, p.dtype),
                  weight_of(p.weight, nullptr),
                  output_of(p, partials != 0 ? static_cast<float*>(workspace) : nullptr), plan.steps_per_split};
  RLCC_RETURN_IF_FAILED(make_index(a.weight, at_offset<uint32_t>(workspace, partials), stream));
  RLCC_RETURN_IF_FAILED(
      launched("sparse_linear_grad_x", plan.tensor_cores ? launch_sparse_linear_grad_x(a, plan, stream)
                                                         : launch_sparse_linear_plain_grad_x(a, plan, stream)));
  return sum_splits(a.output, plan, stream);
}

// ---- The gradient of the surviving values.

Status prepare(const rlcc_sparse_linear_grad_values_params& p) {
  RLCC_RETURN_IF_FAILED(validate(p));
  return validate_tile_sizes(p.rows, std::max(p.weight.columns, p.weight.rows), 0);
}

Status grad_values(const rlcc_sparse_linear_grad_values_params& p, void* workspace, size_t workspace_bytes,
                   void* stream) {
  RLCC_RETURN_IF_FAILED(prepare(p));
  const int64_t inputs = p.weight.columns, outputs = p.weight.rows;
  if (inputs == 0 || outputs == 0) return {};
  RLCC_RETURN_IF_FAILED(validate_workspace(workspace, workspace_bytes, index_bytes(outputs, inputs)));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  GradValuesArguments a{operand_of(p.grad_y, p.rows, outputs, p.grad_y_stride, p.dtype),
                        operand_of(p.x, p.rows, inputs, p.x_stride, p.dtype), weight_of(p.weight, nullptr),
                        p.grad_values};
  RLCC_RETURN_IF_FAILED(make_index(a.weight, static_cast<uint32_t*>(workspace), stream));
  const bool tensor_cores = plan_grad_values(p.rows, p.dtype).tensor_cores;
  return launched("sparse_linear_grad_values", tensor_cores
                                                   ? launch_sparse_linear_grad_values(a, stream)
                                                   : launch_sparse_linear_plain_grad_values(a, stream));
}

// ---- The 2:4 weight.

// The checks of the general op, on a stand-in for the bitmask weight: of its arrays only whether they are there
// counts.
Status prepare(const rlcc_sparse_linear_params& p, const rlcc_cuda_weight_2to4& w, TilePlan* plan) {
  if (!is_half(w.dtype)) return invalid("weight.dtype is ", w.dtype, ", must be RLCC_BF16 (1) or RLCC_F16 (2)");
  if (p.x_dtype != w.dtype) return invalid("x_dtype is ", p.x_dtype, ", must be the weight's dtype, ", w.dtype);
  if (w.rows < 0 || w.columns < 0)
    return invalid("weight has a negative size, [", w.rows, ", ", w.columns, "]");
  RLCC_RETURN_IF_FAILED(validate_tile_sizes(std::max(p.x_rows, w.rows), p.x_rows, w.columns));
  const Counts2to4 counts = counts_2to4(w.rows, w.columns);
  if (counts.metadata != 0 && (w.values == nullptr || reinterpret_cast<uintptr_t>(w.values) % 16 != 0)) {
    return invalid("weight.values is null or not aligned to 16 bytes");
  }
  RLCC_RETURN_IF_FAILED(validate_array("weight.metadata", w.metadata, counts.metadata, 4));
  alignas(16) static const int64_t something[8] = {};
  rlcc_sparse_linear_params visible = p;
  visible.weight = {w.rows,    w.columns, reinterpret_cast<const uint64_t*>(something),
                    something, 32,        something,
                    w.dtype,   1,         nullptr};
  RLCC_RETURN_IF_FAILED(validate(visible));
  DeviceInfo device{};
  RLCC_RETURN_IF_FAILED(current_device(&device));
  *plan = plan_2to4(p.x_rows, w.rows, w.columns, device);
  return {};
}

Status sparse_linear_2to4(rlcc_sparse_linear_params p, const rlcc_cuda_weight_2to4& w, void* workspace,
                          size_t workspace_bytes, void* stream) {
  TilePlan plan{};
  RLCC_RETURN_IF_FAILED(prepare(p, w, &plan));
  if (p.x_rows == 0 || w.rows == 0) return {};
  const size_t partials = partials_bytes(plan, p.x_rows, w.rows);
  RLCC_RETURN_IF_FAILED(validate_workspace(workspace, workspace_bytes, partials));
  p.weight.rows = w.rows;
  const Counts2to4 counts = counts_2to4(w.rows, w.columns);
  const SparseTileArguments a{operand_of(w.values, counts.rows, counts.row_values, counts.row_values, w.dtype),
                              w.metadata, operand_of(p.x, p.x_rows, w.columns, p.x_stride, p.x_dtype),
                              output_of(p, partials != 0 ? static_cast<float*>(workspace) : nullptr),
                              plan.steps_per_split};
  RLCC_RETURN_IF_FAILED(launched("sparse_linear_2to4", launch_sparse_linear_2to4(a, plan, stream)));
  return sum_splits(a.output, plan, stream);
}

}  // namespace

// ---- The forward pass.

Status sparse_linear_tiles_workspace(const rlcc_sparse_linear_params& p, const DeviceInfo& device,
                                     size_t* bytes) {
  RLCC_RETURN_IF_FAILED(validate_tile_sizes(p.x_rows, p.weight.rows, p.weight.columns));
  *bytes = partials_bytes(plan_forward(p.x_rows, p.weight, p.x_dtype, device), p.x_rows, p.weight.rows);
  return {};
}

Status sparse_linear_tiles(const rlcc_sparse_linear_params& p, const DeviceInfo& device, void* workspace,
                           size_t workspace_bytes, void* stream) {
  RLCC_RETURN_IF_FAILED(validate_tile_sizes(p.x_rows, p.weight.rows, p.weight.columns));
  const TilePlan plan = plan_forward(p.x_rows, p.weight, p.x_dtype, device);
  const size_t partials = partials_bytes(plan, p.x_rows, p.weight.rows);
  RLCC_RETURN_IF_FAILED(validate_workspace(workspace, workspace_bytes, partials));
  const TileArguments a{
      operand_of(p.x, p.x_rows, p.weight.columns, p.x_stride, p.x_dtype), weight_of(p.weight, nullptr),
      output_of(p, partials != 0 ? static_cast<float*>(workspace) : nullptr), plan.steps_per_split};
  RLCC_RETURN_IF_FAILED(launched("sparse_linear_tiles", plan.tensor_cores
                                                            ? launch_sparse_linear_tiles(a, plan, stream)
                                                            : launch_sparse_linear_plain(a, plan, stream)));
  return sum_splits(a.output, plan, stream);
}

}  // namespace restorelcc::cuda

using namespace restorelcc;

extern "C" {

rlcc_status rlcc_cuda_sparse_linear_grad_x_workspace(const rlcc_sparse_linear_grad_x_params* params,
                                                     size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || bytes == nullptr) return invalid("params or bytes is null");
    cuda::TilePlan plan{};
    RLCC_RETURN_IF_FAILED(cuda::prepare(*params, &plan));
    *bytes = cuda::workspace_of(*params, plan);
    return {};
  });
}

rlcc_status rlcc_cuda_sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params* params, void* workspace,
                                           size_t workspace_bytes, void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    return cuda::grad_x(*params, workspace, workspace_bytes, stream);
  });
}

rlcc_status rlcc_cuda_sparse_linear_grad_values_workspace(const rlcc_sparse_linear_grad_values_params* params,
                                                          size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || bytes == nullptr) return invalid("params or bytes is null");
    RLCC_RETURN_IF_FAILED(cuda::prepare(*params));
    *bytes = cuda::index_bytes(params->weight.rows, params->weight.columns);
    return {};
  });
}

rlcc_status rlcc_cuda_sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params* params,
                                                void* workspace, size_t workspace_bytes, void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    return cuda::grad_values(*params, workspace, workspace_bytes, stream);
  });
}

rlcc_status rlcc_cuda_sparse_linear_2to4_workspace(const rlcc_sparse_linear_params* params,
                                                   const rlcc_cuda_weight_2to4* weight, size_t* bytes) {
  return guarded([&]() -> Status {
    if (params == nullptr || weight == nullptr || bytes == nullptr)
      return invalid("params, weight or bytes is null");
    cuda::TilePlan plan{};
    RLCC_RETURN_IF_FAILED(cuda::prepare(*params, *weight, &plan));
    *bytes = cuda::partials_bytes(plan, params->x_rows, weight->rows);
    return {};
  });
}

rlcc_status rlcc_cuda_sparse_linear_2to4(const rlcc_sparse_linear_params* params,
                                         const rlcc_cuda_weight_2to4* weight, void* workspace,
                                         size_t workspace_bytes, void* stream) {
  return guarded([&]() -> Status {
    if (params == nullptr || weight == nullptr) return invalid("params or weight is null");
    return cuda::sparse_linear_2to4(*params, *weight, workspace, workspace_bytes, stream);
  });
}

}  // extern "C"
