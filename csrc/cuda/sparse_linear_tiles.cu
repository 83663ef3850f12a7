// x Wᵀ for many rows of x, on tensor cores: product.cuh, forward. What the tiles cost stands in tile_plan.h.
#include "cuda/product.cuh"
#include "cuda/sparse_linear_tiles.h"

namespace restorelcc::cuda {
namespace {

template <class Half, rlcc_dtype kValues, class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    sparse_linear_tiles(const __grid_constant__ TileArguments a) {
  Product<Half, kValues, T, false>::run(a);
}

template <class Half, rlcc_dtype kValues, class T>
LaunchError launch_tiles(const TileArguments& a, const TilePlan& plan, void* stream) {
  static_assert(Product<Half, kValues, T, false>::kSharedBytes <= kTileSharedBytes,
                "must fit on each architecture");
  return launch(sparse_linear_tiles<Half, kValues, T>, grid_of(a.output, plan), T::kThreads,
                Product<Half, kValues, T, false>::kSharedBytes, stream, a);
}

template <class Half>
LaunchError launch_for(const TileArguments& a, const TilePlan& plan, void* stream) {
  using Wide = Tile<64, 64, 4, 2, 3, 1>;    // 256 x 128
  using Scaled = Tile<64, 32, 2, 2, 3, 2>;  // 128 x 64: twice the sums
  using Small = Tile<32, 32, 2, 2, 4, 4>;   // 64 x 64
  using SmallScaled = Tile<32, 32, 2, 2, 4, 3>;
  const bool int8 = a.weight.dtype == RLCC_I8;
  switch (plan.tile) {
    case TileShape::k256x128: return launch_tiles<Half, Half::kDtype, Wide>(a, plan, stream);
    case TileShape::k128x64: return launch_tiles<Half, RLCC_I8, Scaled>(a, plan, stream);
    default:
      return int8 ? launch_tiles<Half, RLCC_I8, SmallScaled>(a, plan, stream)
                  : launch_tiles<Half, Half::kDtype, Small>(a, plan, stream);
  }
}

}  // namespace

LaunchError launch_sparse_linear_tiles(const TileArguments& a, const TilePlan& plan, void* stream) {
  return a.left.dtype == RLCC_BF16 ? launch_for<Bf16>(a, plan, stream) : launch_for<F16>(a, plan, stream);
}

}  // namespace restorelcc::cuda
