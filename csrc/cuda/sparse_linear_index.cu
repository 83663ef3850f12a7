// The index of a packed weight along K, and the sums of splits: one pass each over what they read.
#include "cuda/output.cuh"
#include "cuda/sparse_linear_tiles.h"

namespace restorelcc::cuda {
namespace {

constexpr int kIndexWords = kIndexColumns / 32;
constexpr int kIndexRows = 8;  // of a block, a warp each: eight neighbours in the index fill a 32-byte sector

// index[t, n] = survivors of row n before column 128 t.
__global__ void __launch_bounds__(kIndexRows * 32)
    sparse_linear_index(const __grid_constant__ Weight w, uint32_t* index) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kIndexRows + threadIdx.x / 32;
  if (n >= w.rows) return;
  const uint32_t* const mask = w.mask + n * w.words;
  const int entries = (w.columns + kIndexColumns - 1) / kIndexColumns;
  uint32_t before = 0;
#pragma unroll 1
  for (int first = 0; first < entries; first += 32) {
    const int entry = first + lane;
    uint32_t own = 0;
    if (entry < entries) {
      if (w.wide_mask) {
        const uint4 four = ptx::load_cached_16(mask + entry * kIndexWords);
        own = static_cast<uint32_t>(__popc(four.x) + __popc(four.y) + __popc(four.z) + __popc(four.w));
      } else {
#pragma unroll
        for (int i = 0; i < kIndexWords; ++i) {
          if (entry * kIndexWords + i < w.words)
            own += static_cast<uint32_t>(__popc(mask[entry * kIndexWords + i]));
        }
      }
    }
    uint32_t sum = own;  // of the lanes up to this one
#pragma unroll
    for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
      const uint32_t lower = __shfl_up_sync(0xffffffffu, sum, lanes);
      if (lane >= static_cast<int>(lanes)) sum += lower;
    }
    if (entry < entries) index[static_cast<int64_t>(entry) * w.rows + n] = before + sum - own;
    before += __shfl_sync(0xffffffffu, sum, 31);
  }
}

__global__ void __launch_bounds__(256) sparse_linear_sum(const __grid_constant__ Output o, int splits) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x,
                sums = static_cast<int64_t>(o.rows) * o.columns;
  if (i >= sums) return;
  float sum = 0;
  for (int s = 0; s < splits; ++s) sum += o.partials[s * sums + i];
  Output last = o;
  last.partials = nullptr;
  store_sum(last, 0, static_cast<int>(i / o.columns), static_cast<int>(i % o.columns), sum);
}

}  // namespace

LaunchError launch_sparse_linear_index(const Weight& weight, uint32_t* index, void* stream) {
  const unsigned blocks = static_cast<unsigned>(divide_up(weight.rows, kIndexRows));
  return launch(sparse_linear_index, blocks, kIndexRows * 32, 0, stream, weight, index);
}

LaunchError launch_sparse_linear_sum(const Output& output, int splits, void* stream) {
  const unsigned blocks =
      static_cast<unsigned>(divide_up(static_cast<int64_t>(output.rows) * output.columns, 256));
  return launch(sparse_linear_sum, blocks, 256, 0, stream, output, splits);
}

}  // namespace restorelcc::cuda
