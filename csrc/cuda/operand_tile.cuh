// Tiles of 16-bit elements in shared memory: their layout, and how a dense operand gets there.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tile_arguments.h"

namespace restorelcc::cuda {

constexpr int kLanes = 32;
constexpr int kChunk = 8;  // elements in 16 bytes

// Where (row, column) of a [*, kColumns] tile lies. Chunks of 16 bytes are permuted within a row so that the same chunk of
// eight neighbouring rows, which is what ldmatrix reads at a time, lies in eight different groups of four banks.
template <int kColumns>
__device__ __forceinline__ int place(int row, int column) {
  static_assert(kColumns == 32 || kColumns % 64 == 0, "rows of 64 bytes, or of whole 128-byte lines");
  const int turn = kColumns == 32 ? row / 2 % 4 : row % 8;  // two 64-byte rows share a line
  return row * kColumns + ((column / kChunk ^ turn) * kChunk + column % kChunk);
}

// One chunk by what its address allows: 4 bytes at a time by cp.async, or, where rows begin at odd elements, through
// registers, and nothing hides the latency.
__device__ __forceinline__ void copy_unaligned_chunk(uint16_t* to, const uint16_t* from, int valid, int copy_bytes) {
  if (copy_bytes == 4) {
#pragma unroll
    for (int i = 0; i < kChunk; i += 2) {
      const int left = min(max(valid - i, 0), 2);
      ptx::cp_async_4(to + i, left > 0 ? from + i : from, left * 2);
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

// Queues the copy of rows [first_row, + kRows) and columns [first_column, + kColumns) of `source`; what lies outside of
// it becomes +0. All threads of the block, which then commit.
template <int kRows, int kColumns, int kThreads>
__device__ __forceinline__ void copy_tile(uint16_t* tile, const Operand& source, int first_row, int first_column) {
  constexpr int kRowChunks = kColumns / kChunk, kTurns = kRows * kRowChunks / kThreads;
  static_assert(kTurns * kThreads == kRows * kRowChunks, "whole turns of the block");
  const auto copy = [&](int turn, bool aligned) {
    const int chunk = turn * kThreads + static_cast<int>(threadIdx.x);
    const int row = chunk / kRowChunks, column = chunk % kRowChunks * kChunk;
    const int m = first_row + row, k = first_column + column;
    const int valid = m < source.rows ? min(max(source.columns - k, 0), kChunk) : 0;  // elements
    const uint16_t* const from = static_cast<const uint16_t*>(source.data) + (valid > 0 ? m * source.stride + k : 0);
    uint16_t* const to = tile + place<kColumns>(row, column);
    if (aligned) {
      ptx::cp_async_16(to, from, valid * 2);
    } else {
      copy_unaligned_chunk(to, from, valid, source.copy_bytes);
    }
  };
  if (source.copy_bytes == 16) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) copy(turn, true);
  } else {
#pragma unroll 1
    for (int turn = 0; turn < kTurns; ++turn) copy(turn, false);
  }
}

}  // namespace restorelcc::cuda
