// sparse_linear for many rows, and its gradients, in plain fp32 multiply-adds: whatever the tensor cores cannot
// do exactly (tile_plan.h says what). One kernel, a dense tile of 64 x 64 sums out of two tiles in shared
// memory:
//
//   forward       left = x, right = Wᵀ, summed over columns of W
//   grad_x        left = grad_y, right = W, summed over rows of W
//   grad_values   left = grad_yᵀ, right = x, summed over rows of x; the survivors are kept
//
// Elements are widened to fp32 on the way; dtypes are looked at in run time, outside of the inner loop. The
// next step's elements wait in registers while the present one is multiplied. Not a fast kernel: 16
// multiply-adds for two 16-byte loads from shared memory, and values gathered two or four bytes at a time.
#include "cuda/output.cuh"
#include "cuda/sparse_linear_tiles.h"
#include "cuda/survivors.cuh"

namespace restorelcc::cuda {
namespace {

enum class Op { kForward, kGradX, kGradValues };

constexpr int kTile = 64, kThreads = 256, kWarps = kThreads / 32;
constexpr int kEach = 4;                               // a thread sums kEach x kEach
constexpr int kLoads = kTile * kStepDepth / kThreads;  // elements of each tile per thread and step
constexpr int kStride = kTile + 4;  // rows stay aligned to 16 bytes; writes by column meet fourfold

struct Arguments {
  Operand left, right;  // right: of grad_values alone
  Weight weight;
  Output output;  // of grad_values: not looked at
  void* grad_values;
  int steps_per_split;
};

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }

__device__ __forceinline__ float element_or_zero(const Operand& o, int row, int column) {
  if (row >= o.rows || column >= o.columns) return 0.0f;
  return load_element(o.data, o.dtype, row * o.stride + column);
}

// [depth, kTile] from a matrix that is stored as [rows, depth]: a lane per depth.
struct DepthAcross {
  float next[kLoads];
  __device__ __forceinline__ void load(const Operand& o, int first, int depth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) next[i] = element_or_zero(o, first + warp() + kWarps * i, depth + lane());
  }
  __device__ __forceinline__ void store(float (*tile)[kStride]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) tile[lane()][warp() + kWarps * i] = next[i];
  }
};

// The same from one that is stored as [depth, columns]: a lane per column, and its half.
struct DepthDown {
  float next[kLoads];
  __device__ __forceinline__ void load(const Operand& o, int first, int depth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      next[i] = element_or_zero(o, depth + warp() + kWarps * (i / 2), first + lane() + 32 * (i % 2));
    }
  }
  __device__ __forceinline__ void store(float (*tile)[kStride]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) tile[warp() + kWarps * (i / 2)][lane() + 32 * (i % 2)] = next[i];
  }
};

// W[n, 32 word + lane]; `position`: survivors of the row before these columns, and, in the end, after them.
__device__ __forceinline__ float weight_element(const Weight& w, int n, int word, uint32_t* position) {
  if (n >= w.rows || word >= w.words) return 0.0f;
  const uint32_t bits = w.mask[n * w.words + word];
  const uint32_t at = *position + static_cast<uint32_t>(__popc(bits & ((1u << lane()) - 1)));
  *position += static_cast<uint32_t>(__popc(bits));
  if ((bits >> lane() & 1) == 0) return 0.0f;
  const float value = load_value(w.values, w.dtype, w.row_offsets[n] + at);
  if (w.dtype != RLCC_I8) return value;
  return value * float_of_bf16(w.scales[n * w.scale_groups + word / (RLCC_SCALE_COLUMNS / 32)]);
}

// Wᵀ [columns of W, rows of W]: each row is walked along from where the split begins.
struct WeightAcross {
  float next[kLoads];
  uint32_t position[kLoads];
  __device__ __forceinline__ WeightAcross(const Arguments& a, int first, int depth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int n = first + warp() + kWarps * i;
      uint32_t before = 0;
      for (int word = lane(); word < depth / 32 && n < a.weight.rows; word += 32) {
        before += static_cast<uint32_t>(__popc(a.weight.mask[n * a.weight.words + word]));
      }
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) before += __shfl_xor_sync(0xffffffffu, before, lanes);
      position[i] = before;
    }
  }
  __device__ __forceinline__ void load(const Arguments& a, int first, int depth) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      next[i] = weight_element(a.weight, first + warp() + kWarps * i, depth / 32, &position[i]);
    }
  }
  __device__ __forceinline__ void store(float (*tile)[kStride]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) tile[lane()][warp() + kWarps * i] = next[i];
  }
};

