// grad_values[v(n, k)] = sum_m grad_y[m, n] x[m, k] for what survives of W [N, K], on tensor cores: dense tiles
// of grad_yᵀ x, of which the survivors are kept. At 50 % half of the products are thrown away; they cost less
// than gathering operands, and a tile without a survivor is not worth a branch. Sums run over m in order, so
// the bits are always the same.
#include "cuda/sparse_linear_tiles.h"
#include "cuda/survivors.cuh"
#include "cuda/warp_tile.cuh"

namespace restorelcc::cuda {
namespace {

// 128 x 128 by four warps: 32 multiply-adds per byte loaded. 16 KB a step, four of them in 64 KB, so that two
// blocks share a multiprocessor of an A100.
using T = Tile<64, 64, 2, 2, 4, 2>;
using Warp = WarpTile<T>;
constexpr int kStep = 32;  // rows of x and grad_y

struct alignas(16) Shared {
  uint16_t grad_y[T::kStages][kStep * T::kRows];
  uint16_t x[T::kStages][kStep * T::kColumns];
};
static_assert(sizeof(Shared) <= kTileSharedBytes, "must fit on each architecture");
static_assert(T::kThreads / kLanes * Warp::kSlabFloats * sizeof(float) <= sizeof(Shared),
              "the slabs fit in there");

template <class Half>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    sparse_linear_grad_values(const __grid_constant__ GradValuesArguments a) {
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int n = static_cast<int>(blockIdx.x) * T::kRows, k = static_cast<int>(blockIdx.y) * T::kColumns;
  const int steps = (a.x.rows + kStep - 1) / kStep;
  TileCopy<kStep, T::kRows, T::kThreads> grad_y(a.grad_y, 0, n);
  TileCopy<kStep, T::kColumns, T::kThreads> x(a.x, 0, k);
  const auto queue = [&](int step) {
    if (step < steps) {
      grad_y.queue(shared.grad_y[step % T::kStages], a.grad_y);
      x.queue(shared.x[step % T::kStages], a.x);
      grad_y.down(a.grad_y);
      x.down(a.x);
    }
    ptx::cp_async_commit();
  };

  typename Warp::Sums sums;
  Warp::clear(sums);
#pragma unroll 1
  for (int step = 0; step < T::kStages - 1; ++step) queue(step);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<T::kStages - 2>();
    __syncthreads();  // this step has arrived, the one before is done with
    queue(step + T::kStages - 1);
    Warp::multiply<Half, kStep, true, T::kRows, true, T::kColumns>(sums, shared.grad_y[step % T::kStages],
                                                                   shared.x[step % T::kStages]);
  }
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  Warp::write(sums, reinterpret_cast<float*>(memory) + Warp::warp() * Warp::kSlabFloats,
              [&](int row, int column, float (&eight)[8]) {
                store_survivors(a.weight, a.grad_values, n + row, k + column, eight);
              });
}

}  // namespace

LaunchError launch_sparse_linear_grad_values(const GradValuesArguments& a, void* stream) {
  const dim3 grid(static_cast<unsigned>(divide_up(a.weight.rows, T::kRows)),
                  static_cast<unsigned>(divide_up(a.weight.columns, T::kColumns)));
  if (a.x.dtype == RLCC_BF16) {
    return launch(sparse_linear_grad_values<Bf16>, grid, T::kThreads, sizeof(Shared), stream, a);
  }
  return launch(sparse_linear_grad_values<F16>, grid, T::kThreads, sizeof(Shared), stream, a);
}

}  // namespace restorelcc::cuda
