// grad_y W on tensor cores: product.cuh, gradient.
#include "cuda/product.cuh"
#include "cuda/sparse_linear_tiles.h"

namespace restorelcc::cuda {
namespace {

template <class Half, rlcc_dtype kValues, class T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    sparse_linear_grad_x(const __grid_constant__ TileArguments a) {
  Product<Half, kValues, T, true>::run(a);
}

template <class Half, rlcc_dtype kValues, class T>
LaunchError launch_tiles(const TileArguments& a, const TilePlan& plan, void* stream) {
  static_assert(Product<Half, kValues, T, true>::kSharedBytes <= kTileSharedBytes,
                "must fit on each architecture");
  return launch(sparse_linear_grad_x<Half, kValues, T>, grid_of(a.output, plan), T::kThreads,
                Product<Half, kValues, T, true>::kSharedBytes, stream, a);
}

template <class Half, rlcc_dtype kValues>
LaunchError launch_for(const TileArguments& a, const TilePlan& plan, void* stream) {
  using Wide = Tile<64, 64, 4, 2, 3, 1>;    // 256 x 128
  using Planes = Tile<64, 32, 2, 4, 3, 1>;  // 128 x 128: each decoded weight is multiplied twice
  using Small = Tile<32, 64, 2, 2, 4, 2>;   // 64 x 128
  if (plan.tile == TileShape::k64x128) return launch_tiles<Half, kValues, Small>(a, plan, stream);
  return launch_tiles<Half, kValues, std::conditional_t<kValues == RLCC_I8, Planes, Wide>>(a, plan, stream);
}

}  // namespace

LaunchError launch_sparse_linear_grad_x(const TileArguments& a, const TilePlan& plan, void* stream) {
  if (a.weight.dtype == RLCC_I8) return launch_for<Bf16, RLCC_I8>(a, plan, stream);
  if (a.left.dtype == RLCC_BF16) return launch_for<Bf16, RLCC_BF16>(a, plan, stream);
  return launch_for<F16, RLCC_F16>(a, plan, stream);
}

}  // namespace restorelcc::cuda
