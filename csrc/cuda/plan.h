// How a CUDA op is cut into blocks: pure functions of the problem and the device, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "restorelcc/params.h"

namespace restorelcc::cuda {

// What the choices depend on; and the compute capability, on which none does so far: 86 is 8.6.
struct DeviceInfo {
  int multiprocessors;            // SMs
  size_t shared_bytes_per_block;  // dynamic shared memory that a block may ask for
  int capability = 0;
};

// Columns are counted in 32 bits on the device, with room for a few tiles behind the last one.
constexpr int64_t kMostColumns = int64_t{1} << 30;

// Of a dimension elsewhere: kernels count in 32 bits, whole tiles included.
constexpr int64_t kMostSize = INT32_MAX - 256;

template <class Integer>
constexpr Integer divide_up(Integer a, int b) {
  return (a + b - 1) / b;
}

// ---- sparse_linear, M <= 16: a warp multiplies kDecodeRows rows of W over one part of the columns. ----

constexpr int kDecodeMostRowsOfX = 16;
// Rows of W per warp. They share each load of x (8 values are unpacked once for 4 x 8 weights) and, with 8
// lanes each, make one 16-byte load per lane out of 1024 columns of mask. Eight rows would need 64 registers
// for expanded values.
constexpr int kDecodeRows = 4;
// Columns whose mask is loaded and counted at once: 8 lanes x 128 bits.
constexpr int kDecodeSegment = 1024;
// Columns whose values are staged at once: half a segment, so that one half is under way while the other is
// multiplied.
constexpr int kDecodeStage = kDecodeSegment / 2;
// A part begins where a 16-byte load of the mask does.
constexpr int kDecodePartMultiple = 128;

// Bytes of staged values per row of W: all of a stage's weights may survive, and they begin anywhere in 16
// bytes.
constexpr int decode_stage_bytes(int value_bytes) { return kDecodeStage * value_bytes + 16; }
// Two stages of values, and three of {32 bits of mask, where their values begin}.
constexpr int decode_warp_bytes(int value_bytes) {
  return kDecodeRows * (2 * decode_stage_bytes(value_bytes) + 3 * kDecodeStage / 32 * 8);
}

struct DecodePlan {
  int warps_along_k;  // parts of the columns within a block, summed in shared memory
  int groups;         // of kDecodeRows rows of W within a block
  int splits;         // parts of the columns over blocks: above 1, summed by a second kernel from the workspace
  int part_columns;   // columns of one warp, a multiple of kDecodePartMultiple

  int warps() const { return warps_along_k * groups; }
};

// Enough warps to fill the device twice at 16 warps a multiprocessor (what 40 KB of shared memory per four
// warps leave on an A100), as long as a warp keeps a stage of columns to work on: below that, starting it costs
// more than it saves. Parts are put side by side in a block first, which costs a barrier; over blocks they cost
// another kernel.
inline DecodePlan plan_decode(int64_t outputs, int64_t columns, int value_bytes, const DeviceInfo& device) {
  const int64_t row_groups = std::max<int64_t>(divide_up(outputs, kDecodeRows), 1);
  const int64_t wanted_warps = int64_t{32} * device.multiprocessors;
  int parts = 1;
  while (parts < 64 && row_groups * parts < wanted_warps && columns > parts * kDecodeStage) parts *= 2;
  int most_warps = 8;
  while (most_warps > 1 &&
         static_cast<size_t>(most_warps * decode_warp_bytes(value_bytes)) > device.shared_bytes_per_block) {
    most_warps /= 2;
  }

  DecodePlan plan{};
  plan.warps_along_k = std::min(parts, most_warps);
  plan.groups = std::max(std::min(4, most_warps) / plan.warps_along_k, 1);
  plan.splits = parts / plan.warps_along_k;
  const int granules = static_cast<int>(divide_up(divide_up(columns, parts), kDecodePartMultiple));
  plan.part_columns = std::max(granules, 1) * kDecodePartMultiple;
  return plan;
}

// Partial sums [splits, M, N] in fp32.
inline size_t decode_workspace_bytes(const DecodePlan& plan, int64_t rows_of_x, int64_t outputs) {
  if (plan.splits == 1) return 0;
  return static_cast<size_t>(plan.splits * std::min<int64_t>(rows_of_x, kDecodeMostRowsOfX) * outputs) *
         sizeof(float);
}

}  // namespace restorelcc::cuda
