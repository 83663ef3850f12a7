// A tile of a product, C[rows, columns] += A[rows, depth] B[depth, columns] in fp32, by one block of threads;
// operands in shared memory as tile_copy.cuh leaves them.
//
// Product<Element, kRows, kOrderA, kOrderB> says which elements of C a thread holds, and multiplies one stage:
//
//   sums(i, j)  is  C[first_row() + row_step(i), first_column() + column_step(j)]
//
// with steps that are constants once loops are unrolled: a thread needs no register for each of its rows and
// columns. kRowLanes neighbouring lanes share their rows, and so do kRowParts groups of warps; the other lanes
// of a warp share its columns, and so do kColumnParts groups of warps.
#pragma once

#include "cuda/tile_copy.cuh"

namespace restorelcc::cuda {

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / 32; }

// By mma.sync m16n8k16. 128 rows: 2 x 4 warps of 64 x 32, each of whose loads of A serves 4 mma and of B 4 as
// well. 16 rows: the matrix B, read once, binds; 4 warps of 16 x 32.
template <class ElementT, int kRowsT, Order kOrderA, Order kOrderB>
struct Product {
  using Element = ElementT;
  static_assert(kRowsT == 128 || (kRowsT == 16 && kOrderA == Order::kDepthInside), "the tiles that exist");
  static constexpr int kRows = kRowsT, kColumns = 128, kDepth = 32;
  static constexpr int kWarpRows = kRows == 128 ? 2 : 1, kRowParts = 4, kThreads = 32 * kWarpRows * kRowParts;
  static constexpr int kColumnParts = kWarpRows;
  static constexpr int kMmaRows = kRows / kWarpRows / 16, kMmaColumns = kColumns / kRowParts / 8;
  static constexpr int kThreadRows = 2 * kMmaRows, kThreadColumns = 2 * kMmaColumns, kRowLanes = 4;
  // Blocks that a multiprocessor shall hold, which bounds the registers: 128 of 256 threads; the narrow tile
  // needs more blocks to keep memory busy, and has the registers to spare.
  static constexpr int kBlocks = kRows == 128 ? 2 : 5;

  struct Sums {
    float at[kMmaRows][kMmaColumns][4];
    __device__ __forceinline__ float& operator()(int i, int j) { return at[i / 2][j / 2][i % 2 * 2 + j % 2]; }
  };
  static __device__ __forceinline__ int warp_row() { return warp_index() / kRowParts * (kRows / kWarpRows); }
  static __device__ __forceinline__ int row_part() { return warp_index() % kRowParts; }
  static __device__ __forceinline__ int column_part() { return warp_index() / kRowParts; }
  static __device__ __forceinline__ int first_row() { return warp_row() + lane_index() / 4; }
  static __device__ __forceinline__ int first_column() {
    return row_part() * (kColumns / kRowParts) + lane_index() % 4 * 2;
  }
  static constexpr int row_step(int i) { return i / 2 * 16 + i % 2 * 8; }
  static constexpr int column_step(int j) { return j / 2 * 8 + j % 2; }
  // Whether this thread's warp has any of the first `rows` rows; one answer per warp.
  static __device__ __forceinline__ bool has_rows(int rows) { return warp_row() < rows; }

  // Where this lane's first ldmatrix reads in the tiles of A and B. The other ones lie a constant away, or
  // differ in bits that the exchange of chunks flips: one register for all of them.
  struct Places {
    int a, b;
  };
  static __device__ __forceinline__ Places places() {
    const int lane = lane_index(), column = row_part() * (kColumns / kRowParts);
    // 16 x 16 of A as mma wants it: 8 x 8 matrices in the order (0, 0), (8, 0), (0, 8), (8, 8) of (row, depth).
    // And of B, two mma's worth: (0, 0), (8, 0), (0, 8), (8, 8) of (depth, column).
    return {kOrderA == Order::kDepthInside
                ? inside_offset(warp_row() + lane % 16, lane / 16)
                : outside_offset(lane / 16 * 8 + lane % 8, warp_row() / 8 + lane / 8 % 2),
            kOrderB == Order::kDepthInside ? inside_offset(column + lane / 16 * 8 + lane % 8, lane / 8 % 2)
                                           : outside_offset(lane % 16, column / 8 + lane / 16)};
  }

