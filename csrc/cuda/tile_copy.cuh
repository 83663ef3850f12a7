// Tiles of an operand on their way from global to shared memory, 16 bytes per thread and step, and where they
// lie there.
//
// An operand of a product has rows (of A) or columns (of B) on one side and the depth, over which is summed, on
// the other. Memory knows either order, and a tile is kept in the order in which it is found:
//
//   kDepthInside    one line per row (or column) of the tile: 64 bytes of neighbouring depths (32 bf16, 16
//   fp32) kDepthOutside   one line per depth: 256 bytes of neighbouring rows (128 bf16, 64 fp32)
//
// The 16-byte chunks of a line are exchanged by an exclusive or, so that 8 lines' chunks of one place, which is
// what ldmatrix reads, lie in different banks.
#pragma once

#include "cuda/elements.cuh"

namespace restorelcc::cuda {

enum class Order { kDepthInside, kDepthOutside };

constexpr int kInsideLineBytes = 64, kOutsideLineBytes = 256, kChunkBytes = 16;

__device__ __forceinline__ int inside_offset(int line, int chunk) {
  return line * kInsideLineBytes + (chunk ^ (line >> 1 & 3)) * kChunkBytes;
}
__device__ __forceinline__ int outside_offset(int line, int chunk) {
  return line * kOutsideLineBytes + (chunk ^ (line & 7)) * kChunkBytes;
}

// 16 bytes at `from`, of which `left` exist (all, or none, where it is beyond 16 or below 1); zeros stand for
// the others. wide: `from` is 16-byte aligned. Otherwise element by element through registers: odd strides are
// allowed, not fast.
template <class Element>
__device__ __forceinline__ void copy_chunk(unsigned char* to, const char* from, int left, bool wide) {
  if (wide) {
    ptx::cp_async_16(to, from, min(max(left, 0), kChunkBytes));
    return;
  }
  using Bits = typename Element::Bits;
#pragma unroll 1
  for (int i = 0; i < kChunkBytes / Element::kBytes; ++i) {
    Bits bits = 0;
    if (i * Element::kBytes < left) bits = reinterpret_cast<const Bits*>(from)[i];
    reinterpret_cast<Bits*>(to)[i] = bits;
  }
}

// A tile of kLines rows of a matrix, depth inside. Which rows they are is said once, then the depth goes by.
template <class Element, int kLines, int kThreads>
class RowsCopy {
 public:
  static constexpr int kBytes = kLines * kInsideLineBytes;

  // row_of(line, &exists) -> where that row begins, or anything within the matrix where it does not exist.
  template <class RowOf>
  __device__ __forceinline__ void set(const RowOf& row_of) {
    exists_ = 0;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      bool exists = false;
      row_[pass] = row_of(line(pass), &exists);
      exists_ |= static_cast<int>(exists) << pass;
    }
  }

  // Bytes [byte, byte + 64) of each row, which has row_bytes.
  __device__ __forceinline__ void queue(unsigned char* tile, int byte, int row_bytes, bool wide) const {
    const int chunk = static_cast<int>(threadIdx.x) % 4;
    static_assert(kLinesPerPass % 8 == 0, "the exchange of chunks is that of the first pass");
    tile += inside_offset(line(0), chunk);
    byte += chunk * kChunkBytes;
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      if (kLines % kLinesPerPass != 0 && line(pass) >= kLines) break;
      const int left = (exists_ >> pass & 1) != 0 ? row_bytes - byte : 0;
      copy_chunk<Element>(tile + pass * kLinesPerPass * kInsideLineBytes, row_[pass] + byte, left, wide);
    }
  }

 private:
  static constexpr int kLinesPerPass = kThreads / 4, kPasses = (kLines + kLinesPerPass - 1) / kLinesPerPass;
  static __device__ __forceinline__ int line(int pass) {
    return static_cast<int>(threadIdx.x) / 4 + pass * kLinesPerPass;
  }
  const char* row_[kPasses];
  int exists_;
};

// A tile of kLines rows of a matrix, depth outside: 256 bytes of each, from `byte` on.
template <class Element, int kLines, int kThreads>
struct ColumnsCopy {
  static constexpr int kBytes = kLines * kOutsideLineBytes;

  template <class RowOf>
  static __device__ __forceinline__ void queue(unsigned char* tile, const RowOf& row_of, int byte,
                                               int row_bytes, bool wide) {
    constexpr int kLinesPerPass = kThreads / 16;
    static_assert(kLines % kLinesPerPass == 0, "every thread copies as much");
    const int chunk = static_cast<int>(threadIdx.x) % 16;
    static_assert(kLinesPerPass % 8 == 0, "the exchange of chunks is that of the first pass");
    tile += outside_offset(static_cast<int>(threadIdx.x) / 16, chunk);
    byte += chunk * kChunkBytes;
#pragma unroll
    for (int pass = 0; pass < kLines / kLinesPerPass; ++pass) {
      const int line = static_cast<int>(threadIdx.x) / 16 + pass * kLinesPerPass;
      bool exists = false;
      const char* const row = row_of(line, &exists);
      copy_chunk<Element>(tile + pass * kLinesPerPass * kOutsideLineBytes, row + byte,
                          exists ? row_bytes - byte : 0, wide);
    }
  }
};

// ---- The ring of stages.

constexpr int kStages = 3;  // two steps' tiles are under way while one is multiplied

// queue(stage, step) for every step, kStages - 1 steps ahead of multiply(stage, step). One barrier a step:
// behind it every thread has left the stage that is filled next.
template <class Queue, class Multiply>
__device__ __forceinline__ void through_stages(int steps, Queue&& queue, Multiply&& multiply) {
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) queue(step, step);
    ptx::cp_async_commit();
  }
  int stage = 0, filled = kStages - 1;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) queue(filled, step + kStages - 1);
    ptx::cp_async_commit();
    multiply(stage, step);
    filled = stage;
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
}

}  // namespace restorelcc::cuda
