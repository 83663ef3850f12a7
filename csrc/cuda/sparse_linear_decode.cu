// sparse_linear for few rows of x, in one pass over mask and values:
//
//   y[m, n] = sum_k x[m, k] W[n, k] + comp_rows[comp_index[m], n] + bias[n] + residual[m, n],     m < M <= 16
//
// At M = 1 a dense weight at 50 % costs 1.125 bytes (bf16) and must cost few instructions: an H100 has issue
// slots for 9.9 lane-instructions per dense weight in the time its memory takes, an A100 for 10.8. Counted from
// the SASS (tests/cuda counts and limits it), bf16, on sm_80 and sm_90:
//
//   per dense weight, in the main loop: load 1, step to the next value 7/8, convert 1, multiply 1,
//     zero 2/3 (mostly two registers at once)                                                          4.5
//   per 8 of them: mask word, shift, count, address, test of the bits (R2P: seven at once; and one)    0.8
//   per 32: x (load, unpack, is it inside of the row), the loop                                        0.6
//   the main loop                                                                                      5.9
//   per stage, 64 dense weights of a lane: next values' copies 0.4, mask words every other time 0.5,
//     barriers, waits, branches, what comes next 0.8                                                   1.7
//   all                                                                                           7.6  7.7
//
//  - A warp takes kDecodeRows rows of W and streams along the columns on its own, without block barriers. One
//    16-byte load per lane brings the mask of 4 x 1024 columns; population counts and a scan over the 8 lanes
//    of each row give, for each 32 bits of mask, where its values begin.
//  - The values of half a segment follow by 16-byte cp.async while the half before is multiplied: exactly the
//    bytes of the survivors, at any density. x is loaded one step ahead.
//  - A lane multiplies 8 neighbouring columns of each row, the last one first: test the bit, load the value and
//    step on if it is set, multiply. With its columns' bits at the top of the register, one population count of
//    it gives the place of the last value, and the bits are a byte that R2P turns into predicates. Neighbouring
//    lanes' values lie side by side, so a load of one value by 32 lanes touches the 256 bytes that hold 128
//    survivors: two passes through the banks. (To walk over survivors only, by find-first-set, needs 5
//    instructions per survivor, thus 2.5 per dense weight. But lanes with few survivors wait for those with
//    many, and x gathered at random costs four passes through the banks; the load unit would bind.)
//  - A pruned weight takes part as +0, as in the dense product: 0 * Inf is NaN. (To leave the zeros out
//    wherever x is finite would save the 2/3, but costs about as much to find out.)
//  - Where places in shared memory take turns, the next one is carried along from turn to turn: what the
//    compiler could compute from loop counters, it does compute, again for each use.
//
// At M = 1 the kernels are for x of the values' dtype (bf16 for int8); any other pair runs those for 4 rows.
// Int8 values are turned into floats in two instructions, without the slow integer conversion; a group of 128
// columns shares one scale, so each lane scales its sum of 8.
#include "cuda/decode_operands.cuh"
#include "cuda/device.cuh"
#include "cuda/output.cuh"
#include "cuda/sparse_linear.h"
#include "cuda/sparse_linear_tiles.h"

