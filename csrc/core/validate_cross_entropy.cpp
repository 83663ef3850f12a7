// linear_cross_entropy, its gradient, head_contrast: what must hold before a kernel may trust their parameters.
#include <cmath>

#include "core/validate_params.h"
#include "sparse/layout.h"

namespace restorelcc {
namespace {

Status validate_head(const rlcc_language_head& head) {
  RLCC_RETURN_IF_FAILED(validate_dtype("head.dtype", head.dtype));
  if (head.vocabulary < 0 || head.columns < 0) {
    return invalid("head.weight has a negative size, [", head.vocabulary, ", ", head.columns, "]");
  }
  RLCC_RETURN_IF_FAILED(validate_matrix("head.weight", head.weight, head.vocabulary, head.columns,
                                        head.weight_stride, head.dtype));
  return head.bias == nullptr ? Status{} : validate_array("head.bias", head.bias, head.vocabulary, 4);
}

// A label that is ignore_index is ignored, be it inside the vocabulary or not.
Status check_labels(const int64_t* labels, int64_t rows, int64_t vocabulary, int64_t ignore_index) {
  for (int64_t m = 0; m < rows; ++m) {
    if (labels[m] != ignore_index && (labels[m] < 0 || labels[m] >= vocabulary)) {
      return invalid("labels[", m, "] is ", labels[m], ", must be in [0, ", vocabulary,
                     "), the vocabulary, or ignore_index (", ignore_index, ")");
    }
  }
  return {};
}

// What both directions share: h [M, E], labels, and a gradient of h where one is asked for.
template <class Params>
Status validate_rows(const Params& p) {
  RLCC_RETURN_IF_FAILED(validate_head(p.head));
  RLCC_RETURN_IF_FAILED(validate_matrix("h", p.h, p.rows, p.head.columns, p.h_stride, p.head.dtype));
  RLCC_RETURN_IF_FAILED(validate_array("labels", p.labels, p.rows, 8));
  if (p.grad_h == nullptr) return {};
  return validate_matrix("grad_h", p.grad_h, p.rows, p.head.columns, p.grad_h_stride, p.head.dtype);
}

// h [G, M, E]: rows that do not overlap within a group; groups may, since they are only read.
Status validate_edited(const rlcc_head_contrast_params& p) {
  const int64_t columns = p.head.columns;
  int64_t rows = 0, group_span = 0, row_span = 0, elements = 0;
  if (p.groups < 0 || p.rows < 0) {
    return invalid("h has a negative size, [", p.groups, ", ", p.rows, ", ", columns, "]");
  }
  if (__builtin_mul_overflow(p.groups, p.rows, &rows)) {
    return invalid("h of [", p.groups, ", ", p.rows, ", ", columns, "] overflows 64 bits");
  }
  if (rows == 0 || columns == 0) return {};
  if (p.rows > 1 && p.h_stride < columns) {
    return invalid("h has row stride ", p.h_stride, ", less than its ", columns, " columns");
  }
  if (p.groups > 1 && p.group_stride < 0) return invalid("h has a negative group stride, ", p.group_stride);
  // A stride between fewer than two rows or groups means nothing.
  if ((p.groups > 1 && __builtin_mul_overflow(p.groups - 1, p.group_stride, &group_span)) ||
      (p.rows > 1 && __builtin_mul_overflow(p.rows - 1, p.h_stride, &row_span)) ||
      __builtin_add_overflow(group_span, row_span, &elements) ||
      __builtin_add_overflow(elements, columns, &elements)) {
    return invalid("h of [", p.groups, ", ", p.rows, ", ", columns, "] with strides ", p.group_stride, " and ",
                   p.h_stride, " overflows 64 bits");
  }
  return validate_array("h", p.h, elements, bytes_of(p.head.dtype));
}

Status validate_segments(const rlcc_head_contrast_params& p) {
  if (p.segment_count < 1) return invalid("segment_count is ", p.segment_count, ", must be at least 1");
  if (p.segments == nullptr) {
    if (p.segment_count == 1 || p.rows == 0) return {};
    return invalid("segments is null, but segment_count is ", p.segment_count, "; each row needs its segment");
  }
  return validate_array("segments", p.segments, p.rows, 8);
}

Status check_segments(const rlcc_head_contrast_params& p) {
  if (p.segments == nullptr) return {};
  for (int64_t m = 0; m < p.rows; ++m) {
    if (p.segments[m] >= p.segment_count) {
      return invalid("segments[", m, "] is ", p.segments[m], ", must be below segment_count, ", p.segment_count,
                     " (negative: in no segment)");
    }
  }
  return {};
}

Status check_weights(const float* weights, int64_t rows) {
  if (weights == nullptr) return {};
  for (int64_t m = 0; m < rows; ++m) {
    if (!std::isfinite(weights[m]) || weights[m] < 0) {
      return invalid("weights[", m, "] is ", weights[m], ", must be finite and at least 0");
    }
  }
  return {};
}

}  // namespace

Status validate_visible(const rlcc_linear_cross_entropy_params& p) {
  RLCC_RETURN_IF_FAILED(validate_rows(p));
  RLCC_RETURN_IF_FAILED(validate_array("nll", p.nll, p.rows, 4));
  if (p.lse != nullptr) RLCC_RETURN_IF_FAILED(validate_array("lse", p.lse, p.rows, 4));
  return validate_parallel(p.parallel);
}

Status validate_visible(const rlcc_linear_cross_entropy_backward_params& p) {
  RLCC_RETURN_IF_FAILED(validate_rows(p));
  RLCC_RETURN_IF_FAILED(validate_array("lse", p.lse, p.rows, 4));
  RLCC_RETURN_IF_FAILED(validate_array("grad_nll", p.grad_nll, p.rows, 4));
  if (p.grad_weight != nullptr) {
    RLCC_RETURN_IF_FAILED(validate_matrix("grad_weight", p.grad_weight, p.head.vocabulary, p.head.columns,
                                          p.grad_weight_stride, p.head.dtype));
  }
  if (p.grad_bias != nullptr) {
    RLCC_RETURN_IF_FAILED(validate_array("grad_bias", p.grad_bias, p.head.vocabulary, 4));
  }
  return validate_parallel(p.parallel);
}

Status validate_visible(const rlcc_head_contrast_params& p) {
  RLCC_RETURN_IF_FAILED(validate_head(p.head));
  RLCC_RETURN_IF_FAILED(validate_edited(p));
  RLCC_RETURN_IF_FAILED(validate_array("labels", p.labels, p.rows, 8));
  RLCC_RETURN_IF_FAILED(validate_array("base_nll", p.base_nll, p.rows, 4));
  RLCC_RETURN_IF_FAILED(validate_segments(p));
  if (p.weights != nullptr) RLCC_RETURN_IF_FAILED(validate_array("weights", p.weights, p.rows, 4));
  int64_t contrasts = 0;
  if (__builtin_mul_overflow(p.groups, p.segment_count, &contrasts)) {
    return invalid("contrast of [", p.groups, ", ", p.segment_count, "] overflows 64 bits");
  }
  RLCC_RETURN_IF_FAILED(validate_array("contrast", p.contrast, contrasts, 8));
  return validate_parallel(p.parallel);
}

Status validate(const rlcc_linear_cross_entropy_params& p) {
  RLCC_RETURN_IF_FAILED(validate_visible(p));
  return check_labels(p.labels, p.rows, p.head.vocabulary, p.ignore_index);
}

Status validate(const rlcc_linear_cross_entropy_backward_params& p) {
  RLCC_RETURN_IF_FAILED(validate_visible(p));
  return check_labels(p.labels, p.rows, p.head.vocabulary, p.ignore_index);
}

Status validate(const rlcc_head_contrast_params& p) {
  RLCC_RETURN_IF_FAILED(validate_visible(p));
  RLCC_RETURN_IF_FAILED(check_labels(p.labels, p.rows, p.head.vocabulary, p.ignore_index));
  RLCC_RETURN_IF_FAILED(check_segments(p));
  return check_weights(p.weights, p.rows);
}

}  // namespace restorelcc
