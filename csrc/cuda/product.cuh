// A dense matrix times the packed weight on tensor cores, the weight decoded tile by tile:
//
//   forward     out[m, n] = sum_k left[m, k] W[n, k]   (x Wᵀ)
//               a block walks along the columns of its rows of W
//
//   gradient    out[m, k] = sum_n left[m, n] W[n, k]   (grad_y W)
//               a block walks down the rows of its columns of W
//
// One loop serves both: the reduction goes kDepth at a time, and the decoded tile is [columns, depth] or
// [depth, columns] in storage. In each turn between two barriers a block queues the copies of a later step,
// decodes the next one and multiplies the present one; warps that share a scheduler do the last two in opposite
// order, so that tensor cores and integer units are both at work.
//
// Why no index of values along K in the forward pass: a block that walks a row from its beginning carries the
// number of values passed in a register per row, and a block of a split counts the mask of the columns before
// its part once (a ninth of the bytes that they have). The gradient's blocks enter each row in its middle: they
// read where from an index, u32 per 128 columns, that a kernel of one pass over the mask makes in the workspace
// (0.03 bytes a weight; the mask is 0.125).
#pragma once

#include <type_traits>

#include "cuda/tile_plan.h"
#include "cuda/warp_tile.cuh"
#include "cuda/weight_tile.cuh"

namespace restorelcc::cuda {

constexpr int kDepth = kStepDepth;  // half a mask word: at 64, nothing of the wide tile would fit into 99 KB
constexpr int kScaleSteps = RLCC_SCALE_COLUMNS / kDepth;

// ---- Where in W a thread stages its row next.

// The same row in each step, 32 columns on.
template <class W>
struct AlongColumns {
  const uint32_t* mask;
  const unsigned char* values;
  uint32_t position = 0, next = 0;
  int row, part;
  bool inside;

  __device__ __forceinline__ AlongColumns(const TileArguments& a, int first_row, int first_step, int steps) {
    row = static_cast<int>(threadIdx.x) / W::kRowLanes;
    part = static_cast<int>(threadIdx.x) % W::kRowLanes;
    const int n = first_row + row;
    inside = n < a.weight.rows;
    const int safe = inside ? n : 0;
    mask = a.weight.mask + safe * a.weight.words;
    values = static_cast<const unsigned char*>(a.weight.values) +
             (inside ? a.weight.row_offsets[n] : 0) * W::kValueBytes;
    if (inside) {
      for (int w = part; w < first_step; w += W::kRowLanes) position += static_cast<uint32_t>(__popc(mask[w]));
    }
#pragma unroll
    for (int lanes = 1; lanes < W::kRowLanes; lanes *= 2)
      position += __shfl_xor_sync(0xffffffffu, position, lanes);
    mask += first_step;
    if (inside && steps > 0) next = mask[0];
  }
  // Stages `step` and asks for the mask of the one after it, which is then there in time.
  __device__ __forceinline__ void stage(const TileArguments&, typename W::Stage& into, int step, int steps) {
    const uint32_t bits[1] = {next};
    next = inside && step + 1 < steps ? mask[step + 1] : 0;
    position = W::stage(into, row, part, bits, values, position);
  }
};

// Other rows in each step, the same columns.
template <class W>
struct DownRows {
  uint32_t bits[W::kWords];
  const unsigned char* values;
  uint32_t position;
  float scale = 0;
  int row, part, n, column;

  __device__ __forceinline__ DownRows(const TileArguments& a, int first_column, int first_step, int steps) {
    row = static_cast<int>(threadIdx.x) / W::kRowLanes;
    part = static_cast<int>(threadIdx.x) % W::kRowLanes;
    n = first_step * kDepth + row;
    column = first_column;
    load(a, steps > 0);
  }
  __device__ __forceinline__ void load(const TileArguments& a, bool wanted) {
    const Weight& w = a.weight;
#pragma unroll
    for (int i = 0; i < W::kWords; ++i) bits[i] = 0;
    position = 0;
    values = static_cast<const unsigned char*>(w.values);
    if (!wanted || n >= w.rows) return;
    const uint32_t* const mask = w.mask + n * w.words + column / 32;
    if (w.wide_mask) {
#pragma unroll
      for (int i = 0; i < W::kWords; i += 4) {
        const uint4 four = ptx::load_cached_16(mask + i);
        bits[i] = four.x;
        bits[i + 1] = four.y;
        bits[i + 2] = four.z;
        bits[i + 3] = four.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < W::kWords; ++i) {
        if (column / 32 + i < w.words) bits[i] = mask[i];
      }
    }
    position = w.index[static_cast<int64_t>(column / kIndexColumns) * w.rows + n];
    values += w.row_offsets[n] * W::kValueBytes;
    if constexpr (sizeof(W::Stage::scales) > 16) {
      scale = float_of_bf16(w.scales[n * w.scale_groups + column / RLCC_SCALE_COLUMNS]);
    }
  }
  __device__ __forceinline__ void stage(const TileArguments& a, typename W::Stage& into, int step, int steps) {
    if (sizeof(into.scales) > 16 && part == 0) into.scales[row] = scale;
    W::stage(into, row, part, bits, values, position);
    n += kDepth;
    load(a, step + 1 < steps);
  }
};

// ---- The kernel's body.

template <class Half, rlcc_dtype kValues, class T, bool kGradient>
struct Product {
  static constexpr int kPlanes = kGradient && kValues == RLCC_I8 ? 2 : 1;
  using W = WeightTile<Half, kValues, kGradient ? kDepth : T::kColumns, kGradient ? T::kColumns : kDepth,
                       T::kThreads, kPlanes>;
  using Walk = std::conditional_t<kGradient, DownRows<W>, AlongColumns<W>>;
  using Warp = WarpTile<T>;
  static constexpr int kTileColumns = kGradient ? T::kColumns : kDepth;  // in storage, of the decoded tile
  // The forward pass of int8 values sums integers of one group of columns and scales each such sum: exact
  // products, one multiplication per 128 columns and sum. The gradient's sums run across scales, so there W is
  // two bf16.
  static constexpr bool kScaled = kValues == RLCC_I8 && !kGradient;
  static_assert(!kGradient || T::kColumns % kIndexColumns == 0, "tiles begin where the index has an entry");

