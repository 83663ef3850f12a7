// The gradients of comp_rows and bias on a CUDA device: how they are cut into blocks (a pure function, tested
// on the CPU), what the kernels are handed, and their launcher.
#pragma once

#include "cuda/launch.h"
#include "cuda/plan.h"

namespace restorelcc::cuda {

// A block sums kGradCompColumns columns, eight to a lane, over part of the rows, each warp every fourth batch
// of 32 rows. Sums of a group's columns are 1 KB of shared memory per warp, so that a block has room for a few
// groups: it passes over the rows of others, of which it reads the index alone.
constexpr int kGradCompColumns = 256;
constexpr int kGradCompWarps = 4;
constexpr int kGradCompGroups = 8;  // of a block: 36 KB with the sum of all rows, four blocks on an A100
// Parts of the rows are a multiple of this: whole batches for each warp.
constexpr int kGradCompRows = 32 * kGradCompWarps;

// Rows of sums that the kernels form: one per group that an index picks; and that of all rows, which is the
// gradient of the bias and, without an index, that of the one group.
struct GradCompSums {
  int64_t groups;
  bool all;

  int64_t count() const { return groups + (all ? 1 : 0); }
};

struct GradCompPlan {
  int64_t blocks;  // per part of the rows: tiles of columns x groups
  int splits;      // parts of the rows; above 1: summed by a second kernel from the workspace
  int rows_per_split;
};

inline GradCompSums grad_comp_sums(const rlcc_sparse_linear_grad_comp_params& p) {
  const bool indexed = p.comp_index != nullptr || p.groups > 1;  // without rows the index may be null
  return {indexed ? p.groups : 0, p.grad_bias != nullptr || (p.groups > 0 && !indexed)};
}

// Four blocks of four warps a multiprocessor, as long as a part's sums (8 bytes each, written and read again)
// stay an eighth of the 16-bit rows that it reads.
inline GradCompPlan plan_grad_comp(int64_t rows, int64_t columns, const GradCompSums& sums,
                                   const DeviceInfo& device) {
  GradCompPlan plan{};
  plan.blocks =
      divide_up(columns, kGradCompColumns) * std::max<int64_t>(divide_up(sums.groups, kGradCompGroups), 1);
  const int64_t least_rows = std::max<int64_t>(kGradCompRows, 32 * sums.count());
  int64_t splits = 1;
  while (splits < 64 && plan.blocks * splits < int64_t{4} * device.multiprocessors &&
         rows / (2 * splits) >= least_rows) {
    splits *= 2;
  }
  plan.rows_per_split =
      static_cast<int>(divide_up(divide_up(rows, static_cast<int>(splits)), kGradCompRows) * kGradCompRows);
  plan.splits = plan.rows_per_split == 0 ? 1 : static_cast<int>(divide_up(rows, plan.rows_per_split));
  return plan;
}

inline size_t grad_comp_workspace_bytes(const GradCompPlan& plan, int64_t columns, const GradCompSums& sums) {
  return plan.splits == 1 ? 0 : static_cast<size_t>(plan.splits * sums.count() * columns) * sizeof(float);
}

// The params are validated, device pointers, and ask for at least one sum of at least one column.
LaunchError launch_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& params,
                                           const GradCompPlan& plan, float* workspace, void* stream);

}  // namespace restorelcc::cuda
