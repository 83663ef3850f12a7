// A tile of W in shared memory, out of mask and values, in two steps a pipeline stage apart:
//
//   stage    the survivors of each row, in 16-byte granules by cp.async; and for each 32 columns the mask and
//            where their values begin. Exactly the survivors' bytes, at most 15 more at each end.
//
//   decode   eight lanes take 32 columns, four each: count the bits below, then test, load, step on. What was
//            pruned is +0. Neighbouring lanes' values lie side by side, so their loads hardly meet in a bank.
//
// About 7 lane-instructions (counted in the SASS of sm_80) and 1.3 shared-memory loads per dense weight, spread
// over as many products as the tile has output rows. A register window shuffled by byte permutes needs fewer
// loads, but more instructions.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/operand_tile.cuh"

namespace restorelcc::cuda {

// 32 columns: which survive, and at which byte of the staged values the first survivor lies.
struct alignas(8) MaskWord {
  uint32_t bits, values;
};

// kPlanes 1: 16-bit values as they are, int8 values as integers (the caller scales the sums). kPlanes 2: int8
// values times their scale, exactly, as the sum of two bf16: 7 bits times 8 bits is 15 bits.
template <class Half, rlcc_dtype kValues, int kRows, int kColumns, int kThreads, int kPlanes>
struct WeightTile {
  static constexpr int kValueBytes = kValues == RLCC_I8 ? 1 : 2;
  static constexpr int kWords = kColumns / 32;        // of a row
  static constexpr int kRowLanes = kThreads / kRows;  // threads that stage one row
  static constexpr int kRowBytes = kColumns * kValueBytes + 16;
  static constexpr int kElements = kRows * kColumns;
  static_assert(kThreads % kRows == 0 && kLanes % kRowLanes == 0, "the lanes of a row are in one warp");
  static_assert(kPlanes == 1 || (kValues == RLCC_I8 && Half::kDtype == RLCC_BF16), "f16 has too short a range");

  struct alignas(16) Stage {
    unsigned char values[kRows * kRowBytes];
    MaskWord words[kRows * kWords];
    float scales[kPlanes == 2 ? kRows : 4];
  };

  // By all threads of a row; `part` is which of them. `position`: values of this row before the tile. Returns
  // those after it.
  static __device__ __forceinline__ uint32_t stage(Stage& stage, int row, int part,
                                                   const uint32_t (&bits)[kWords],
                                                   const unsigned char* row_values, uint32_t position) {
    const uint32_t first = position * kValueBytes, into = first % 16;
    uint32_t end = into;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      if (w % kRowLanes == part) {
        stage.words[row * kWords + w] = {bits[w], static_cast<uint32_t>(row * kRowBytes) + end};
      }
      end += static_cast<uint32_t>(__popc(bits[w])) * kValueBytes;
    }
    // A row without survivors here may fetch the granule it stands in the middle of; a row of zeros stands at
    // none.
    const unsigned char* const from = row_values + (first - into);
#pragma unroll
    for (int i = 0; i < (kRowBytes / 16 + kRowLanes - 1) / kRowLanes; ++i) {
      const uint32_t at = static_cast<uint32_t>(i * kRowLanes + part) * 16;
      if (at < end) ptx::cp_async_16(stage.values + row * kRowBytes + at, from + at);
    }
    return position + (end - into) / kValueBytes;
  }

  // tile: kPlanes times kElements. Everything is loaded before anything is stored: the compiler cannot know
  // that the two do not overlap, and would wait for shared memory as often as there are turns.
  static __device__ __forceinline__ void decode(const Stage& stage, uint16_t* tile) {
    constexpr int kTurns = kElements / 4 / kThreads;
    static_assert(kTurns * 4 * kThreads == kElements && kThreads % 8 == 0, "whole turns of the block");
    const int lane = static_cast<int>(threadIdx.x) % 8;
    uint32_t raw[kTurns][4];
    MaskWord masks[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) masks[turn] = stage.words[word_of(turn)];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const uint32_t below = masks[turn].bits & ((1u << (lane * 4)) - 1), four = masks[turn].bits >> (lane * 4);
      const unsigned char* from = stage.values + masks[turn].values + __popc(below) * kValueBytes;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        raw[turn][i] = 0;
        if ((four >> i & 1) != 0) {
          raw[turn][i] = kValueBytes == 1 ? *from : *reinterpret_cast<const uint16_t*>(from);
          from += kValueBytes;
        }
      }
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = word_of(turn) / kWords, column = word_of(turn) % kWords * 32 + lane * 4;
      uint16_t* const to = tile + place<kColumns>(row, column);
      if constexpr (kValues != RLCC_I8) {
        store(to, raw[turn][0] | raw[turn][1] << 16, raw[turn][2] | raw[turn][3] << 16);
      } else {
        store_int8(to, raw[turn], kPlanes == 2 ? stage.scales[row] : 1.0f);
      }
    }
  }

 private:
  static __device__ __forceinline__ int word_of(int turn) {
    return (turn * kThreads + static_cast<int>(threadIdx.x)) / 8;
  }
  static __device__ __forceinline__ void store_int8(uint16_t* to, const uint32_t (&raw)[4], float scale) {
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // 2^23 + (value + 128) less what was added: no slow integer conversion. A pruned place is 0, too.
      value[i] = __uint_as_float((raw[i] ^ 0x80u) | 0x4b000000u) - 8388736.0f;
      if constexpr (kPlanes == 2) value[i] *= scale;
    }
    const uint32_t low = Half::pair(value[0], value[1]), high = Half::pair(value[2], value[3]);
    store(to, low, high);
    if constexpr (kPlanes == 2) {
      store(to + kElements, Half::pair(value[0] - Half::low(low), value[1] - Half::high(low)),
            Half::pair(value[2] - Half::low(high), value[3] - Half::high(high)));
    }
  }
  static __device__ __forceinline__ void store(uint16_t* to, uint32_t low, uint32_t high) {
    *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
  }
};

}  // namespace restorelcc::cuda
