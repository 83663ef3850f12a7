// linear_cross_entropy, its gradient and head_contrast: what a host can see of their parameters.
#include "core/validate_params.h"
#include "cuda/validate.h"

namespace restorelcc::cuda {
namespace {

// Rows, words and bytes of a row are counted in 32 bits on the device.
constexpr int64_t kMostRows = int64_t{1} << 30, kMostColumns = int64_t{1} << 28;

Status validate_sizes(const rlcc_language_head& head, int64_t rows) {
  if (rows <= kMostRows && head.vocabulary <= kMostRows && head.columns <= kMostColumns) return {};
  return failure(RLCC_UNSUPPORTED, "h of [", rows, ", ", head.columns, "] and head.weight of [",
                 head.vocabulary, ", ", head.columns,
                 "] are too large; at most 2^30 rows of at most 2^28 columns each");
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
  if (params.groups > kMostRows)
    return failure(RLCC_UNSUPPORTED, "groups is ", params.groups, ", at most 2^30");
  if (params.groups * params.segment_count > INT32_MAX) {
    return failure(RLCC_UNSUPPORTED, "contrast of [", params.groups, ", ", params.segment_count,
                   "] is too large; at most 2^31 - 1 elements");
  }
  return validate_sizes(params.head, params.groups * params.rows);
}

}  // namespace restorelcc::cuda