namespace restorelcc::cuda {
namespace {

// ---- The stream of one warp.

// 32 bits of mask and the address in shared memory of the value before the first one's.
struct alignas(8) MaskWord {
  uint32_t bits, before;
};

// What a warp keeps in shared memory.
template <int kBytes>
struct alignas(16) Staged {
  // Stages take turns in three places: when a segment is counted, two of the one before are still to come, less
  // the one that was just multiplied.
  MaskWord words[kDecodeRows][kPlaces][kStageWords];
  unsigned char values[2][kDecodeRows][decode_stage_bytes(kBytes)];  // of a segment's first and second half
};

// One of the warp's rows as its lane i of the kRowLanes sees it that count and copy for it.
struct RowCursor {
  const uint64_t* mask;  // of the next 128 columns that this lane counts
  int column, end;       // the first of them, and where the row ends: at once, if there is no such row
  uint64_t values;       // address of the first value that was not yet queued, + 16 i
  int half, rest;        // values of the first half of the segment that was counted last, and of its second
  // In the warp's shared memory:
  MaskWord* words;    // this lane's of a stage, in the first place
  int place;          // that they go to next
  unsigned char* to;  // the lane's first 16 bytes of a stage's values; and how far it is to the other stage's
  int to_other_stage;
  uint32_t values_at;  // address of the stage that this lane's columns are in
};

// 128 bits of the mask from column k on; 0 behind `end`.
__device__ __forceinline__ uint4 load_mask(const Arguments& a, const uint64_t* at, int k, int end) {
  uint4 bits{};
  if (k >= end) return bits;
  if (a.wide_mask) return ptx::load_stream_16(at);
  const uint64_t first = at[0], second = k / 64 + 1 < a.words ? at[1] : 0;
  bits.x = static_cast<uint32_t>(first);
  bits.y = static_cast<uint32_t>(first >> 32);
  bits.z = static_cast<uint32_t>(second);
  bits.w = static_cast<uint32_t>(second >> 32);
  return bits;
}

// The lane's part of the next segment's mask.
__device__ __forceinline__ uint4 next_mask(const Arguments& a, RowCursor& row) {
  const uint4 bits = load_mask(a, row.mask, row.column, row.end);
  row.mask += kDecodeSegment / 64;
  row.column += kDecodeSegment;
  return bits;
}

__device__ __forceinline__ int count(uint4 bits) {
  return __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
}

// Counts a segment's mask and writes down its words for the lanes that multiply.
template <int kBytes>
__device__ __forceinline__ void count_segment(uint4 mask, RowCursor& row) {
  const int i = static_cast<int>(threadIdx.x) % kRowLanes;
  const int own = count(mask);
  int through = own;  // survivors up to and with this lane's 128 columns
#pragma unroll
  for (int lanes = 1; lanes < kRowLanes; lanes *= 2) {
    const int before = __shfl_up_sync(kWholeWarp, through, static_cast<unsigned>(lanes), kRowLanes);
    if (i >= lanes) through += before;
  }
  row.half = __shfl_sync(kWholeWarp, through, kRowLanes / 2 - 1, kRowLanes);
  row.rest = __shfl_sync(kWholeWarp, through, kRowLanes - 1, kRowLanes) - row.half;

  const int skipped = i < kRowLanes / 2 ? 0 : row.half;  // not in this lane's stage, but in the other one
  const uint32_t ahead = (static_cast<uint32_t>(row.values) + static_cast<uint32_t>(skipped * kBytes)) % 16;
  uint32_t at = row.values_at + ahead + static_cast<uint32_t>((through - own - skipped - 1) * kBytes);
  MaskWord* const words = row.words + row.place * kStageWords;
  const uint32_t bits[4] = {mask.x, mask.y, mask.z, mask.w};
#pragma unroll
  for (int w = 0; w < kLaneWords; ++w) {
    words[w] = {bits[w], at};
    at += static_cast<uint32_t>(__popc(bits[w])) * kBytes;
  }
  row.place = row.place == 0 ? kPlaces - 1 : row.place - 1;  // two further
}

// Queues the values of one half of the segment that was counted. Copies are whole 16 bytes: they begin up to 15
// bytes early and end up to 15 late, within the row, whose values begin and end at a multiple of 16.
template <int kBytes>
__device__ __forceinline__ void copy_stage(int values, RowCursor& row) {
  constexpr int kTurn = kRowLanes * 16;
  constexpr int kCopies = divide_up(decode_stage_bytes(kBytes) / 2, kTurn);  // enough at 50 %
  const int i = static_cast<int>(threadIdx.x) % kRowLanes;
  const int bytes = values * kBytes;
  const uint64_t from = row.values / 16 * 16;
  const int left = static_cast<int>(row.values % 16) + bytes - i * 16;
#pragma unroll
  for (int c = 0; c < kCopies; ++c) {
    if (left > c * kTurn) ptx::cp_async_16(row.to + c * kTurn, reinterpret_cast<const void*>(from + c * kTurn));
  }
#pragma unroll 1
  for (int at = kCopies * kTurn; at < left; at += kTurn)
    ptx::cp_async_16(row.to + at, reinterpret_cast<const void*>(from + static_cast<uint32_t>(at)));
  ptx::cp_async_commit();
  row.values += static_cast<uint32_t>(bytes);
  row.to += row.to_other_stage;
  row.to_other_stage = -row.to_other_stage;
}

// The lane's cursor at column `begin`, a multiple of 128, of row n of W.
template <int kBytes>
__device__ __forceinline__ RowCursor start_row(const Arguments& a, Staged<kBytes>& staged, int64_t n, int begin,
                                               int end) {
  const int r = static_cast<int>(threadIdx.x) % kLane / kRowLanes,
            i = static_cast<int>(threadIdx.x) % kRowLanes;
  RowCursor row{};
  row.words = &staged.words[r][0][i % (kRowLanes / 2) * kLaneWords];
  row.place = i / (kRowLanes / 2);
  row.to = &staged.values[0][r][i * 16];
  row.to_other_stage = kDecodeRows * decode_stage_bytes(kBytes);
  row.values_at = ptx::shared_address(&staged.values[i / (kRowLanes / 2)][r][0]);
  row.end = n < a.p.weight.rows ? end : 0;
  const uint64_t* const mask = a.p.weight.mask + (row.end > 0 ? n : 0) * a.words;
  int survivors = 0;
#pragma unroll 1
  for (int k = i * kDecodePartMultiple; k < min(begin, row.end); k += kDecodeSegment)
    survivors += count(load_mask(a, mask + k / 64, k, begin));
#pragma unroll
  for (int bits = 1; bits < kRowLanes; bits *= 2) survivors += __shfl_xor_sync(kWholeWarp, survivors, bits);
  row.column = begin + i * (kDecodeSegment / kRowLanes);
  row.mask = mask + row.column / 64;
  if (row.end > 0) {
    row.values = reinterpret_cast<uintptr_t>(a.p.weight.values) +
                 static_cast<uint64_t>(a.p.weight.row_offsets[n] + survivors) * kBytes +
                 static_cast<uint32_t>(i * 16);
  }
  return row;
}

// The 8 weights behind the highest 8 bits; +0 where a bit is 0. `last` is the address of the last one's value.
template <rlcc_dtype kDtype>
__device__ __forceinline__ void expand(uint32_t bits, uint32_t last, float (&w)[kColumns]) {
  using Type = Value<kDtype>;
  uint32_t raw[kColumns];
#pragma unroll
  for (int j = kColumns - 1; j >= 0; --j) {
    raw[j] = 0;
    if ((bits & 1u << (32 - kColumns + j)) != 0) {
      raw[j] = *ptx::shared_pointer<const typename Type::Raw>(last);
      last -= Type::kBytes;
    }
  }
#pragma unroll
  for (int j = 0; j < kColumns; ++j) w[j] = Type::of(raw[j]);
}

// The main loop: sums += W x over the columns [k, k + kDecodeStage) of the warp's rows. `column` is the lane's
// place in its step and `x`, if there is one row of it, x there.
template <rlcc_dtype kDtype, int kRowsOfX>
__device__ __forceinline__ void multiply_stage(const Arguments& a, const X<kDtype, kRowsOfX>& of_x,
                                               const MaskWord* word, int64_t row, int k, int& column,
                                               float (&x)[kColumns], float (&sums)[kDecodeRows][kRowsOfX]) {
  const int lane = static_cast<int>(threadIdx.x) % kLane;
  const int shift = (3 - lane % 4) * kColumns;
  const int stop = min(k + kDecodeStage, of_x.end) + lane * kColumns;  // the same number of steps for all lanes
#pragma unroll 1
  do {
    uint32_t loaded[4];
    if (kRowsOfX == 1) of_x.load(0, column + kStep, loaded);  // under way meanwhile
    float w[kDecodeRows][kColumns];
#pragma unroll
    for (int r = 0; r < kDecodeRows; ++r) {
      const MaskWord entry = word[r * kPlaces * kStageWords];
      const uint32_t bits = entry.bits << shift;
      expand<kDtype>(bits, entry.before + static_cast<uint32_t>(__popc(bits)) * Value<kDtype>::kBytes, w[r]);
    }
    float scale[kDecodeRows];
    if (kDtype == RLCC_I8) {
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) {
        const bool inside = row + r < a.p.weight.rows && column < a.columns;
        scale[r] =
            inside ? float_of_bf16(a.p.weight.scales[(row + r) * a.scale_groups + column / RLCC_SCALE_COLUMNS])
                   : 0.0f;
      }
    }
#pragma unroll
    for (int m = 0; m < kRowsOfX; ++m) {
      if (kRowsOfX > 1) {
        if (m >= a.p.x_rows) break;
        of_x.load(m, column, loaded);
        of_x.unpack(m, column, loaded, x);
      }
#pragma unroll
      for (int r = 0; r < kDecodeRows; ++r) {
        float sum = kDtype == RLCC_I8 ? 0.0f : sums[r][m];
#pragma unroll
        for (int j = kColumns - 1; j >= 0; --j) sum = fmaf(w[r][j], x[j], sum);
        sums[r][m] = kDtype == RLCC_I8 ? fmaf(scale[r], sum, sums[r][m]) : sum;
      }
    }
    column += kStep;
    word += kStep / 32;
    if (kRowsOfX == 1) of_x.unpack(0, column, loaded, x);
  } while (column < stop);
}

// Sums each of the first kLeft values over the warp: value lane * kLeft / 32 + i ends up in values[i]. While
// there is more than one, a lane hands half of them to the other and sums the other half for both: 6 shuffles
// for 4 values, 62 for 64.
template <int kLeft, int kBits = kLane / 2, int kCount>
__device__ __forceinline__ void sum_over_warp(float (&values)[kCount]) {
  constexpr int kKept = kLeft > 1 ? kLeft / 2 : 1;
  const bool upper = (threadIdx.x & static_cast<unsigned>(kBits)) != 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    float kept = values[i], given = values[i];
    if (kLeft > 1) {
      kept = upper ? values[kLeft - kKept + i] : values[i];
      given = upper ? values[i] : values[kLeft - kKept + i];
    }
    values[i] = kept + __shfl_xor_sync(kWholeWarp, given, kBits);
  }
  if constexpr (kBits > 1) sum_over_warp<kKept, kBits / 2>(values);
}

