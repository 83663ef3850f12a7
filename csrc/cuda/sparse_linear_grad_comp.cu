// grad_comp_rows[g, n] = sum over the rows m with comp_index[m] = g of grad_y[m, n],
// grad_bias[n] = sum_m grad_y[m, n]:
//
//   for each row m:  comp[comp_index[m]] += grad_y[m];  bias += grad_y[m]
//
// A warp looks at the index of 32 rows at once, votes which of them are its block's, and takes these four at a
// time: four loads of 16 bytes a lane under way, then their additions in the order of m. Every lane adds to its
// own eight columns, so that no place is shared: groups in shared memory, the sum of all rows in registers. The
// warps of a block, and then the parts of the rows, are added up in their order: the bits depend on the shape
// and the device's plan alone.
#include <algorithm>
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/grad_comp.h"

namespace restorelcc::cuda {
namespace {

constexpr int kThreads = 32 * kGradCompWarps;
constexpr int kLaneColumns = kGradCompColumns / 32;
constexpr int kRowsAtOnce = 4;
static_assert(kLaneColumns == 8, "two float4 a lane");

struct Arguments {
  const void* grad_y;
  int64_t stride;
  int rows, columns;
  const int64_t* index;  // [rows]; null: no groups
  int groups;            // that the index picks from
  bool all;              // the sum of all rows is wanted
  int rows_per_split;
  float* partials;  // [splits, sums, columns]; null: there is one split, which writes the gradients
  float* comp_rows;
  float* bias;
};

// A row of sums is that of a group, or (row a.groups) of all rows.
__device__ __forceinline__ void store_gradient(const Arguments& a, int row, int n, float sum) {
  const bool of_group = row < a.groups;
  if (of_group || (a.groups == 0 && a.comp_rows != nullptr)) {
    a.comp_rows[static_cast<int64_t>(row) * a.columns + n] = sum;
  }
  if (!of_group && a.bias != nullptr) a.bias[n] = sum;
}

// A lane's columns of a row of grad_y as they are loaded, so that several rows are under way before the first
// is widened: 16 bytes at a time where rows are aligned and end with a whole lane, else one by one.
template <class Element, bool kWide>
struct Loaded {
  using Bits = typename Element::Bits;
  static constexpr int kPieces = kWide ? kLaneColumns * Element::kBytes / 16 : kLaneColumns;
  static constexpr int kEach = kLaneColumns / kPieces;  // columns

  std::conditional_t<kWide, uint4, Bits> pieces[kPieces];

  // Columns n .. n + 7; zeros where there is no such row, or no such column.
  __device__ __forceinline__ void load(const Arguments& a, bool there, int m, int n) {
    const Bits* const from = static_cast<const Bits*>(a.grad_y) + m * a.stride + n;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      pieces[i] = {};
      if (!there || n + i * kEach >= a.columns) continue;
      if constexpr (kWide) {
        pieces[i] = ptx::load_stream_16(from + i * kEach);
      } else {
        pieces[i] = from[i];
      }
    }
  }

  __device__ __forceinline__ void widen(float (&values)[kLaneColumns]) const {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (kWide) {
        const uint32_t words[4] = {pieces[i].x, pieces[i].y, pieces[i].z, pieces[i].w};
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          if constexpr (kEach == 4) {
            values[4 * i + j] = __uint_as_float(words[j]);
          } else {
            values[8 * i + j] = Element::widen(static_cast<Bits>(words[j / 2] >> (16 * (j % 2))));
          }
        }
      } else {
        values[i] = Element::widen(pieces[i]);
      }
    }
  }
};

// sums[0] and sums[32]: a lane's columns, in two planes, so that the lanes of a quarter warp read 128 bytes in
// a row.
__device__ __forceinline__ void add_to(float4* sums, const float (&values)[kLaneColumns]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float4 sum = sums[32 * half];
    sum.x += values[4 * half];
    sum.y += values[4 * half + 1];
    sum.z += values[4 * half + 2];
    sum.w += values[4 * half + 3];
    sums[32 * half] = sum;
  }
}
// Where column c of a row of sums lies.
__device__ __forceinline__ int place_of(int c) { return c % 8 / 4 * 128 + c / 8 * 4 + c % 4; }

