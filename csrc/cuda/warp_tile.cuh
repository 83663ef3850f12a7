// One warp's part of a block's output tile: fragments by ldmatrix, products by mma, and the sums' way out.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/operand_tile.cuh"
#include "cuda/output.cuh"

namespace restorelcc::cuda {

// An output tile: warps of kWarpRows x kWarpColumns sums, kDown x kAcross of them. kStages of copies under way;
// kBlocks of threads that shall fit on a multiprocessor (what bounds the registers).
template <int kWarpRows_, int kWarpColumns_, int kDown, int kAcross_, int kStages_, int kBlocks_>
struct Tile {
  static constexpr int kWarpRows = kWarpRows_, kWarpColumns = kWarpColumns_, kAcross = kAcross_;
  static constexpr int kRows = kWarpRows * kDown, kColumns = kWarpColumns * kAcross;
  static constexpr int kThreads = kDown * kAcross * kLanes;
  static constexpr int kStages = kStages_, kBlocks = kBlocks_;
  static_assert(kStages >= 3, "one is multiplied, one decoded, one under way");
};

template <class T>
struct WarpTile {
  static constexpr int kDownFragments = T::kWarpRows / 16, kAcrossFragments = T::kWarpColumns / 8;
  // A slab of 16 rows of sums in shared memory; 8 more columns than there are spread its rows over the banks.
  static constexpr int kSlabStride = T::kWarpColumns + 8;
  static constexpr int kSlabFloats = 16 * kSlabStride;

  using Sums = float[kDownFragments][kAcrossFragments][4];

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kLanes; }
  static __device__ __forceinline__ int first_row() { return warp() / T::kAcross * T::kWarpRows; }
  static __device__ __forceinline__ int first_column() { return warp() % T::kAcross * T::kWarpColumns; }

