// linear_cross_entropy, its gradient and head_contrast: what a host can see of their parameters.
#include "core/validate_params.h"
#include "cuda/validate.h"

namespace restorelcc::cuda {
namespace {

// Rows, words, bytes of a row, and steps over a part of W are counted in 32 bits on the device; 64 columns and
// more of the gradient of h are a block of the grid's second dimension.
constexpr int64_t kMostRows = int64_t{1} << 30, kMostColumns = int64_t{65535} * 64;
constexpr int64_t kMostWeights = int64_t{1} << 41;

Status validate_sizes(const rlcc_language_head& head, int64_t rows) {
  const bool countable = head.columns <= 0 || head.vocabulary <= kMostWeights / head.columns;
  if (rows <= kMostRows && head.vocabulary <= kMostRows && head.columns <= kMostColumns && countable) return {};
  return too_large("h of [", rows, ", ", head.columns, "] and head.weight of [", head.vocabulary, ", ",
                   head.columns, "] are too large; at most 2^30 rows of at most ", kMostColumns,
                   " columns each, and 2^41 weights");
}

// `parallel` is not looked at.
template <class Params>
Status validate_without_parallel(Params params) {
  params.parallel = nullptr;
  return validate_visible(params);
}

}  // namespace

Status validate(const rlcc_linear_cross_entropy_params& params) {
  RLCC_RETURN_IF_FAILED(validate_without_parallel(params));
  return validate_sizes(params.head, params.rows);
}

Status validate(const rlcc_linear_cross_entropy_backward_params& params) {
  RLCC_RETURN_IF_FAILED(validate_without_parallel(params));
  return validate_sizes(params.head, params.rows);
}

Status validate(const rlcc_head_contrast_params& params) {
  RLCC_RETURN_IF_FAILED(validate_without_parallel(params));
  if (params.groups > kMostRows) return too_large("groups is ", params.groups, ", at most 2^30");
  if (params.groups * params.segment_count > INT32_MAX) {
    return too_large("contrast of [", params.groups, ", ", params.segment_count,
                     "] is too large; at most 2^31 - 1 elements");
  }
  return validate_sizes(params.head, params.groups * params.rows);
}

}  // namespace restorelcc::cuda
