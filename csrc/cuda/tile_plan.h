// How sparse_linear with many rows, and its gradients, are cut into tiles: pure functions, tested on the CPU.
//
// What a step of 32 along the reduction costs a multiprocessor, for an output tile of R x C, on an A100 (1024
// fused multiply-adds of bf16 a clock, 4 instructions a clock, 128 bytes of shared memory a clock):
//
//                        256 x 128    128 x 64    64 x 64
//   tensor cores               1024         256        128   R C 32 / 1024
//   decoding W, issue           220         110        110   32 C weights, 7 lane-instructions each
//   the rest, issue             420         120         60   copies, ldmatrix, mma
//   shared memory               900         330        220   fragments by ldmatrix, decoding, copies
//   bytes of W, of x       4.6k, 16k    2.3k, 8k   2.3k, 4k  at 50 %, bf16; from L2 mostly
//
// So the tall tile hides the decoding behind the tensor cores and the small one does not, and the tall one wins
// as soon as its blocks fill the device. On an H100 mma.sync reaches about 60 % of the tensor cores (the rest
// needs wgmma, which reads W from shared memory too, so that the same decoding would feed it): 840 instead of
// 1024. With M = 17 .. 64 each weight (1.125 bytes) meets at most 64 rows: 57 multiply-adds a byte, so memory
// binds on all of them, and what counts is bytes under way: four blocks of 64 x 64 with two steps each, 18 KB
// of values and x.
#pragma once

#include "cuda/plan.h"
#include "cuda/tile_arguments.h"