  static __device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int i = 0; i < kDownFragments; ++i) {
#pragma unroll
      for (int j = 0; j < kAcrossFragments; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
      }
    }
  }

  // a[16, 16] at (row, depth) of a tile: stored as [row, depth], or, with kTransposed, as [depth, row].
  template <bool kTransposed, int kTileColumns>
  static __device__ __forceinline__ void load_left(uint32_t (&a)[4], const uint16_t* tile, int row, int depth) {
    const int matrix = lane() / 8, within = lane() % 8;
    if constexpr (kTransposed) {
      ptx::ldmatrix_x4_transposed(
          a, tile + place<kTileColumns>(depth + matrix / 2 * 8 + within, row + matrix % 2 * 8));
    } else {
      ptx::ldmatrix_x4(a, tile + place<kTileColumns>(row + matrix % 2 * 8 + within, depth + matrix / 2 * 8));
    }
  }

  // b[16, 16], as two of 8 columns, at (depth, column) of a tile: stored as [column, depth], or, with
  // kTransposed, as [depth, column].
  template <bool kTransposed, int kTileColumns>
  static __device__ __forceinline__ void load_right(uint32_t (&b)[2][2], const uint16_t* tile, int depth,
                                                    int column) {
    const int matrix = lane() / 8, within = lane() % 8;
    uint32_t r[4];
    if constexpr (kTransposed) {
      ptx::ldmatrix_x4_transposed(
          r, tile + place<kTileColumns>(depth + matrix % 2 * 8 + within, column + matrix / 2 * 8));
    } else {
      ptx::ldmatrix_x4(r, tile + place<kTileColumns>(column + matrix / 2 * 8 + within, depth + matrix % 2 * 8));
    }
    b[0][0] = r[0];
    b[0][1] = r[1];
    b[1][0] = r[2];
    b[1][1] = r[3];
  }

  // sums += left right over kDepth; tiles with kLeftColumns and kRightColumns columns in storage.
  template <class Half, int kDepth, bool kLeftTransposed, int kLeftColumns, bool kRightTransposed,
            int kRightColumns, int kPlanes = 1>
  static __device__ __forceinline__ void multiply(Sums& sums, const uint16_t* left, const uint16_t* right,
                                                  int plane_elements = 0) {
#pragma unroll
    for (int depth = 0; depth < kDepth; depth += 16) {
      uint32_t a[kDownFragments][4];
#pragma unroll
      for (int i = 0; i < kDownFragments; ++i) {
        load_left<kLeftTransposed, kLeftColumns>(a[i], left, first_row() + i * 16, depth);
      }
#pragma unroll
      for (int plane = 0; plane < kPlanes; ++plane) {
#pragma unroll
        for (int j = 0; j < kAcrossFragments; j += 2) {
          uint32_t b[2][2];
          load_right<kRightTransposed, kRightColumns>(b, right + plane * plane_elements, depth,
                                                      first_column() + j * 8);
#pragma unroll
          for (int i = 0; i < kDownFragments; ++i) {
            Half::multiply(sums[i][j], a[i], b[0]);
            Half::multiply(sums[i][j + 1], a[i], b[1]);
          }
        }
      }
    }
  }

  // Hands the sums, 8 neighbours of a row at a time, to store(row, column, float[8]), (row, column) of the
  // block's tile: by way of 16 rows in shared memory of the warp's own, so that a warp writes whole lines.
  // Loops that do not name registers stay loops: unrolled, this end was three quarters of a kernel's code.
  template <class Store>
  static __device__ __forceinline__ void write(const Sums& sums, float* slab, const Store& store) {
    constexpr int kRowLanes = T::kWarpColumns / 8, kRowsAtOnce = kLanes / kRowLanes;
    const int group = lane() / 4, pair = lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kDownFragments; ++i) {
#pragma unroll
      for (int j = 0; j < kAcrossFragments; ++j) {
        float* const at = slab + group * kSlabStride + j * 8 + pair;
        *reinterpret_cast<float2*>(at) = make_float2(sums[i][j][0], sums[i][j][1]);
        *reinterpret_cast<float2*>(at + 8 * kSlabStride) = make_float2(sums[i][j][2], sums[i][j][3]);
      }
      __syncwarp();
#pragma unroll 1
      for (int turn = 0; turn < 16 / kRowsAtOnce; ++turn) {
        const int row = turn * kRowsAtOnce + lane() / kRowLanes, column = lane() % kRowLanes * 8;
        float eight[8];
        load_eight(eight, slab + row * kSlabStride + column);
        store(first_row() + i * 16 + row, first_column() + column, eight);
      }
      __syncwarp();
    }
  }

  // The same for a tile of the transposed output: store(column, row, float[8]) gets 8 neighbouring rows of one
  // column. By way of 8 columns in shared memory; 4 more rows than there are spread its columns over the banks.
  static constexpr int kTransposedStride = T::kWarpRows + 4;
  static constexpr int kTransposedSlabFloats = 8 * kTransposedStride;
  template <class Store>
  static __device__ __forceinline__ void write_transposed(const Sums& sums, float* slab, const Store& store) {
    constexpr int kColumnLanes = T::kWarpRows / 8, kColumnsAtOnce = kLanes / kColumnLanes;
    const int group = lane() / 4, pair = lane() % 4 * 2;
#pragma unroll
    for (int j = 0; j < kAcrossFragments; ++j) {
#pragma unroll
      for (int i = 0; i < kDownFragments; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          slab[(pair + e % 2) * kTransposedStride + i * 16 + e / 2 * 8 + group] = sums[i][j][e];
        }
      }
      __syncwarp();
#pragma unroll 1
      for (int turn = 0; turn < 8 / kColumnsAtOnce; ++turn) {
        const int column = turn * kColumnsAtOnce + lane() / kColumnLanes, row = lane() % kColumnLanes * 8;
        float eight[8];
        load_eight(eight, slab + column * kTransposedStride + row);
        store(first_column() + j * 8 + column, first_row() + row, eight);
      }
      __syncwarp();
    }
  }

 private:
  static __device__ __forceinline__ void load_eight(float (&eight)[8], const float* from) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float4 four = reinterpret_cast<const float4*>(from)[e];
      eight[4 * e] = four.x;
      eight[4 * e + 1] = four.y;
      eight[4 * e + 2] = four.z;
      eight[4 * e + 3] = four.w;
    }
  }
};

}  // namespace restorelcc::cuda
