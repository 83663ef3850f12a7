// x Wᵀ where W keeps two of every four columns, on the sparse tensor cores. mma.sp wants the sparse matrix on
// the left, so a block computes a tile of W xᵀ, and turns it round on its way to y. Nothing is decoded: a step
// is 64 columns, whose 32 values per row and 64 elements per row of x come by cp.async; the metadata (32 bits a
// lane for 16 rows and both halves of the step, as cuda.h lays it out) goes from global memory to registers, a
// step ahead.
//
// A weight costs 1.125 bytes, as in the general kernel, and half of a dense product's time on the tensor cores.
#include "cuda/sparse_linear_tiles.h"
#include "cuda/warp_tile.cuh"

namespace restorelcc::cuda {
namespace {

constexpr int kStep = 64;         // columns of W
constexpr int kKept = kStep / 2;  // values

template <class T>
struct alignas(16) Shared {
  uint16_t values[T::kStages][T::kRows * kKept];
  uint16_t x[T::kStages][T::kColumns * kStep];
};

// b[32, 8] at (depth, column) of a tile that is stored as [column, depth].
__device__ __forceinline__ void load_right(uint32_t (&b)[4], const uint16_t* tile, int depth, int column) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  ptx::ldmatrix_x4(b, tile + place<kStep>(column + lane % 8, depth + lane / 8 * 8));
}

template <class Half, class T, int kHalf>
__device__ __forceinline__ void multiply(typename WarpTile<T>::Sums& sums, const uint16_t* values,
                                         const uint16_t* x,
                                         const uint32_t (&metadata)[WarpTile<T>::kDownFragments]) {
  using Warp = WarpTile<T>;
  uint32_t a[Warp::kDownFragments][4];
#pragma unroll
  for (int i = 0; i < Warp::kDownFragments; ++i) {
    Warp::template load_left<false, kKept>(a[i], values, Warp::first_row() + i * 16, kHalf * kKept / 2);
  }
#pragma unroll
  for (int j = 0; j < Warp::kAcrossFragments; ++j) {
    uint32_t b[4];
    load_right(b, x, kHalf * kStep / 2, Warp::first_column() + j * 8);
#pragma unroll
    for (int i = 0; i < Warp::kDownFragments; ++i) {
      Half::template multiply_sparse<kHalf>(sums[i][j], a[i], b, metadata[i]);
    }
  }
}

template <class Half, class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    sparse_linear_2to4(const __grid_constant__ SparseTileArguments a) {
  using Warp = WarpTile<T>;
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  Shared<T>& shared = *reinterpret_cast<Shared<T>*>(memory);
  const int first_row = static_cast<int>(blockIdx.x) * T::kRows;        // of W
  const int first_column = static_cast<int>(blockIdx.y) * T::kColumns;  // row of x
  const int all_steps = a.values.columns / kKept;
  const int first_step = static_cast<int>(blockIdx.z) * (a.steps_per_split / 2);
  const int steps = max(min(a.steps_per_split / 2, all_steps - first_step), 0);
  TileCopy<T::kRows, kKept, T::kThreads> values(a.values, first_row, first_step * kKept);
  TileCopy<T::kColumns, kStep, T::kThreads> x(a.x, first_column, first_step * kStep);
  const auto queue = [&](int step) {
    if (step < steps) {
      values.queue(shared.values[step % T::kStages], a.values);
      x.queue(shared.x[step % T::kStages], a.x);
      values.right();
      x.right();
    }
    ptx::cp_async_commit();
  };
  // Rows behind the last get that of two zeros, as any other ascending pair would do.
  const auto load_metadata = [&](uint32_t (&metadata)[Warp::kDownFragments], int step) {
#pragma unroll
    for (int i = 0; i < Warp::kDownFragments; ++i) {
      const int row = first_row + Warp::first_row() + i * 16;
      metadata[i] = 0x44444444u;
      if (step < steps && row < a.values.rows) {
        metadata[i] =
            __ldg(a.metadata + (static_cast<int64_t>(row / 16) * all_steps + first_step + step) * kLanes +
                  Warp::lane());
      }
    }
  };

  typename Warp::Sums sums;
  Warp::clear(sums);
  uint32_t metadata[Warp::kDownFragments], next[Warp::kDownFragments];
  load_metadata(next, 0);
#pragma unroll 1
  for (int step = 0; step < T::kStages - 1; ++step) queue(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<T::kStages - 2>();
    __syncthreads();  // this step has arrived, the one before is done with
    queue(step + T::kStages - 1);
#pragma unroll
    for (int i = 0; i < Warp::kDownFragments; ++i) metadata[i] = next[i];
    load_metadata(next, step + 1);
    multiply<Half, T, 0>(sums, shared.values[step % T::kStages], shared.x[step % T::kStages], metadata);
    multiply<Half, T, 1>(sums, shared.values[step % T::kStages], shared.x[step % T::kStages], metadata);
  }
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  Warp::write_transposed(sums, reinterpret_cast<float*>(memory) + Warp::warp() * Warp::kTransposedSlabFloats,
                         [&](int column, int row, float (&eight)[8]) {
                           store_sums<Half>(a.output, static_cast<int>(blockIdx.z), first_column + column,
                                            first_row + row, eight);
                         });
}

template <class Half, class T>
LaunchError launch_tiles(const SparseTileArguments& a, const TilePlan& plan, void* stream) {
  static_assert(sizeof(Shared<T>) <= kTileSharedBytes, "must fit on each architecture");
  static_assert(T::kThreads / kLanes * WarpTile<T>::kTransposedSlabFloats * sizeof(float) <= sizeof(Shared<T>),
                "the slabs fit in there");
  const dim3 grid(static_cast<unsigned>(divide_up(a.output.columns, T::kRows)),
                  static_cast<unsigned>(divide_up(a.output.rows, T::kColumns)),
                  static_cast<unsigned>(plan.splits));
  return launch(sparse_linear_2to4<Half, T>, grid, T::kThreads, sizeof(Shared<T>), stream, a);
}

template <class Half>
LaunchError launch_for(const SparseTileArguments& a, const TilePlan& plan, void* stream) {
  using Large = Tile<64, 64, 2, 2, 3, 2>;  // 128 x 128
  using Small = Tile<32, 32, 2, 2, 3, 4>;  // 64 x 64
  return plan.tile == TileShape::k128x128 ? launch_tiles<Half, Large>(a, plan, stream)
                                          : launch_tiles<Half, Small>(a, plan, stream);
}

}  // namespace

LaunchError launch_sparse_linear_2to4(const SparseTileArguments& a, const TilePlan& plan, void* stream) {
  return a.x.dtype == RLCC_BF16 ? launch_for<Bf16>(a, plan, stream) : launch_for<F16>(a, plan, stream);
}

}  // namespace restorelcc::cuda