  struct alignas(16) Shared {
    uint16_t left[T::kStages][T::kRows * kDepth];
    uint16_t decoded[2][kPlanes * W::kElements];
    typename W::Stage staged[T::kStages];
  };
  static constexpr size_t kSlabBytes = T::kThreads / kLanes * Warp::kSlabFloats * sizeof(float);
  static constexpr size_t kSharedBytes = sizeof(Shared) > kSlabBytes ? sizeof(Shared) : kSlabBytes;

  // sums += scale group, group = 0
  static __device__ __forceinline__ void scale(typename Warp::Sums& sums, typename Warp::Sums& group,
                                               const Weight& w, int first_column, int scale_group) {
#pragma unroll
    for (int j = 0; j < Warp::kAcrossFragments; ++j) {
      float scales[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int n = first_column + Warp::first_column() + j * 8 + Warp::lane() % 4 * 2 + e;
        scales[e] = n < w.rows ? float_of_bf16(w.scales[n * w.scale_groups + scale_group]) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < Warp::kDownFragments; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = fmaf(group[i][j][e], scales[e % 2], sums[i][j][e]);
      }
    }
    Warp::clear(group);
  }

  static __device__ __forceinline__ void run(const TileArguments& a) {
    RLCC_DYNAMIC_SHARED(unsigned char, memory);
    Shared& shared = *reinterpret_cast<Shared*>(memory);
    const int first_row = static_cast<int>(blockIdx.x) * T::kRows;
    const int first_column = static_cast<int>(blockIdx.y) * T::kColumns;
    const int split = static_cast<int>(blockIdx.z);
    const int depth = kGradient ? a.weight.rows : a.weight.columns;
    const int first_step = split * a.steps_per_split;
    const int steps = max(min(a.steps_per_split, (depth + kDepth - 1) / kDepth - first_step), 0);

    Walk walk(a, first_column, first_step, steps);
    TileCopy<T::kRows, kDepth, T::kThreads> left(a.left, first_row, first_step * kDepth);
    const auto queue = [&](int step) {  // an empty group behind the last step keeps the count
      if (step < steps) {
        left.queue(shared.left[step % T::kStages], a.left);
        left.right();
        walk.stage(a, shared.staged[step % T::kStages], step, steps);
      }
      ptx::cp_async_commit();
    };
    const auto decode = [&](int step) {
      if (step < steps) W::decode(shared.staged[step % T::kStages], shared.decoded[step % 2]);
    };

    typename Warp::Sums sums, group;  // group: of int8 values alone
    Warp::clear(sums);
    if constexpr (kScaled) Warp::clear(group);
    typename Warp::Sums& running = kScaled ? group : sums;

#pragma unroll 1
    for (int step = 0; step < T::kStages - 1; ++step) queue(step);
    ptx::cp_async_wait_group<T::kStages - 2>();
    __syncthreads();
    decode(0);

    const bool decodes_first = Warp::warp() / 4 % 2 == 0;  // warps w and w + 4 share a scheduler
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
      ptx::cp_async_wait_group<T::kStages - 3>();
      __syncthreads();  // the next step has arrived, the present one is decoded, the one before is done with
      queue(step + T::kStages - 1);
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn) {
        if ((turn == 0) == decodes_first) {
          decode(step + 1);
        } else {
          Warp::template multiply<Half, kDepth, false, kDepth, kGradient, kTileColumns, kPlanes>(
              running, shared.left[step % T::kStages], shared.decoded[step % 2], W::kElements);
        }
      }
      if constexpr (kScaled) {
        if ((step + 1) % kScaleSteps == 0 || step + 1 == steps) {
          scale(sums, group, a.weight, first_column, (first_step + step) / kScaleSteps);
        }
      }
    }

    ptx::cp_async_wait_group<0>();
    __syncthreads();
    float* const slab = reinterpret_cast<float*>(memory) + Warp::warp() * Warp::kSlabFloats;
    Warp::write(sums, slab, [&](int row, int column, float (&eight)[8]) {
      store_sums<Half>(a.output, split, first_row + row, first_column + column, eight);
    });
  }
};

}  // namespace restorelcc::cuda