template <class Element, bool kWide>
__global__ void __launch_bounds__(kThreads) sparse_linear_grad_comp(const __grid_constant__ Arguments a) {
  RLCC_DYNAMIC_SHARED(float4, shared);  // [warps, slots, 2, 32 lanes]
  RLCC_SHARED(int, bad, kGradCompWarps);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int tiles = divide_up(a.columns, kGradCompColumns);
  const int tile = static_cast<int>(blockIdx.x) % tiles, group_block = static_cast<int>(blockIdx.x) / tiles;
  const int first_group = group_block * kGradCompGroups;
  const int groups = min(a.groups - first_group, kGradCompGroups);
  const bool all = a.all && group_block == 0;
  const int slots = groups + (all ? 1 : 0);
  const int n = tile * kGradCompColumns + lane * kLaneColumns;
  float4* const own = shared + warp * slots * 64 + lane;
#pragma unroll 1
  for (int i = 0; i < 2 * slots; ++i) own[32 * i] = make_float4(0, 0, 0, 0);

  float sums[kLaneColumns] = {};
  bool outside = false;
  const int begin = static_cast<int>(blockIdx.y) * a.rows_per_split;
  const int end = begin + min(a.rows_per_split, a.rows - begin);
#pragma unroll 1
  for (int first = begin + 32 * warp; first < end; first += kGradCompRows) {
    const int row = first + lane;
    int slot = -1;
    if (groups > 0 && row < end) {
      const int64_t group = a.index[row];
      outside = outside || group < 0 || group >= a.groups;
      if (group >= first_group && group < first_group + groups) slot = static_cast<int>(group) - first_group;
    }
    unsigned rows = __ballot_sync(0xffffffffu, all ? row < end : slot >= 0);
#pragma unroll 1
    while (rows != 0) {
      Loaded<Element, kWide> loaded[kRowsAtOnce];
      int slot_of[kRowsAtOnce];
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        const bool there = rows != 0;
        const int from = max(__ffs(static_cast<int>(rows)) - 1, 0);
        slot_of[i] = __shfl_sync(0xffffffffu, slot, from);
        if (!there) slot_of[i] = -1;
        loaded[i].load(a, there, first + from, n);
        rows &= rows - 1;
      }
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) {
        float values[kLaneColumns];
        loaded[i].widen(values);
        if (slot_of[i] >= 0) add_to(own + 64 * slot_of[i], values);
#pragma unroll
        for (int j = 0; j < kLaneColumns; ++j) sums[j] += values[j];
      }
    }
  }
  if (all) add_to(own + 64 * groups, sums);
  const bool any_outside = __any_sync(0xffffffffu, outside) != 0;
  if (lane == 0) bad[warp] = any_outside ? 1 : 0;
  __syncthreads();

  int outsiders = 0;
  for (int w = 0; w < kGradCompWarps; ++w) outsiders += bad[w];
  const float* const words = reinterpret_cast<const float*>(shared);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < slots * kGradCompColumns; i += kThreads) {
    const int s = i / kGradCompColumns, c = i % kGradCompColumns, column = tile * kGradCompColumns + c;
    if (column >= a.columns) continue;
    float sum = 0;
    for (int w = 0; w < kGradCompWarps; ++w) sum += words[(w * slots + s) * kGradCompColumns + place_of(c)];
    if (s < groups && outsiders != 0) sum = __uint_as_float(0x7fc00000u);  // whose row it is, nobody knows
    const int row = s < groups ? first_group + s : a.groups;
    if (a.partials == nullptr) {
      store_gradient(a, row, column, sum);
    } else {
      const int64_t count = a.groups + (a.all ? 1 : 0);
      a.partials[(static_cast<int64_t>(blockIdx.y) * count + row) * a.columns + column] = sum;
    }
  }
}

// A thread per sum, the parts in their order.
__global__ void __launch_bounds__(256)
    sparse_linear_grad_comp_sum(const __grid_constant__ Arguments a, int splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t sums = (static_cast<int64_t>(a.groups) + (a.all ? 1 : 0)) * a.columns;
  if (i >= sums) return;
  float sum = 0;
  for (int s = 0; s < splits; ++s) sum += a.partials[s * sums + i];
  store_gradient(a, static_cast<int>(i / a.columns), static_cast<int>(i % a.columns), sum);
}

template <class Element>
LaunchError launch_of(const Arguments& a, const GradCompPlan& plan, void* stream) {
  const uintptr_t begins =
      reinterpret_cast<uintptr_t>(a.grad_y) | static_cast<uintptr_t>(a.stride * Element::kBytes);
  const bool wide = begins % 16 == 0 && a.columns % kLaneColumns == 0;
  const auto kernel = wide ? sparse_linear_grad_comp<Element, true> : sparse_linear_grad_comp<Element, false>;
  const int slots = std::min(a.groups, kGradCompGroups) + (a.all ? 1 : 0);
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits));
  RLCC_RETURN_IF_NOT_LAUNCHED(
      launch(kernel, grid, kThreads, sizeof(float) * slots * kGradCompColumns * kGradCompWarps, stream, a));
  if (plan.splits == 1) return nullptr;
  const int64_t sums = (int64_t{a.groups} + (a.all ? 1 : 0)) * a.columns;
  return launch(sparse_linear_grad_comp_sum, static_cast<unsigned>(divide_up(sums, 256)), 256, 0, stream, a,
                plan.splits);
}

}  // namespace

LaunchError launch_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& p,
                                           const GradCompPlan& plan, float* workspace, void* stream) {
  const GradCompSums sums = grad_comp_sums(p);
  Arguments a{};
  a.grad_y = p.grad_y;
  a.stride = p.rows > 1 ? p.grad_y_stride : 0;
  a.rows = static_cast<int>(p.rows);
  a.columns = static_cast<int>(p.columns);
  a.index = p.comp_index;
  a.groups = static_cast<int>(sums.groups);
  a.all = sums.all;
  a.rows_per_split = plan.rows_per_split;
  a.partials = plan.splits == 1 ? nullptr : workspace;
  a.comp_rows = p.grad_comp_rows;
  a.bias = p.grad_bias;
  switch (p.dtype) {
    case RLCC_F32: return launch_of<F32>(a, plan, stream);
    case RLCC_BF16: return launch_of<Bf16>(a, plan, stream);
    default: return launch_of<F16>(a, plan, stream);
  }
}

}  // namespace restorelcc::cuda
