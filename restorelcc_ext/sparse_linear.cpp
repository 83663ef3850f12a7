// sparse_linear and its gradient: check the tensors, fill the POD, call the core.
#include <torch/csrc/stable/ops.h>

#include "ops.h"
#include "place.h"
#include "restorelcc/cuda.h"
#include "tensor_view.h"

namespace restorelcc_ext {

namespace {

// comp_index: one entry a row of x (or of grad_y), as [M] or in the shape of its leading dimensions.
Tensor index_of_rows(const Tensor& comp_index, int64_t rows, const char* of) {
  require_dtype(comp_index, ScalarType::Long, "comp_index");
  if (comp_index.numel() != rows) {
    refuse("comp_index has ", comp_index.numel(), " entries; ", of, " has ", rows, " rows, and each needs one");
  }
  return contiguous_of(comp_index);
}

}  // namespace

Tensor sparse_linear(const Tensor& x, const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                     const std::optional<Tensor>& scales, int64_t columns,
                     const std::optional<Tensor>& comp_rows, const std::optional<Tensor>& comp_index,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, bool trusted,
                     bool exact_x) {
  const Place place({{x, "x"},
                     {mask, "mask"},
                     {values, "values"},
                     {row_offsets, "row_offsets"},
                     {scales, "scales"},
                     {comp_rows, "comp_rows"},
                     {comp_index, "comp_index"},
                     {bias, "bias"},
                     {residual, "residual"}});
  rlcc_sparse_linear_params params{};
  params.exact_x = exact_x ? 1 : 0;
  params.x_dtype = float_dtype(x, "x");
  params.weight = packed_weight(mask, values, row_offsets, scales, columns, trusted);
  const int64_t outputs = params.weight.rows;

  const Rows x_rows = rows_of(x, columns, "x");
  params.x = x_rows.data;
  params.x_rows = x_rows.count;
  params.x_stride = x_rows.stride;

  std::optional<Tensor> rows, index;
  std::optional<Float32Row> bias_row;
  if (comp_rows) {
    if (comp_rows->dim() != 2) {
      refuse("comp_rows has shape ", shape_text(comp_rows->sizes()), "; it must be [G, ", outputs, "]");
    }
    rows = as_float32(*comp_rows, {comp_rows->size(0), outputs}, "comp_rows");
    params.comp_rows = static_cast<const float*>(rows->data_ptr());
    params.groups = rows->size(0);
  }
  if (comp_index) {
    if (!comp_rows) refuse("comp_index is set, but there is no compensation to pick from");
    index = index_of_rows(*comp_index, x_rows.count, "x");
    params.comp_index = static_cast<const int64_t*>(index->data_ptr());
  }
  if (bias) {
    bias_row.emplace(*bias, outputs, "bias");
    params.bias = bias_row->data();
  }

  const std::vector<int64_t> y_shape = with_columns(sizes_of(x), outputs);
  std::optional<Rows> residual_rows;
  if (residual) {
    require_dtype(*residual, x.scalar_type(), "residual");
    require_shape(*residual, y_shape, "residual");
    residual_rows = rows_of(*residual, outputs, "residual");
    params.residual = residual_rows->data;
    params.residual_stride = residual_rows->stride;
  }

  Tensor y = torch::stable::new_empty(x, y_shape);
  params.y = y.data_ptr();
  params.y_stride = outputs;
  place.run(params, {rlcc_sparse_linear, rlcc_cuda_sparse_linear_workspace, rlcc_cuda_sparse_linear});
  return y;
}

Tensor sparse_linear_grad_x(const Tensor& grad_y, const Tensor& mask, const Tensor& values,
                            const Tensor& row_offsets, const std::optional<Tensor>& scales, int64_t columns,
                            bool trusted) {
  const Place place({{grad_y, "grad_y"},
                     {mask, "mask"},
                     {values, "values"},
                     {row_offsets, "row_offsets"},
                     {scales, "scales"}});
  rlcc_sparse_linear_grad_x_params params{};
  params.dtype = float_dtype(grad_y, "grad_y");
  params.weight = packed_weight(mask, values, row_offsets, scales, columns, trusted);
  const Rows rows = rows_of(grad_y, params.weight.rows, "grad_y");
  params.grad_y = rows.data;
  params.y_rows = rows.count;
  params.grad_y_stride = rows.stride;
  Tensor grad_x = torch::stable::new_empty(grad_y, with_columns(sizes_of(grad_y), columns));
  params.grad_x = grad_x.data_ptr();
  params.grad_x_stride = columns;
  place.run(params, {rlcc_sparse_linear_grad_x, rlcc_cuda_sparse_linear_grad_x_workspace,
                     rlcc_cuda_sparse_linear_grad_x});
  return grad_x;
}

Tensor sparse_linear_grad_values(const Tensor& grad_y, const Tensor& x, const Tensor& mask,
                                 const Tensor& values, const Tensor& row_offsets, bool trusted) {
  const Place place(
      {{x, "x"}, {grad_y, "grad_y"}, {mask, "mask"}, {values, "values"}, {row_offsets, "row_offsets"}});
  rlcc_sparse_linear_grad_values_params params{};
  params.dtype = float_dtype(x, "x");
  require_dtype(grad_y, x.scalar_type(), "grad_y");
  if (x.dim() < 1) refuse("x has shape []; it must be [..., K]");
  const int64_t columns = x.size(x.dim() - 1);
  params.weight = packed_weight(mask, values, row_offsets, std::nullopt, columns, trusted);
  const Rows x_rows = rows_of(x, columns, "x");
  const Rows grad_rows = rows_of(grad_y, params.weight.rows, "grad_y");
  if (x_rows.count != grad_rows.count) {
    refuse("grad_y has ", grad_rows.count, " rows, x has ", x_rows.count, "; they must be the same");
  }
  params.x = x_rows.data;
  params.rows = x_rows.count;
  params.x_stride = x_rows.stride;
  params.grad_y = grad_rows.data;
  params.grad_y_stride = grad_rows.stride;
  // Zeros, so that what lies between the rows is no garbage that an optimizer would keep.
  Tensor grad_values = torch::stable::new_zeros(values, {values.numel()});
  params.grad_values = grad_values.data_ptr();
  place.run(params, {rlcc_sparse_linear_grad_values, rlcc_cuda_sparse_linear_grad_values_workspace,
                     rlcc_cuda_sparse_linear_grad_values});
  return grad_values;
}

std::tuple<Tensor, Tensor> sparse_linear_grad_comp(const Tensor& grad_y,
                                                   const std::optional<Tensor>& comp_index, int64_t groups,
                                                   bool with_bias) {
  const Place place({{grad_y, "grad_y"}, {comp_index, "comp_index"}});
  rlcc_sparse_linear_grad_comp_params params{};
  params.dtype = float_dtype(grad_y, "grad_y");
  if (grad_y.dim() < 1) refuse("grad_y has shape []; it must be [..., N]");
  if (groups < 0) refuse("groups is ", groups, "; it must be >= 0");
  params.columns = grad_y.size(grad_y.dim() - 1);
  const Rows rows = rows_of(grad_y, params.columns, "grad_y");
  params.grad_y = rows.data;
  params.rows = rows.count;
  params.grad_y_stride = rows.stride;
  std::optional<Tensor> index;
  if (comp_index) {
    index = index_of_rows(*comp_index, rows.count, "grad_y");
    params.comp_index = static_cast<const int64_t*>(index->data_ptr());
  }
  const std::vector<int64_t> bias_shape = {with_bias ? params.columns : 0};
  Tensor grad_comp_rows = torch::stable::new_empty(grad_y, {groups, params.columns}, ScalarType::Float);
  Tensor grad_bias = torch::stable::new_empty(grad_y, bias_shape, ScalarType::Float);
  params.groups = groups;
  params.grad_comp_rows = groups > 0 ? static_cast<float*>(grad_comp_rows.data_ptr()) : nullptr;
  params.grad_bias = with_bias ? static_cast<float*>(grad_bias.data_ptr()) : nullptr;
  place.run(params, {rlcc_sparse_linear_grad_comp, rlcc_cuda_sparse_linear_grad_comp_workspace,
                     rlcc_cuda_sparse_linear_grad_comp});
  return {grad_comp_rows, grad_bias};
}

}  // namespace restorelcc_ext
