// linear_cross_entropy, its gradient, head_contrast: check the tensors, fill the PODs, call the core.
#include <torch/csrc/stable/ops.h>

#include "ops.h"
#include "place.h"
#include "restorelcc/cuda.h"
#include "tensor_view.h"

namespace restorelcc_ext {

namespace {

// W [V, E] and bias [V] of the dtype of h; `head` borrows what this holds.
struct LanguageHead {
  Rows weight;
  std::optional<Float32Row> bias;
  rlcc_language_head head{};

  LanguageHead(const Tensor& h, const char* h_name, const Tensor& weight_tensor,
               const std::optional<Tensor>& bias_tensor)
      : weight(rows_of_weight(h, h_name, weight_tensor)) {
    head.dtype = float_dtype(h, h_name);
    head.weight = weight.data;
    head.vocabulary = weight.count;
    head.columns = weight_tensor.size(1);
    head.weight_stride = weight.stride;
    if (bias_tensor) head.bias = bias.emplace(*bias_tensor, head.vocabulary, "bias").data();
  }

 private:
  static Rows rows_of_weight(const Tensor& h, const char* h_name, const Tensor& weight) {
    float_dtype(h, h_name);
    require_dtype(weight, h.scalar_type(), "weight");
    if (weight.dim() != 2) refuse("weight has shape ", shape_text(weight.sizes()), "; it must be [V, E]");
    return rows_of(weight, weight.size(1), "weight");
  }
};

std::vector<int64_t> leading_shape(const Tensor& tensor) {
  std::vector<int64_t> shape = sizes_of(tensor);
  shape.pop_back();  // rows_of() has refused a tensor without dimensions
  return shape;
}

// int64 of this shape, contiguous.
Tensor integers(const Tensor& tensor, const std::vector<int64_t>& shape, const char* name) {
  require_dtype(tensor, ScalarType::Long, name);
  require_shape(tensor, shape, name);
  return contiguous_of(tensor);
}

const int64_t* integer_data(const Tensor& tensor) { return static_cast<const int64_t*>(tensor.data_ptr()); }
const float* float_data(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }

// A new tensor of this shape where it is wanted, else one without elements.
Tensor output(const Tensor& like, bool wanted, const std::vector<int64_t>& shape,
              std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(like, wanted ? shape : std::vector<int64_t>{0}, dtype);
}

// h [G, M, E] with unit column stride and rows that do not overlap: the tensor itself where it is so.
Tensor edited_rows(const Tensor& h) {
  const bool unit = h.size(2) <= 1 || h.stride(2) == 1;
  const bool apart = h.size(1) <= 1 || h.stride(1) >= h.size(2);
  return unit && apart ? h : torch::stable::contiguous(h);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy(const Tensor& h, const Tensor& weight,
                                                        const Tensor& labels, const std::optional<Tensor>& bias,
                                                        int64_t ignore_index, bool with_lse, bool with_grad_h) {
  const Place place({{h, "h"}, {weight, "weight"}, {labels, "labels"}, {bias, "bias"}});
  const LanguageHead language(h, "h", weight, bias);
  const Rows rows = rows_of(h, language.head.columns, "h");
  const std::vector<int64_t> leading = leading_shape(h);
  const Tensor label_rows = integers(labels, leading, "labels");
  Tensor nll = output(h, true, leading, ScalarType::Float);
  Tensor lse = output(h, with_lse, leading, ScalarType::Float);
  Tensor grad_h = output(h, with_grad_h, sizes_of(h));

  rlcc_linear_cross_entropy_params params{};
  params.head = language.head;
  params.h = rows.data;
  params.rows = rows.count;
  params.h_stride = rows.stride;
  params.labels = integer_data(label_rows);
  params.ignore_index = ignore_index;
  params.nll = static_cast<float*>(nll.data_ptr());
  params.lse = with_lse ? static_cast<float*>(lse.data_ptr()) : nullptr;
  params.grad_h = with_grad_h ? grad_h.data_ptr() : nullptr;
  params.grad_h_stride = language.head.columns;
  place.run(params, {rlcc_linear_cross_entropy, rlcc_cuda_linear_cross_entropy_workspace,
                     rlcc_cuda_linear_cross_entropy});
  return {nll, lse, grad_h};
}

std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(const Tensor& grad_nll, const Tensor& h,
                                                                 const Tensor& weight, const Tensor& labels,
                                                                 const Tensor& lse,
                                                                 const std::optional<Tensor>& bias,
                                                                 int64_t ignore_index, bool with_grad_h,
                                                                 bool with_grad_weight, bool with_grad_bias) {
  const Place place(
      {{h, "h"}, {weight, "weight"}, {grad_nll, "grad_nll"}, {labels, "labels"}, {lse, "lse"}, {bias, "bias"}});
  const LanguageHead language(h, "h", weight, bias);
  const int64_t columns = language.head.columns, vocabulary = language.head.vocabulary;
  const Rows rows = rows_of(h, columns, "h");
  const std::vector<int64_t> leading = leading_shape(h);
  const Tensor label_rows = integers(labels, leading, "labels");
  const Tensor lse_rows = as_float32(lse, leading, "lse");
  const Tensor grad_rows = as_float32(grad_nll, leading, "grad_nll");
  Tensor grad_h = output(h, with_grad_h, sizes_of(h));
  Tensor grad_weight = output(weight, with_grad_weight, {vocabulary, columns});
  Tensor grad_bias = output(weight, with_grad_bias, {vocabulary}, ScalarType::Float);

  rlcc_linear_cross_entropy_backward_params params{};
  params.head = language.head;
  params.h = rows.data;
  params.rows = rows.count;
  params.h_stride = rows.stride;
  params.labels = integer_data(label_rows);
  params.ignore_index = ignore_index;
  params.lse = float_data(lse_rows);
  params.grad_nll = float_data(grad_rows);
  params.grad_h = with_grad_h ? grad_h.data_ptr() : nullptr;
  params.grad_h_stride = columns;
  params.grad_weight = with_grad_weight ? grad_weight.data_ptr() : nullptr;
  params.grad_weight_stride = columns;
  params.grad_bias = with_grad_bias ? static_cast<float*>(grad_bias.data_ptr()) : nullptr;
  place.run(params, {rlcc_linear_cross_entropy_backward, rlcc_cuda_linear_cross_entropy_backward_workspace,
                     rlcc_cuda_linear_cross_entropy_backward});
  return {grad_h, grad_weight, grad_bias};
}

Tensor head_contrast(const Tensor& h_edited, const Tensor& weight, const Tensor& labels, const Tensor& base_nll,
                     const std::optional<Tensor>& segments, const std::optional<Tensor>& weights,
                     int64_t segment_count, const std::optional<Tensor>& bias, int64_t ignore_index) {
  const Place place({{h_edited, "h_edited"},
                     {weight, "weight"},
                     {labels, "labels"},
                     {base_nll, "base_nll"},
                     {segments, "segments"},
                     {weights, "weights"},
                     {bias, "bias"}});
  const LanguageHead language(h_edited, "h_edited", weight, bias);
  if (h_edited.dim() != 3 || h_edited.size(2) != language.head.columns) {
    refuse("h_edited has shape ", shape_text(h_edited.sizes()), "; it must be [G, M, ", language.head.columns,
           "]");
  }
  const Tensor h = edited_rows(h_edited);
  const int64_t groups = h.size(0), count = h.size(1);
  const Tensor label_rows = integers(labels, {count}, "labels");
  const Tensor base_rows = as_float32(base_nll, {count}, "base_nll");
  std::optional<Tensor> segment_rows, weight_rows;
  if (segments) segment_rows = integers(*segments, {count}, "segments");
  if (weights) weight_rows = as_float32(*weights, {count}, "weights");
  if (segment_count < 1) refuse("segment_count is ", segment_count, "; it must be at least 1");
  Tensor contrast = output(h, true, {groups, segment_count}, ScalarType::Double);

  rlcc_head_contrast_params params{};
  params.head = language.head;
  params.h = h.data_ptr();
  params.groups = groups;
  params.rows = count;
  params.group_stride = h.stride(0);
  params.h_stride = h.stride(1);
  params.labels = integer_data(label_rows);
  params.ignore_index = ignore_index;
  params.base_nll = float_data(base_rows);
  params.segments = segment_rows ? integer_data(*segment_rows) : nullptr;
  params.segment_count = segment_count;
  params.weights = weight_rows ? float_data(*weight_rows) : nullptr;
  params.contrast = static_cast<double*>(contrast.data_ptr());
  place.run(params, {rlcc_head_contrast, rlcc_cuda_head_contrast_workspace, rlcc_cuda_head_contrast});
  return contrast;
}

}  // namespace restorelcc_ext
