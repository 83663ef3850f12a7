// head_moments on a CUDA device: how it is cut into blocks (a pure function, tested on the CPU), and its
// launcher.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cuda/launch.h"
#include "restorelcc/params.h"

namespace restorelcc::cuda {

// A block of threads sums one kGramTile x kGramTile tile of the Gram matrix of one head over some of the
// tokens. 64: the usual head sizes 64 and 128 are one and three tiles on or below the diagonal, and two slabs
// of 48 tokens fit in the 48 KB of shared memory that need no asking, with room for three blocks on a
// multiprocessor of 100 KB.
constexpr int kGramTile = 64;
// Products that are summed in plain fp32: 12 roundings of the sum and 2 of the differences are at most
// 14 * 2^-24 = 8.3e-7 of sum |dz_i dz_j|, even if all go the same way. 16 could pass 1e-6; fewer cost more (see
// add_to_pair).
constexpr int kGramRun = 12;
constexpr int kGramSlab = 4 * kGramRun;  // tokens in shared memory at a time

struct HeadMomentsPlan {
  int64_t tile_rows;  // ceil(D / kGramTile)
  int64_t tiles;      // on or below the diagonal, per head
  int64_t chunks;     // parts of the tokens; above 1, summed by a second kernel from the workspace
};

// Enough blocks to fill any device of today about twice (3 resident blocks x 132 multiprocessors x 2.6), not
// more: each chunk costs 32 KB of workspace per tile. Of the problem alone, so that all devices give the same
// bits.
constexpr int64_t kGramBlocksWanted = 1024;

inline HeadMomentsPlan plan_head_moments(int64_t tokens, int64_t heads, int64_t head_dim) {
  HeadMomentsPlan plan{};
  plan.tile_rows = (head_dim + kGramTile - 1) / kGramTile;
  plan.tiles = plan.tile_rows * (plan.tile_rows + 1) / 2;
  const int64_t slabs = std::max<int64_t>((tokens + kGramSlab - 1) / kGramSlab, 1);
  const int64_t blocks = std::max<int64_t>(heads * plan.tiles, 1);
  plan.chunks = std::min(slabs, std::max<int64_t>(kGramBlocksWanted / blocks, 1));
  return plan;
}

// What a head's part of a chunk is in the workspace: its tiles, then its totals; doubles.
inline int64_t head_moments_partial(const HeadMomentsPlan& plan) {
  return plan.tiles * kGramTile * kGramTile + plan.tile_rows * kGramTile;
}
inline size_t head_moments_workspace_bytes(const HeadMomentsPlan& plan, int64_t heads) {
  if (plan.chunks == 1) return 0;
  return static_cast<size_t>(plan.chunks * heads * head_moments_partial(plan)) * sizeof(double);
}

// The params are validated, device pointers, and not empty (no token, head or column: nothing to launch).
LaunchError launch_head_moments(const rlcc_head_moments_params& params, const HeadMomentsPlan& plan,
                                double* workspace, void* stream);

}  // namespace restorelcc::cuda