namespace restorelcc::cuda {

enum class TileShape { k256x128, k128x64, k64x128, k64x64, k128x128 };

constexpr int tile_rows(TileShape shape) {
  return shape == TileShape::k256x128                                  ? 256
         : shape == TileShape::k128x64 || shape == TileShape::k128x128 ? 128
                                                                       : 64;
}
constexpr int tile_columns(TileShape shape) {
  return shape == TileShape::k64x64 || shape == TileShape::k128x64 ? 64 : 128;
}

// Of a block; 99 KB is what sm_86 and sm_89 give.
constexpr size_t kTileSharedBytes = 99 * 1024;
// Steps of a split are a multiple of this: 128 columns, so that a group of int8 values is in one split.
constexpr int kSplitSteps = 4;
constexpr int kStepDepth = 32;
constexpr int64_t kMostTilesAcross = 65535;  // gridDim.y

struct TilePlan {
  bool tensor_cores;  // else: plain fp32 multiply-adds
  TileShape tile;
  int splits;           // parts of the reduction; above 1: summed by a second kernel from the workspace
  int steps_per_split;  // of kStepDepth
};

// ---- Which kernel. Operands of the tensor cores are 16 bits wide, and a product of theirs must be exact for
// the budget of the oracle (fp32 sums of exact products) to hold. So W must be exact in x's type: values of x's
// own dtype; int8 values as integers, the sums scaled per 128 columns. The gradient for x sums across scales:
// int8 times a bf16 scale has 15 bits, exactly two bf16, at twice the products; two fp16 have too short a
// range. Mixed 16-bit types, fp32 x and fp32 values go by plain fp32 multiply-adds: 3 x TF32 would need a third
// of the tensor cores' rate and two more kernels.
constexpr bool is_half(rlcc_dtype dtype) { return dtype == RLCC_BF16 || dtype == RLCC_F16; }
constexpr bool forward_on_tensor_cores(rlcc_dtype x, rlcc_dtype values) {
  return is_half(x) && (values == x || values == RLCC_I8);
}
constexpr bool grad_x_on_tensor_cores(rlcc_dtype grad_y, rlcc_dtype values) {
  return is_half(grad_y) && (values == grad_y || (values == RLCC_I8 && grad_y == RLCC_BF16));
}
constexpr bool grad_values_on_tensor_cores(rlcc_dtype x) { return is_half(x); }

inline int64_t tiles_of(TileShape shape, int64_t rows, int64_t columns) {
  return divide_up(rows, tile_rows(shape)) * divide_up(columns, tile_columns(shape));
}

// Blocks that a multiprocessor wants at a time: one of the tall tile fills its shared memory; the others are
// there to hide each other's latency.
constexpr int wanted_blocks(TileShape shape) { return shape == TileShape::k256x128 ? 1 : 2; }

// Parts of the reduction: as many as fill the device, none shorter than 16 steps (512 columns: below that a
// block's start and its partial sums, 8 bytes each of traffic, cost more than the parallelism saves).
inline void split(TilePlan& plan, int64_t tiles, int64_t depth, const DeviceInfo& device) {
  const int64_t steps = std::max<int64_t>(divide_up(depth, kStepDepth), 1);
  int64_t splits = 1;
  const int64_t wanted = int64_t{wanted_blocks(plan.tile)} * device.multiprocessors;
  while (splits < 64 && tiles * splits < wanted && steps / (2 * splits) >= 16) splits *= 2;
  plan.steps_per_split = static_cast<int>(divide_up(divide_up(steps, splits), kSplitSteps) * kSplitSteps);
  plan.splits = static_cast<int>(divide_up(steps, plan.steps_per_split));
}

// Clocks of the table above per step and block, and how often a multiprocessor has to work one off.
inline int64_t tile_clocks(TileShape shape, int64_t rows, int64_t columns, const DeviceInfo& device) {
  const int64_t tensor_clocks = int64_t{tile_rows(shape)} * tile_columns(shape) / 32;
  const int64_t decoding = tile_columns(shape) * 3 / 2;
  const bool hidden = shape == TileShape::k256x128;
  return divide_up(tiles_of(shape, rows, columns), device.multiprocessors) *
         (tensor_clocks + (hidden ? decoding / 4 : decoding));
}

// out[rows, columns], summed over depth.
inline TilePlan plan_product(TileShape large, TileShape small, int64_t rows, int64_t columns, int64_t depth,
                             const DeviceInfo& device) {
  TilePlan plan{true, small, 1, 0};
  if (rows > tile_rows(small) &&
      tile_clocks(large, rows, columns, device) <= tile_clocks(small, rows, columns, device)) {
    plan.tile = large;
  }
  split(plan, tiles_of(plan.tile, rows, columns), depth, device);
  return plan;
}
inline TilePlan plan_plain(int64_t rows, int64_t columns, int64_t depth, const DeviceInfo& device) {
  TilePlan plan{false, TileShape::k64x64, 1, 0};
  split(plan, tiles_of(plan.tile, rows, columns), depth, device);
  return plan;
}

inline TilePlan plan_forward(int64_t rows, const rlcc_packed_weight& w, rlcc_dtype x,
                             const DeviceInfo& device) {
  if (!forward_on_tensor_cores(x, w.dtype)) return plan_plain(rows, w.rows, w.columns, device);
  const TileShape large = w.dtype == RLCC_I8 ? TileShape::k128x64 : TileShape::k256x128;
  return plan_product(large, TileShape::k64x64, rows, w.rows, w.columns, device);
}
inline TilePlan plan_grad_x(int64_t rows, const rlcc_packed_weight& w, rlcc_dtype grad_y,
                            const DeviceInfo& device) {
  if (!grad_x_on_tensor_cores(grad_y, w.dtype)) return plan_plain(rows, w.columns, w.rows, device);
  const TileShape large = w.dtype == RLCC_I8 ? TileShape::k128x128 : TileShape::k256x128;
  return plan_product(large, TileShape::k64x128, rows, w.columns, w.rows, device);
}
// Of W's own shape: tiles enough for any layer, and never split.
inline TilePlan plan_grad_values(int64_t rows, rlcc_dtype x) {
  const bool tensor_cores = grad_values_on_tensor_cores(x);
  return {tensor_cores, tensor_cores ? TileShape::k128x128 : TileShape::k64x64, 1,
          static_cast<int>(divide_up(rows, kStepDepth))};
}
// Wᵀ is the left operand there: tiles of [outputs, rows].
inline TilePlan plan_2to4(int64_t rows, int64_t outputs, int64_t columns, const DeviceInfo& device) {
  return plan_product(TileShape::k128x128, TileShape::k64x64, outputs, rows, columns, device);
}

inline size_t partials_bytes(const TilePlan& plan, int64_t rows, int64_t columns) {
  if (plan.splits == 1) return 0;
  return static_cast<size_t>(divide_up(plan.splits * rows * columns * 4, 16)) * 16;
}
inline size_t index_bytes(int64_t outputs, int64_t columns) {
  return static_cast<size_t>(divide_up(divide_up(columns, kIndexColumns) * outputs * 4, 16)) * 16;
}

}  // namespace restorelcc::cuda
