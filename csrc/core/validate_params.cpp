#include "core/validate_params.h"

#include "sparse/layout.h"

namespace restorelcc {
namespace {

Status validate_weight(const rlcc_packed_weight& weight) {
  return weight.trusted != 0 ? validate_shape(weight) : validate(weight);
}

// `rows_of_groups` [groups, outputs], called `name`, of which comp_index [rows] picks one for each row.
Status validate_comp(const char* name, const float* rows_of_groups, int64_t groups, const int64_t* comp_index,
                     int64_t outputs, int64_t rows) {
  if (groups < 0) return invalid("groups is ", groups, ", must not be negative");
  if (groups == 0) {
    if (rows_of_groups != nullptr) return invalid(name, " is set, but groups is 0");
    if (comp_index != nullptr) return invalid("comp_index is set, but ", name, " is null");
    return {};
  }
  if (rows_of_groups == nullptr && outputs > 0) return invalid(name, " is null, but groups is ", groups);
  RLCC_RETURN_IF_FAILED(validate_matrix(name, rows_of_groups, groups, outputs, outputs, RLCC_F32));
  if (comp_index == nullptr) {
    if (groups > 1 && rows > 0)
      return invalid("comp_index is null, but there are ", groups, " groups to choose from");
    return {};
  }
  RLCC_RETURN_IF_FAILED(validate_array("comp_index", comp_index, rows, 8));
  for (int64_t m = 0; m < rows; ++m) {
    if (comp_index[m] < 0 || comp_index[m] >= groups) {
      return invalid("comp_index[", m, "] is ", comp_index[m], ", must be in [0, ", groups, ")");
    }
  }
  return {};
}

// residual [M, N] of dtype, which y may be.
template <class Params>
Status validate_residual(const Params& p, int64_t outputs, rlcc_dtype dtype) {
  if (p.residual == nullptr) return {};
  RLCC_RETURN_IF_FAILED(validate_matrix("residual", p.residual, p.x_rows, outputs, p.residual_stride, dtype));
  if (p.residual == p.y && p.x_rows > 1 && p.residual_stride != p.y_stride) {
    return invalid("y is residual, but their row strides differ: ", p.y_stride, " and ", p.residual_stride);
  }
  return {};
}

// [tokens, heads, head_dim] with unit stride over head_dim.
Status validate_heads(const char* name, const void* data, const rlcc_head_moments_params& p,
                      int64_t token_stride, int64_t head_stride) {
  if (token_stride < 0 || head_stride < 0) {
    return invalid(name, " has a negative stride (token ", token_stride, ", head ", head_stride, ")");
  }
  int64_t tokens_span = 0, heads_span = 0, span = 0;
  if (__builtin_mul_overflow(p.tokens - 1, token_stride, &tokens_span) ||
      __builtin_mul_overflow(p.heads - 1, head_stride, &heads_span) ||
      __builtin_add_overflow(tokens_span, heads_span, &span) ||
      __builtin_add_overflow(span, p.head_dim, &span)) {
    return invalid(name, " of [", p.tokens, ", ", p.heads, ", ", p.head_dim, "] overflows 64 bits");
  }
  return validate_array(name, data, span, bytes_of(p.dtype));
}

}  // namespace

Status validate_parallel(const rlcc_parallel* parallel) {
  if (parallel == nullptr) return {};
  if (parallel->run == nullptr) return invalid("parallel.run is null");
  if (parallel->threads < 1) return invalid("parallel.threads is ", parallel->threads, ", must be at least 1");
  return {};
}

Status validate(const rlcc_sparse_linear_params& p) {
  RLCC_RETURN_IF_FAILED(validate_dtype("x_dtype", p.x_dtype));
  RLCC_RETURN_IF_FAILED(validate_weight(p.weight));
  const int64_t rows = p.x_rows, inputs = p.weight.columns, outputs = p.weight.rows;
  RLCC_RETURN_IF_FAILED(validate_matrix("x", p.x, rows, inputs, p.x_stride, p.x_dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("y", p.y, rows, outputs, p.y_stride, p.x_dtype));
  RLCC_RETURN_IF_FAILED(validate_residual(p, outputs, p.x_dtype));
  if (p.bias != nullptr) RLCC_RETURN_IF_FAILED(validate_array("bias", p.bias, outputs, 4));
  RLCC_RETURN_IF_FAILED(
      validate_comp("comp_rows", p.comp_rows, p.groups, p.comp_index, p.weight.rows, p.x_rows));
  return validate_parallel(p.parallel);
}

Status validate(const rlcc_dense_linear_params& p) {
  RLCC_RETURN_IF_FAILED(validate_dtype("weight_dtype", p.weight_dtype));
  RLCC_RETURN_IF_FAILED(validate_dtype("x_dtype", p.x_dtype));
  RLCC_RETURN_IF_FAILED(validate_dtype("y_dtype", p.y_dtype));
  RLCC_RETURN_IF_FAILED(
      validate_matrix("weight", p.weight, p.rows, p.columns, p.weight_stride, p.weight_dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("x", p.x, p.x_rows, p.columns, p.x_stride, p.x_dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("y", p.y, p.x_rows, p.rows, p.y_stride, p.y_dtype));
  RLCC_RETURN_IF_FAILED(validate_residual(p, p.rows, p.y_dtype));
  if (p.bias != nullptr) RLCC_RETURN_IF_FAILED(validate_array("bias", p.bias, p.rows, 4));
  return validate_parallel(p.parallel);
}

Status validate(const rlcc_sparse_linear_grad_x_params& p) {
  RLCC_RETURN_IF_FAILED(validate_dtype("dtype", p.dtype));
  RLCC_RETURN_IF_FAILED(validate_weight(p.weight));
  const int64_t inputs = p.weight.columns, outputs = p.weight.rows;
  RLCC_RETURN_IF_FAILED(validate_matrix("grad_y", p.grad_y, p.y_rows, outputs, p.grad_y_stride, p.dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("grad_x", p.grad_x, p.y_rows, inputs, p.grad_x_stride, p.dtype));
  return validate_parallel(p.parallel);
}

Status validate(const rlcc_sparse_linear_grad_values_params& p) {
  RLCC_RETURN_IF_FAILED(validate_dtype("dtype", p.dtype));
  RLCC_RETURN_IF_FAILED(validate_weight(p.weight));
  if (p.weight.dtype == RLCC_I8) {
    return invalid(
        "weight.dtype is RLCC_I8; int8 values have no gradient, keep floating point values to train them");
  }
  RLCC_RETURN_IF_FAILED(validate_matrix("x", p.x, p.rows, p.weight.columns, p.x_stride, p.dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("grad_y", p.grad_y, p.rows, p.weight.rows, p.grad_y_stride, p.dtype));
  RLCC_RETURN_IF_FAILED(
      validate_array("grad_values", p.grad_values, p.weight.value_count, bytes_of(p.weight.dtype)));
  return validate_parallel(p.parallel);
}

Status validate(const rlcc_sparse_linear_grad_comp_params& p) {
  RLCC_RETURN_IF_FAILED(validate_dtype("dtype", p.dtype));
  RLCC_RETURN_IF_FAILED(validate_matrix("grad_y", p.grad_y, p.rows, p.columns, p.grad_y_stride, p.dtype));
  RLCC_RETURN_IF_FAILED(
      validate_comp("grad_comp_rows", p.grad_comp_rows, p.groups, p.comp_index, p.columns, p.rows));
  if (p.grad_bias != nullptr) RLCC_RETURN_IF_FAILED(validate_array("grad_bias", p.grad_bias, p.columns, 4));
  return validate_parallel(p.parallel);
}

Status validate(const rlcc_head_moments_params& p) {
  RLCC_RETURN_IF_FAILED(validate_dtype("dtype", p.dtype));
  if (p.tokens < 0 || p.heads < 0 || p.head_dim < 0) {
    return invalid("negative size: tokens ", p.tokens, ", heads ", p.heads, ", head_dim ", p.head_dim);
  }
  int64_t sums = 0, gram = 0;
  if (__builtin_mul_overflow(p.heads, p.head_dim, &sums) || __builtin_mul_overflow(sums, p.head_dim, &gram)) {
    return invalid("gram of [", p.heads, ", ", p.head_dim, ", ", p.head_dim, "] overflows 64 bits");
  }
  RLCC_RETURN_IF_FAILED(validate_array("total", p.total, sums, 8));
  RLCC_RETURN_IF_FAILED(validate_array("gram", p.gram, gram, 8));
  if (p.tokens > 0 && sums > 0) {
    RLCC_RETURN_IF_FAILED(validate_heads("z_dense", p.z_dense, p, p.dense_token_stride, p.dense_head_stride));
    RLCC_RETURN_IF_FAILED(
        validate_heads("z_pruned", p.z_pruned, p, p.pruned_token_stride, p.pruned_head_stride));
  }
  return validate_parallel(p.parallel);
}

}  // namespace restorelcc