  static __device__ __forceinline__ void multiply(const unsigned char* a_tile, const unsigned char* b_tile,
                                                  const Places& at, Sums& sums) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t b[kMmaColumns][2];
#pragma unroll
      for (int n = 0; n < kMmaColumns; n += 2) {
        uint32_t two[4];
        load<kOrderB>(b_tile, at.b, n * 8, k, two);
        b[n][0] = two[0];
        b[n][1] = two[1];
        b[n + 1][0] = two[2];
        b[n + 1][1] = two[3];
      }
#pragma unroll
      for (int m = 0; m < kMmaRows; ++m) {
        uint32_t a[4];
        load<kOrderA>(a_tile, at.a, m * 16, k, a);
#pragma unroll
        for (int n = 0; n < kMmaColumns; ++n) Element::multiply(sums.at[m][n], a, b[n]);
      }
    }
  }

 private:
  // The 16 x 16 that lie `row` rows (columns) and `depth` depths behind `place`; constants, multiples of 16.
  template <Order kOrder>
  static __device__ __forceinline__ void load(const unsigned char* tile, int place, int row, int depth,
                                              uint32_t (&r)[4]) {
    if constexpr (kOrder == Order::kDepthInside) {
      ptx::ldmatrix_x4(r, tile + (place ^ depth / 8 * kChunkBytes) + row * kInsideLineBytes);
    } else {
      ptx::ldmatrix_x4_transposed(r, tile + (place ^ row / 8 * kChunkBytes) + depth * kOutsideLineBytes);
    }
  }
};

// fp32 by fused multiply-adds: 16 x 16 threads of 4 x 4. A thread's rows (columns) lie 16 apart where the depth
// is inside, so that neighbouring threads read neighbouring lines, and side by side where it is outside, for
// 16-byte reads.
template <int kRowsT, Order kOrderA, Order kOrderB>
struct Product<F32, kRowsT, kOrderA, kOrderB> {
  using Element = F32;
  static_assert(kRowsT == 64, "the tile that exists");
  static constexpr int kRows = 64, kColumns = 64, kDepth = 16, kThreads = 256, kBlocks = 2;
  static constexpr int kThreadRows = 4, kThreadColumns = 4, kRowLanes = 16, kRowParts = 1;
  static constexpr int kColumnParts = 8;

  struct Sums {
    float at[kThreadRows][kThreadColumns];
    __device__ __forceinline__ float& operator()(int i, int j) { return at[i][j]; }
  };
  static __device__ __forceinline__ int row_part() { return 0; }
  static __device__ __forceinline__ int column_part() { return warp_index(); }
  static __device__ __forceinline__ int first_row() {
    return first<kOrderA>(static_cast<int>(threadIdx.x) / 16);
  }
  static __device__ __forceinline__ int first_column() {
    return first<kOrderB>(static_cast<int>(threadIdx.x) % 16);
  }
  static constexpr int row_step(int i) { return step<kOrderA>(i); }
  static constexpr int column_step(int j) { return step<kOrderB>(j); }
  static __device__ __forceinline__ bool has_rows(int) { return true; }

  struct Places {};
  static __device__ __forceinline__ Places places() { return {}; }

  static __device__ __forceinline__ void multiply(const unsigned char* a_tile, const unsigned char* b_tile,
                                                  const Places&, Sums& sums) {
#pragma unroll 1
    for (int k = 0; k < kDepth; k += 4) {
      float a[4][4], b[4][4];  // [depth][i]
      load<kOrderA>(a_tile, static_cast<int>(threadIdx.x) / 16, k, a);
      load<kOrderB>(b_tile, static_cast<int>(threadIdx.x) % 16, k, b);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sums.at[i][j] = fmaf(a[d][i], b[d][j], sums.at[i][j]);
        }
      }
    }
  }

 private:
  template <Order kOrder>
  static __device__ __forceinline__ int first(int thread) {
    return kOrder == Order::kDepthInside ? thread : thread * 4;
  }
  template <Order kOrder>
  static constexpr int step(int i) {
    return kOrder == Order::kDepthInside ? 16 * i : i;
  }
  template <Order kOrder>
  static __device__ __forceinline__ void load(const unsigned char* tile, int thread, int k,
                                              float (&values)[4][4]) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int offset =
          kOrder == Order::kDepthInside ? inside_offset(thread + 16 * n, k / 4) : outside_offset(k + n, thread);
      const float4 four = *reinterpret_cast<const float4*>(tile + offset);
      const float each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kOrder == Order::kDepthInside)
          values[i][n] = each[i];
        else
          values[n][i] = each[i];
      }
    }
  }
};

// The stages of one product in shared memory.
template <class P, class CopyA, class CopyB>
struct alignas(16) Stages {
  unsigned char a[kStages][CopyA::kBytes];
  unsigned char b[kStages][CopyB::kBytes];
};

// Over the kRowLanes lanes that share their rows; all of them get it.
template <int kRowLanes>
__device__ __forceinline__ float largest_of_row(float value) {
#pragma unroll
  for (int bits = 1; bits < kRowLanes; bits *= 2)
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, bits));
  return value;
}
template <int kRowLanes>
__device__ __forceinline__ float sum_of_row(float value) {
#pragma unroll
  for (int bits = 1; bits < kRowLanes; bits *= 2) value += __shfl_xor_sync(kWholeWarp, value, bits);
  return value;
}

// Over the lanes of the warp that share their columns.
template <int kRowLanes>
__device__ __forceinline__ float sum_of_column(float value) {
#pragma unroll
  for (int bits = kRowLanes; bits < 32; bits *= 2) value += __shfl_xor_sync(kWholeWarp, value, bits);
  return value;
}

}  // namespace restorelcc::cuda
