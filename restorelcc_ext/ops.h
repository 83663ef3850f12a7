// The ops as torch sees them; the equations stand in restorelcc/params.h and in python/restorelcc.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace restorelcc_ext {

using torch::stable::Tensor;

Tensor sparse_linear(const Tensor& x, const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                     const std::optional<Tensor>& scales, int64_t columns,
                     const std::optional<Tensor>& comp_rows, const std::optional<Tensor>& comp_index,
                     const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, bool trusted,
                     bool exact_x);

Tensor sparse_linear_grad_x(const Tensor& grad_y, const Tensor& mask, const Tensor& values,
                            const Tensor& row_offsets, const std::optional<Tensor>& scales, int64_t columns,
                            bool trusted);

Tensor sparse_linear_grad_values(const Tensor& grad_y, const Tensor& x, const Tensor& mask,
                                 const Tensor& values, const Tensor& row_offsets, bool trusted);

std::tuple<Tensor, Tensor> sparse_linear_grad_comp(const Tensor& grad_y,
                                                   const std::optional<Tensor>& comp_index, int64_t groups,
                                                   bool with_bias);

void head_moments_(const Tensor& z_dense, const Tensor& z_pruned, const Tensor& total, const Tensor& gram);

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& h, const Tensor& weight,
                                                        const Tensor& labels, const std::optional<Tensor>& bias,
                                                        int64_t ignore_index, bool with_lse, bool with_grad_h);

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad_nll, const Tensor& h,
                                                                 const Tensor& weight, const Tensor& labels,
                                                                 const Tensor& lse,
                                                                 const std::optional<Tensor>& bias,
                                                                 int64_t ignore_index, bool with_grad_h,
                                                                 bool with_grad_weight, bool with_grad_bias);

Tensor head_contrast(const Tensor& h_edited, const Tensor& weight, const Tensor& labels, const Tensor& base_nll,
                     const std::optional<Tensor>& segments, const std::optional<Tensor>& weights,
                     int64_t segment_count, const std::optional<Tensor>& bias, int64_t ignore_index);

std::tuple<Tensor, Tensor, Tensor, Tensor> pack(const Tensor& weight, bool int8);

Tensor unpack(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
              const std::optional<Tensor>& scales, int64_t columns);

void packed_validate(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                     const std::optional<Tensor>& scales, int64_t columns);

}  // namespace restorelcc_ext
