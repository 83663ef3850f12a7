// How linear_cross_entropy and head_contrast are cut into blocks: pure functions, tested on the CPU.
//
// FLOPs and bytes, M counted rows, of E columns, V words, 2 bytes an element:
//
//   forward               2 M V E; logits live in registers alone. W is read once per row of blocks, h once per
//   column forward with grad_h   4 M V E: chunk by chunk of the vocabulary, logits, then exp(logits - a
//   maximum) W. (The loss
//                         first, then the gradient from lse, would form the logits twice: 6 M V E.) grad_h's
//                         sums [M, E] do not fit on a multiprocessor beside the tiles (2 MiB for 128 rows of
//                         4096), so the exponentials of a chunk go through memory in 16 bits: 4 M V bytes,
//                         mostly of L2
//   backward              6 M V E for both gradients from one chunk of d loss / d logits, the least without
//   keeping
//                         [M, V]; a kernel per gradient that forms its own logits would need 8 M V E
#pragma once

#include "cuda/plan.h"
#include "sparse/layout.h"

namespace restorelcc::cuda {

// Tiles of logits, rows x columns. fp32 heads are multiplied by FMAs, whose tile is what registers allow.
// 16-bit ones by tensor cores: up to 16 rows W's bytes bind, and a wider tile would only multiply zeros; from
// there on the tile is 128 rows, whose 64 FLOPs per byte of shared tile keep the tensor cores fed.
constexpr int kLossFewRows = 16;
inline int loss_tile_rows(rlcc_dtype dtype, int64_t rows) {
  return dtype == RLCC_F32 ? 64 : rows <= kLossFewRows ? kLossFewRows : 128;
}
inline int loss_tile_columns(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 64 : 128; }

// Blocks that run at once, by registers and shared memory: tile_product.cuh's kBlocks. (Of the forward pass
// without a gradient, whose states lie beside the stages, 100 KiB as on sm_86 and sm_89 hold one wide block
// rather than two: twice the waves, the same choice.)
inline int64_t loss_slots(int tile_rows, const DeviceInfo& device) {
  return int64_t{tile_rows == kLossFewRows ? 5 : 2} * device.multiprocessors;
}

// Parts that `work` units, which a block does one after the other, are cut into where `blocks` blocks exist
// without: as many as make the longest sequence of units on a multiprocessor shortest, each part costing a
// quarter of a unit to start and to add up.
inline int parts_of(int64_t blocks, int64_t work, int64_t most, int64_t slots) {
  int64_t best = 1, best_cost = INT64_MAX;
  for (int64_t parts = 1; parts <= std::min(work, most); ++parts) {
    const int64_t cost = divide_up(blocks * parts, slots) * (4 * divide_up(work, parts) + 1);
    if (cost < best_cost) {
      best = parts;
      best_cost = cost;
    }
  }
  return static_cast<int>(best);
}

// Parts of the vocabulary with a state (maximum, sum) of their own, 8 bytes per row; merged by a second kernel.
constexpr int64_t kLossMostSplits = 1024;

// Columns of the vocabulary whose exponentials or gradients are kept at once: about 64 MiB of them. grad_h's
// fp32 sums are read and written once a chunk, 8 M E bytes for 2 M E columns FLOPs: at 2048 columns 512 FLOPs
// per byte, above what any device needs, so that is the least. At most 16384: for few rows, that many columns
// give a block to each multiprocessor, and more would be [M, V].
constexpr int64_t kLossChunkBytes = 64 << 20, kLossLeastChunk = 2048, kLossMostChunk = 16384;
inline int64_t loss_chunk_columns(rlcc_dtype dtype, int64_t rows, int64_t vocabulary) {
  const int64_t wanted = kLossChunkBytes / (std::max<int64_t>(rows, 1) * bytes_of(dtype));
  const int64_t columns = std::min(std::min(std::max(wanted, kLossLeastChunk), kLossMostChunk), vocabulary);
  const int64_t tile = loss_tile_columns(dtype);
  return std::max<int64_t>(divide_up(columns, tile), 1) * tile;
}

// Parts of a chunk whose products with W have sums of their own, each [M, E] in fp32; only few rows need them.
constexpr int64_t kLossMostProductSplits = 16;

struct LossPlan {
  int tile_rows, tile_columns;
  int splits;             // of the vocabulary: forward without a gradient
  int64_t chunk_columns;  // a multiple of tile_columns
  int product_splits;     // of a chunk, where it is multiplied by W
};

// rows: that may count, of all groups.
inline LossPlan plan_loss(rlcc_dtype dtype, int64_t rows, int64_t vocabulary, int64_t columns,
                          const DeviceInfo& device) {
  LossPlan plan{};
  plan.tile_rows = loss_tile_rows(dtype, rows);
  plan.tile_columns = loss_tile_columns(dtype);
  const int64_t row_blocks = std::max<int64_t>(divide_up(rows, plan.tile_rows), 1);
  const int64_t column_blocks = std::max<int64_t>(divide_up(columns, plan.tile_columns), 1);
  const int64_t slots = loss_slots(plan.tile_rows, device);
  plan.splits = parts_of(row_blocks, divide_up(vocabulary, plan.tile_columns), kLossMostSplits, slots);
  plan.chunk_columns = loss_chunk_columns(dtype, rows, vocabulary);
  plan.product_splits = parts_of(row_blocks * column_blocks, plan.chunk_columns / plan.tile_columns,
                                 kLossMostProductSplits, slots);
  return plan;
}

}  // namespace restorelcc::cuda
