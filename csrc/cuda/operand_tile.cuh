// Tiles of 16-bit elements in shared memory: their layout, and how a dense operand gets there.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tile_arguments.h"

namespace restorelcc::cuda {

constexpr int kLanes = 32;
constexpr int kChunk = 8;  // elements in 16 bytes

// Where (row, column) of a [*, kColumns] tile lies. Chunks of 16 bytes are permuted within a row so that the
// same chunk of eight neighbouring rows, which is what ldmatrix reads at a time, lies in eight different groups
// of four banks.
template <int kColumns>
__device__ __forceinline__ int place(int row, int column) {
  static_assert(kColumns == 32 || kColumns % 64 == 0, "rows of 64 bytes, or of whole 128-byte lines");
  const int turn = kColumns == 32 ? row / 2 % 4 : row % 8;  // two 64-byte rows share a line
  return row * kColumns + ((column / kChunk ^ turn) * kChunk + column % kChunk);
}

// One chunk by what its address allows: 4 bytes at a time by cp.async, or, where rows begin at odd elements,
// through registers, and nothing hides the latency.
__device__ __forceinline__ void copy_unaligned_chunk(uint16_t* to, const uint16_t* from, int valid,
                                                     int copy_bytes) {
  if (copy_bytes == 4) {
#pragma unroll
    for (int i = 0; i < kChunk; i += 2) {
      const int left = min(max(valid - i, 0), 2);
      ptx::cp_async_4(to + i, from + i, left * 2);
    }
    return;
  }
  uint32_t words[kChunk / 2];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    const uint32_t bits = i < valid ? from[i] : 0;
    words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | bits << 16;
  }
  *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
}

// Queues copies of kRows x kColumns of a matrix, tile after tile; what lies outside of the matrix becomes +0.
// All threads of the block take part, and commit afterwards. A thread's chunks lie kTurnRows rows apart, so it
// carries the address of the first and little else: what is not carried is counted out again in each step, by
// every thread.
template <int kRows, int kColumns, int kThreads>
struct TileCopy {
  static constexpr int kRowChunks = kColumns / kChunk, kTurns = kRows * kRowChunks / kThreads;
  static constexpr int kTurnRows = kThreads / kRowChunks;
  static_assert(kTurns * kThreads == kRows * kRowChunks && kTurnRows % 8 == 0,
                "whole turns, of one permutation");

  const uint16_t* from;  // of the first chunk; may lie outside, and is not read then
  int row, column;       // of the matrix
  int to;                // element of the tile

  __device__ __forceinline__ TileCopy(const Operand& source, int first_row, int first_column) {
    const int chunk_row = static_cast<int>(threadIdx.x) / kRowChunks;
    const int chunk_column = static_cast<int>(threadIdx.x) % kRowChunks * kChunk;
    row = first_row + chunk_row;
    column = first_column + chunk_column;
    from = static_cast<const uint16_t*>(source.data) + (row * source.stride + column);
    to = place<kColumns>(chunk_row, chunk_column);
  }
  __device__ __forceinline__ void queue(uint16_t* tile, const Operand& source) const {
    const int valid = min(max(source.columns - column, 0), kChunk);  // elements
    if (source.copy_bytes == 16) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        ptx::cp_async_16(tile + to + turn * kTurnRows * kColumns, from + turn * kTurnRows * source.stride,
                         row + turn * kTurnRows < source.rows ? valid * 2 : 0);
      }
    } else {
#pragma unroll 1
      for (int turn = 0; turn < kTurns; ++turn) {
        copy_unaligned_chunk(tile + to + turn * kTurnRows * kColumns, from + turn * kTurnRows * source.stride,
                             row + turn * kTurnRows < source.rows ? valid : 0, source.copy_bytes);
      }
    }
  }
  __device__ __forceinline__ void right() {
    from += kColumns;
    column += kColumns;
  }
  __device__ __forceinline__ void down(const Operand& source) {
    from += kRows * source.stride;
    row += kRows;
  }
};

}  // namespace restorelcc::cuda