// W [rows of W, columns of W]: each row is entered in its middle.
struct WeightDown {
  float next[kLoads];
  __device__ __forceinline__ WeightDown(const Arguments&, int, int) {}
  __device__ __forceinline__ void load(const Arguments& a, int first, int depth) {
    const Weight& w = a.weight;
#pragma unroll
    for (int i = 0; i < kLoads; i += 2) {
      const int n = depth + warp() + kWarps * (i / 2), entry = first / kIndexColumns;
      uint32_t position = 0;
      if (n < w.rows) {
        position = w.index[static_cast<int64_t>(entry) * w.rows + n];
        for (int word = entry * (kIndexColumns / 32); word < first / 32; ++word) {
          position += static_cast<uint32_t>(__popc(w.mask[n * w.words + word]));
        }
      }
      next[i] = weight_element(w, n, first / 32, &position);
      next[i + 1] = weight_element(w, n, first / 32 + 1, &position);
    }
  }
  __device__ __forceinline__ void store(float (*tile)[kStride]) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) tile[warp() + kWarps * (i / 2)][lane() + 32 * (i % 2)] = next[i];
  }
};

struct DenseRight : DepthDown {
  __device__ __forceinline__ DenseRight(const Arguments&, int, int) {}
  __device__ __forceinline__ void load(const Arguments& a, int first, int depth) {
    DepthDown::load(a.right, first, depth);
  }
};

template <Op kOp>
__global__ void __launch_bounds__(kThreads, 3) sparse_linear_plain(const __grid_constant__ Arguments a) {
  using Left = std::conditional_t<kOp == Op::kGradValues, DepthDown, DepthAcross>;
  using Right = std::conditional_t<kOp == Op::kForward, WeightAcross,
                                   std::conditional_t<kOp == Op::kGradX, WeightDown, DenseRight>>;
  RLCC_SHARED(float, left_tile, kStepDepth* kStride);
  RLCC_SHARED(float, right_tile, kStepDepth* kStride);
  float (*const left_rows)[kStride] = reinterpret_cast<float (*)[kStride]>(left_tile);
  float (*const right_rows)[kStride] = reinterpret_cast<float (*)[kStride]>(right_tile);

  const int first_row = static_cast<int>(blockIdx.x) * kTile,
            first_column = static_cast<int>(blockIdx.y) * kTile;
  const int depth = kOp == Op::kForward ? a.weight.columns : kOp == Op::kGradX ? a.weight.rows : a.left.rows;
  const int begin = static_cast<int>(blockIdx.z) * a.steps_per_split * kStepDepth;
  const int end = min(begin + a.steps_per_split * kStepDepth, depth);
  const int row = static_cast<int>(threadIdx.x) / 16 * kEach,
            column = static_cast<int>(threadIdx.x) % 16 * kEach;

  float sums[kEach][kEach] = {};
  Left left;
  Right right(a, first_column, begin);
  if (begin < end) {
    left.load(a.left, first_row, begin);
    right.load(a, first_column, begin);
  }
#pragma unroll 1
  for (int at = begin; at < end; at += kStepDepth) {
    __syncthreads();  // the step before is done with
    left.store(left_rows);
    right.store(right_rows);
    __syncthreads();
    if (at + kStepDepth < end) {
      left.load(a.left, first_row, at + kStepDepth);
      right.load(a, first_column, at + kStepDepth);
    }
#pragma unroll 8
    for (int d = 0; d < kStepDepth; ++d) {
      const float4 l = *reinterpret_cast<const float4*>(&left_rows[d][row]);
      const float4 r = *reinterpret_cast<const float4*>(&right_rows[d][column]);
      const float lefts[4] = {l.x, l.y, l.z, l.w}, rights[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[i][j] = fmaf(lefts[i], rights[j], sums[i][j]);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int m = first_row + row + i, n = first_column + column;
    if constexpr (kOp == Op::kGradValues) {
      store_survivors(a.weight, a.grad_values, m, n, sums[i]);
    } else {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (m < a.output.rows && n + j < a.output.columns) {
          store_sum(a.output, static_cast<int>(blockIdx.z), m, n + j, sums[i][j]);
        }
      }
    }
  }
}

Arguments arguments_of(const TileArguments& a) {
  return {a.left, {}, a.weight, a.output, nullptr, a.steps_per_split};
}

}  // namespace

LaunchError launch_sparse_linear_plain(const TileArguments& a, const TilePlan& plan, void* stream) {
  return launch(sparse_linear_plain<Op::kForward>, grid_of(a.output, plan), kThreads, 0, stream,
                arguments_of(a));
}

LaunchError launch_sparse_linear_plain_grad_x(const TileArguments& a, const TilePlan& plan, void* stream) {
  return launch(sparse_linear_plain<Op::kGradX>, grid_of(a.output, plan), kThreads, 0, stream, arguments_of(a));
}

LaunchError launch_sparse_linear_plain_grad_values(const GradValuesArguments& a, void* stream) {
  const int steps = static_cast<int>(divide_up(a.x.rows, kStepDepth));
  const dim3 grid(static_cast<unsigned>(divide_up(a.weight.rows, kTile)),
                  static_cast<unsigned>(divide_up(a.weight.columns, kTile)));
  return launch(sparse_linear_plain<Op::kGradValues>, grid, kThreads, 0, stream,
                Arguments{a.grad_y, a.x, a.weight, {}, a.grad_values, steps});
}

}  // namespace restorelcc::cuda
