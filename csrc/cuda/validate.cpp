#include "cuda/validate.h"

#include <algorithm>

#include "core/validate_params.h"
#include "cuda/grad_comp.h"
#include "cuda/head_moments.h"
#include "cuda/plan.h"
#include "cuda/tile_plan.h"
#include "sparse/layout.h"

namespace restorelcc::cuda {
namespace {

constexpr int64_t kMostBlocks = INT32_MAX;  // of a grid's first dimension

Status validate_weight(const rlcc_packed_weight& weight) {
  if (weight.trusted != 1) {
    return invalid(
        "weight.trusted is ", weight.trusted,
        ", must be 1 for a weight in device memory; check it with rlcc_packed_validate before the upload");
  }
  RLCC_RETURN_IF_FAILED(validate_shape(weight));
  if (weight.columns > kMostColumns || weight.rows > kMostSize) {
    return too_large("weight has ", weight.rows, " rows of ", weight.columns,
                     " columns, the CUDA kernels take at most ", kMostSize, " of ", kMostColumns);
  }
  if (reinterpret_cast<uintptr_t>(weight.values) % RLCC_VALUE_ALIGNMENT_BYTES != 0) {
    return invalid("weight.values is not aligned to ", RLCC_VALUE_ALIGNMENT_BYTES, " bytes");
  }
  return {};
}

}  // namespace

Status validate(const rlcc_sparse_linear_params& params) {
  RLCC_RETURN_IF_FAILED(validate_weight(params.weight));
  RLCC_RETURN_IF_FAILED(
      validate_array("comp_index", params.comp_index, params.comp_index != nullptr ? params.x_rows : 0, 8));
  rlcc_sparse_linear_params visible = params;
  visible.parallel = nullptr;    // not looked at
  visible.comp_index = nullptr;  // its entries are not for the host; what it stands for is checked below
  if (params.comp_index != nullptr && params.groups > 1) {
    RLCC_RETURN_IF_FAILED(validate_matrix("comp_rows", params.comp_rows, params.groups, params.weight.rows,
                                          params.weight.rows, RLCC_F32));
    visible.groups = 1;
  }
  if (params.comp_index != nullptr && params.groups == 0) {
    return invalid("comp_index is set, but groups is 0");
  }
  return restorelcc::validate(visible);
}

Status validate(const rlcc_head_moments_params& params) {
  rlcc_head_moments_params visible = params;
  visible.parallel = nullptr;  // not looked at
  RLCC_RETURN_IF_FAILED(restorelcc::validate(visible));
  constexpr int64_t kMostHeadDim = int64_t{1} << 20;  // of which one gram takes 8 TiB
  if (params.head_dim > kMostHeadDim) {
    return too_large("head_dim is ", params.head_dim, ", the CUDA kernels take at most ", kMostHeadDim);
  }
  const int64_t tiles = plan_head_moments(params.tokens, 1, params.head_dim).tiles;
  if (params.heads > 0 && tiles > kMostBlocks / params.heads) {
    return too_large("gram of [", params.heads, ", ", params.head_dim, ", ", params.head_dim,
                     "] takes more than ", kMostBlocks, " blocks of threads; use fewer heads per call");
  }
  return {};
}

Status validate(const rlcc_sparse_linear_grad_x_params& params) {
  RLCC_RETURN_IF_FAILED(validate_weight(params.weight));
  rlcc_sparse_linear_grad_x_params visible = params;
  visible.parallel = nullptr;
  return restorelcc::validate(visible);
}

Status validate(const rlcc_sparse_linear_grad_values_params& params) {
  RLCC_RETURN_IF_FAILED(validate_weight(params.weight));
  rlcc_sparse_linear_grad_values_params visible = params;
  visible.parallel = nullptr;
  return restorelcc::validate(visible);
}

Status validate(const rlcc_sparse_linear_grad_comp_params& params) {
  const bool indexed = params.comp_index != nullptr;
  RLCC_RETURN_IF_FAILED(validate_array("comp_index", params.comp_index, indexed ? params.rows : 0, 8));
  if (indexed && params.groups == 0) return invalid("comp_index is set, but groups is 0");
  rlcc_sparse_linear_grad_comp_params visible = params;
  visible.parallel = nullptr;
  visible.comp_index = nullptr;
  if (indexed && params.groups > 1) {
    RLCC_RETURN_IF_FAILED(validate_matrix("grad_comp_rows", params.grad_comp_rows, params.groups,
                                          params.columns, params.columns, RLCC_F32));
    visible.groups = 1;
  }
  RLCC_RETURN_IF_FAILED(restorelcc::validate(visible));
  if (std::max({params.rows, params.columns, params.groups}) > kMostSize) {
    return too_large("rows, columns and groups are ", params.rows, ", ", params.columns, " and ", params.groups,
                     ", the CUDA kernels take at most ", kMostSize);
  }
  const int64_t tiles = divide_up(params.columns, kGradCompColumns);
  if (tiles > 0 && divide_up(params.groups, kGradCompGroups) > kMostBlocks / tiles) {
    return too_large("grad_comp_rows of [", params.groups, ", ", params.columns, "] takes more than ",
                     kMostBlocks, " blocks of threads; use fewer groups per call");
  }
  return {};
}

Status validate_tile_sizes(int64_t rows, int64_t columns, int64_t depth) {
  if (rows > kMostSize || columns > kMostSize || depth > kMostSize) {
    return too_large("sizes are ", rows, ", ", columns, " and ", depth, ", the CUDA kernels take at most ",
                     kMostSize);
  }
  constexpr int64_t kMostAcross = kMostTilesAcross * 64;  // a tile has at least 64 columns
  if (columns <= kMostAcross) return {};
  return too_large(columns, " columns of the output, the CUDA kernels take at most ", kMostAcross);
}

Status validate_workspace(const void* workspace, size_t bytes, size_t needed) {
  if (needed == 0) return {};
  if (workspace == nullptr || bytes < needed) {
    return invalid("workspace has ", workspace == nullptr ? 0 : bytes, " bytes, needs ", needed,
                   " (ask the op's _workspace function)");
  }
  if (reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment != 0) {
    return invalid("workspace is not aligned to ", kWorkspaceAlignment, " bytes");
  }
  return {};
}

}  // namespace restorelcc::cuda