// Block (b, s): row groups b groups .. (b + 1) groups, parts s warps_along_k .. of the columns.
template <rlcc_dtype kDtype, int kRowsOfX>
__global__ void __launch_bounds__(256, 1) sparse_linear_decode(const __grid_constant__ Arguments a) {
  constexpr int kBytes = Value<kDtype>::kBytes;
  static_assert(sizeof(Staged<kBytes>) == decode_warp_bytes(kBytes), "the plan counts the same bytes");
  RLCC_DYNAMIC_SHARED(unsigned char, shared);
  constexpr int kSums = kDecodeRows * kRowsOfX;
  RLCC_SHARED(float, partial, 8 * kSums);  // of each warp

  const int warp = static_cast<int>(threadIdx.x) / kLane, lane = static_cast<int>(threadIdx.x) % kLane;
  const int groups = static_cast<int>(blockDim.x) / kLane / a.warps_along_k;
  const int64_t block_row = static_cast<int64_t>(blockIdx.x) * groups * kDecodeRows;
  const int64_t row = block_row + warp / a.warps_along_k * kDecodeRows;
  const int64_t part = static_cast<int64_t>(blockIdx.y) * a.warps_along_k + warp % a.warps_along_k;
  // The last parts may have no columns: they begin behind the end.
  const int64_t part_begin = part * a.part_columns;
  const int begin = static_cast<int>(min(part_begin, int64_t{a.columns}));
  const int end = static_cast<int>(min(part_begin + a.part_columns, int64_t{a.columns}));
  Staged<kBytes>& staged = reinterpret_cast<Staged<kBytes>*>(shared)[warp];

  float sums[kDecodeRows][kRowsOfX] = {};
  if (begin < end && row < a.p.weight.rows) {
    RowCursor cursor = start_row(a, staged, row + lane / kRowLanes, begin, end);
    int column = begin + lane * kColumns;
    const X<kDtype, kRowsOfX> of_x(a, end);
    float x[kColumns];
    if (kRowsOfX == 1) {
      uint32_t loaded[4];
      of_x.load(0, column, loaded);
      of_x.unpack(0, column, loaded, x);
    }
    count_segment<kBytes>(next_mask(a, cursor), cursor);
    copy_stage<kBytes>(cursor.half, cursor);
    copy_stage<kBytes>(cursor.rest, cursor);

    const MaskWord* const words = &staged.words[0][0][lane / 4];
    int place = 0;
    bool second = false;
    uint4 mask{};
#pragma unroll 1
    for (int k = begin; k < end; k += kDecodeStage) {
      if (!second) mask = next_mask(a, cursor);
      ptx::cp_async_wait_group<1>();
      __syncwarp();  // this stage has arrived, for all lanes
      multiply_stage(a, of_x, words + place * kStageWords, row, k, column, x, sums);
      __syncwarp();  // and has been read
      if (!second) count_segment<kBytes>(mask, cursor);
      copy_stage<kBytes>(second ? cursor.rest : cursor.half, cursor);  // of the next segment
      place = place == kPlaces - 1 ? 0 : place + 1;
      second = !second;
    }
    ptx::cp_async_wait_group<0>();
  }

  float of_lane[kSums];
#pragma unroll
  for (int i = 0; i < kSums; ++i) of_lane[i] = sums[i % kDecodeRows][i / kDecodeRows];
  sum_over_warp<kSums>(of_lane);
#pragma unroll
  for (int i = 0; i < divide_up(kSums, kLane); ++i) {
    if (kSums >= kLane || lane % (kLane / kSums) == 0)
      partial[warp * kSums + lane * kSums / kLane + i] = of_lane[i];
  }
  __syncthreads();
  const int rows_of_x = static_cast<int>(a.p.x_rows);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < groups * kDecodeRows * rows_of_x;
       i += static_cast<int>(blockDim.x)) {
    const int r = i % kDecodeRows, group = i / kDecodeRows % groups, m = i / kDecodeRows / groups;
    const int64_t n = block_row + group * kDecodeRows + r;
    if (n >= a.p.weight.rows) continue;
    float sum = 0;
#pragma unroll 1
    for (int w = 0; w < a.warps_along_k; ++w) {
      sum += partial[((group * a.warps_along_k + w) * kRowsOfX + m) * kDecodeRows + r];
    }
    store_sum(a.output, static_cast<int>(blockIdx.y), m, static_cast<int>(n), sum);
  }
}

