// head_moments_: check the tensors, fill the POD, call the core.
#include <torch/csrc/stable/ops.h>

#include "ops.h"
#include "place.h"
#include "restorelcc/cuda.h"
#include "tensor_view.h"

namespace restorelcc_ext {

namespace {

Tensor unit_last_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool usable = tensor.size(last) <= 1 || tensor.stride(last) == 1;
  return usable ? tensor : torch::stable::contiguous(tensor);
}

double* accumulator(const Tensor& tensor, const std::vector<int64_t>& shape, const char* name) {
  require_dtype(tensor, ScalarType::Double, name);
  require_shape(tensor, shape, name);
  require_contiguous(tensor, name);
  return static_cast<double*>(tensor.data_ptr());
}

}  // namespace

void head_moments_(const Tensor& z_dense, const Tensor& z_pruned, const Tensor& total, const Tensor& gram) {
  const Place place({{z_dense, "z_dense"}, {z_pruned, "z_pruned"}, {total, "total"}, {gram, "gram"}});
  rlcc_head_moments_params params{};
  params.dtype = float_dtype(z_dense, "z_dense");
  require_dtype(z_pruned, z_dense.scalar_type(), "z_pruned");
  if (z_dense.dim() != 3) {
    refuse("z_dense has shape ", shape_text(z_dense.sizes()), "; it must be [T, H, D]");
  }
  require_shape(z_pruned, sizes_of(z_dense), "z_pruned");
  const Tensor dense = unit_last_stride(z_dense);
  const Tensor pruned = unit_last_stride(z_pruned);
  params.z_dense = dense.data_ptr();
  params.z_pruned = pruned.data_ptr();
  params.tokens = dense.size(0);
  params.heads = dense.size(1);
  params.head_dim = dense.size(2);
  params.dense_token_stride = dense.stride(0);
  params.dense_head_stride = dense.stride(1);
  params.pruned_token_stride = pruned.stride(0);
  params.pruned_head_stride = pruned.stride(1);
  params.total = accumulator(total, {params.heads, params.head_dim}, "total");
  params.gram = accumulator(gram, {params.heads, params.head_dim, params.head_dim}, "gram");
  place.run(params, {rlcc_head_moments, rlcc_cuda_head_moments_workspace, rlcc_cuda_head_moments});
}

}  // namespace restorelcc_ext