bool aligned_to_16(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

template <rlcc_dtype kDtype>
LaunchError launch_for(const Arguments& a, const DecodePlan& plan, void* stream) {
  const int64_t row_groups = divide_up(a.p.weight.rows, kDecodeRows);
  const dim3 grid(static_cast<unsigned>(divide_up(row_groups, plan.groups)),
                  static_cast<unsigned>(plan.splits));
  const unsigned threads = static_cast<unsigned>(plan.warps() * kLane);
  const size_t bytes = static_cast<size_t>(plan.warps()) * sizeof(Staged<Value<kDtype>::kBytes>);
  if (a.p.x_rows == 1 && a.p.x_dtype == natural_x(kDtype))
    return launch(sparse_linear_decode<kDtype, 1>, grid, threads, bytes, stream, a);
  if (a.p.x_rows <= 4) return launch(sparse_linear_decode<kDtype, 4>, grid, threads, bytes, stream, a);
  return launch(sparse_linear_decode<kDtype, 16>, grid, threads, bytes, stream, a);
}

LaunchError launch_for_dtype(const Arguments& a, const DecodePlan& plan, void* stream) {
  switch (a.p.weight.dtype) {
    case RLCC_F32: return launch_for<RLCC_F32>(a, plan, stream);
    case RLCC_BF16: return launch_for<RLCC_BF16>(a, plan, stream);
    case RLCC_F16: return launch_for<RLCC_F16>(a, plan, stream);
    default: return launch_for<RLCC_I8>(a, plan, stream);
  }
}

}  // namespace

LaunchError launch_sparse_linear_decode(const rlcc_sparse_linear_params& params, const DecodePlan& plan,
                                        float* workspace, void* stream) {
  Arguments a{};
  a.p = params;
  a.columns = static_cast<int>(params.weight.columns);
  a.words = divide_up(a.columns, 64);
  a.scale_groups = divide_up(a.columns, RLCC_SCALE_COLUMNS);
  a.part_columns = plan.part_columns;
  a.warps_along_k = plan.warps_along_k;
  a.wide_mask = a.words % 2 == 0 && aligned_to_16(params.weight.mask);
  const int x_bytes = params.x_dtype == RLCC_F32 ? 4 : 2;
  const bool wide_x = aligned_to_16(params.x) && (params.x_rows == 1 || params.x_stride * x_bytes % 16 == 0);
  a.last_wide_x = wide_x ? a.columns - 16 / x_bytes : -1;
  a.output = output_of(params, plan.splits > 1 ? workspace : nullptr);
  RLCC_RETURN_IF_NOT_LAUNCHED(launch_for_dtype(a, plan, stream));
  return plan.splits == 1 ? nullptr : launch_sparse_linear_sum(a.output, plan.splits, stream);
}

}  // namespace restorelcc::cuda
