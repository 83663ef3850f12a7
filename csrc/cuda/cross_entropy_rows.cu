// What happens row by row around the tiles of logits: which rows count, their losses, their contrasts, the
// merging of states. None of it is worth more than a few microseconds; all sums are in a fixed order.
#include <algorithm>

#include "cuda/cross_entropy.h"
#include "cuda/device.cuh"

namespace restorelcc::cuda {
namespace {

constexpr unsigned kWarpMask = 0xffffffffu;
constexpr int kMostListThreads = 1024;
constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }
__device__ __forceinline__ int thread_of_grid() {
  return static_cast<int>(blockIdx.x) * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
}

// ---- Which rows count, numbered in their order: one block, as many rows at a time as it has threads.

__device__ __forceinline__ int label_of(const RowQuery& q, int m) {
  const int64_t label = q.labels[m];
  if (label == q.ignore_index) return kNoLabel;
  return label >= 0 && label < q.vocabulary ? static_cast<int>(label) : kBadLabel;
}

__device__ __forceinline__ bool counts(const RowQuery& q, int m, int label) {
  if (label == kNoLabel && q.all == 0) return false;
  if (q.segments != nullptr && q.segments[m] < 0) return false;
  return q.weights == nullptr || q.weights[m] != 0;
}

// 2^(13 - exponent of `largest`), by the bits: 1 where that says nothing.
__device__ __forceinline__ float scale_of(float largest) {
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23 & 255u);
  const bool usable = exponent != 0 && exponent != 255;
  const int power = usable ? min(max(13 - (exponent - 127), -100), 100) : 0;
  return __uint_as_float(static_cast<unsigned>(power + 127) << 23);
}

__global__ void __launch_bounds__(kMostListThreads)
    list_rows(const __grid_constant__ RowQuery q, const __grid_constant__ RowList list, float* max_of,
              float* sum_of) {
  RLCC_SHARED(int, warp_counts, kMostListThreads / 32);
  RLCC_SHARED(float, warp_largest, kMostListThreads / 32);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int threads = static_cast<int>(blockDim.x), warps = threads / 32;
  int before = 0;
  float largest = 0;
  for (int first = 0; first < q.rows; first += threads) {
    const int m = first + thread;
    bool counted = false;
    int label = kNoLabel;
    if (m < q.rows) {
      label = label_of(q, m);
      counted = counts(q, m, label);
      if (q.nll != nullptr && label == kNoLabel) q.nll[m] = 0;
      if (max_of != nullptr) {
        max_of[m] = minus_infinity();
        sum_of[m] = 0;
      }
      if (counted && q.grad_nll != nullptr) largest = fmaxf(largest, fabsf(q.grad_nll[m]));
    }
    const unsigned vote = __ballot_sync(kWarpMask, counted);
    if (lane == 0) warp_counts[warp] = __popc(vote);
    __syncthreads();
    int number = before + __popc(vote & ((1u << lane) - 1));
    for (int w = 0; w < warps; ++w) {
      const int count = warp_counts[w];
      before += count;
      if (w < warp) number += count;
    }
    __syncthreads();
    if (m >= q.rows) continue;
    if (list.position != nullptr) list.position[m] = counted ? number : -1;
    if (counted) {
      list.row[number] = m;
      list.label[number] = label;
    }
  }
  if (thread == 0) *list.counted = before;
  if (q.scale == nullptr) return;
#pragma unroll
  for (int bits = 1; bits < 32; bits *= 2) largest = fmaxf(largest, __shfl_xor_sync(kWarpMask, largest, bits));
  if (lane == 0) warp_largest[warp] = largest;
  __syncthreads();
  if (thread != 0) return;
  for (int w = 1; w < warps; ++w) largest = fmaxf(largest, warp_largest[w]);
  q.scale[0] = scale_of(largest);
  q.scale[1] = 1 / scale_of(largest);
}

// ---- Losses from states: a warp per row.

struct Row {
  int number, j, m, label;
};

// Lane l takes the parts l, l + 32, ..; then the lanes are added pairwise.
__device__ __forceinline__ double merged_sum(const RowStates& states, int capacity, int number, float* most) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  *most = minus_infinity();
  for (int part = lane; part < states.parts; part += 32) {
    *most = fmaxf(*most, states.max[static_cast<int64_t>(part) * capacity + number]);
  }
#pragma unroll
  for (int bits = 1; bits < 32; bits *= 2) *most = fmaxf(*most, __shfl_xor_sync(kWarpMask, *most, bits));
  double sum = 0;
  for (int part = lane; part < states.parts; part += 32) {
    const int64_t at = static_cast<int64_t>(part) * capacity + number;
    const double shrink = states.max[at] == *most ? 1.0 : exp(double{states.max[at]} - double{*most});
    sum += shrink * states.sum[at];
  }
#pragma unroll
  for (int bits = 1; bits < 32; bits *= 2) sum += __shfl_xor_sync(kWarpMask, sum, bits);
  return sum;
}

// lse = log(exp(others) + exp(label)), nll = lse - label = log1p(exp(others - label)), without a difference of
// two large numbers. NaN: a logit is NaN or +Inf, or all are -Inf.
__device__ __forceinline__ void loss_of(float most, double sum, float label, float* nll, float* lse) {
  const double others = double{most} + log(sum), ahead = others - double{label};
  const bool infinite = label == -minus_infinity();
  const double loss = infinite ? double{not_a_number()} : ahead > 40 ? ahead : log1p(exp(ahead));
  *nll = static_cast<float>(loss);
  *lse = static_cast<float>(ahead > 0 ? others + log1p(exp(-ahead)) : double{label} + loss);
}

__device__ __forceinline__ void write_loss(const LogitSource& source, const RowStates& states,
                                           const LossOutputs& out, const Row& row, float most, double sum) {
  float nll = not_a_number(), lse = 0;
  if (row.label >= 0) {
    const float label = states.label_logit[row.number];
    loss_of(most, sum, label, &nll, &lse);
    if (out.factor != nullptr) {
      // Of the others' softmax; of the label's, less 1: - (the others' sum). Relative to the larger of both
      // maxima.
      const double reference = fmaxf(most, label), shrink = exp(double{most} - reference);
      const double total = sum * shrink + exp(double{label} - reference);
      out.factor[row.number] = static_cast<float>(shrink / total) / exponential_scale(source.head.dtype);
      out.label_factor[row.number] = static_cast<float>(-(sum * shrink) / total);
    }
  } else {
    // Nothing to choose from is the only sum that may be empty.
    lse = most == minus_infinity() && sum == 0 && out.vocabulary > 0
              ? not_a_number()
              : static_cast<float>(double{most} + log(sum));
  }
  const int at = out.by_number != 0 ? row.number : row.m;
  if (row.label != kNoLabel) out.nll[at] = nll;
  if (out.lse != nullptr) out.lse[at] = lse;
}

__global__ void __launch_bounds__(kRowThreads, 2)
    losses(const __grid_constant__ LogitSource source, const __grid_constant__ RowStates states,
           const __grid_constant__ LossOutputs out) {
  const int counted = *source.rows.counted;
  Row row{};
  row.number = static_cast<int>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / 32;
  if (row.number >= counted * source.groups) return;
  row.j = row.number % counted;
  row.m = source.rows.row[row.j];
  row.label = source.rows.label[row.j];
  float most = 0;
  const double sum = merged_sum(states, source.capacity, row.number, &most);
  if (threadIdx.x % 32 == 0) write_loss(source, states, out, row, most, sum);
}

// ---- contrast[g, s]: a warp each, which fetches 32 rows at once and adds those of its segment one after the
// other.

__global__ void __launch_bounds__(kRowThreads)
    contrasts(const __grid_constant__ rlcc_head_contrast_params p, const __grid_constant__ RowList rows,
              const float* nll) {
  const int lane = static_cast<int>(threadIdx.x) % 32, counted = *rows.counted;
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kRowWarps + static_cast<int>(threadIdx.x) / 32;
  if (pair >= p.groups * p.segment_count) return;
  const int64_t group = pair / p.segment_count, segment = pair % p.segment_count;
  double sum = 0, total = 0;
  for (int first = 0; first < counted; first += 32) {
    const int j = first + lane;
    bool mine = false;
    double weight = 0, term = 0;
    if (j < counted) {
      const int m = rows.row[j];
      const int64_t at = p.segments != nullptr ? p.segments[m] : 0;
      mine = at == segment || at >= p.segment_count;  // from outside: everybody's, as NaN
      weight = p.weights != nullptr ? double{p.weights[m]} : 1.0;
      term = at >= p.segment_count ? double{not_a_number()}
                                   : weight * (double{nll[group * counted + j]} - double{p.base_nll[m]});
    }
    for (unsigned left = __ballot_sync(kWarpMask, mine); left != 0; left &= left - 1) {
      const int from = __ffs(static_cast<int>(left)) - 1;
      sum += __shfl_sync(kWarpMask, term, from);
      total += __shfl_sync(kWarpMask, weight, from);
    }
  }
  if (lane == 0) p.contrast[pair] = sum / total;
}

// ---- merge_chunk: a thread per row.
//
// The products of a chunk's exponentials and W are summed tile by tile. Each tile's exponentials are relative
// to that tile's own maximum, so before it is added, what is there is multiplied by exp(reference before -
// reference of the tile). This may enlarge sums, by e^40 at most: a tile whose maximum lies further below
// counts as if it lay there, whose probabilities (all below e^-40 = 4e-18) are then too large. In the loss they
// are exact.

constexpr float kFurthestBelow = 40;

__global__ void __launch_bounds__(kRowThreads)
    merge_chunk(const __grid_constant__ LogitSource source, int tiles,
                const __grid_constant__ ChunkStates chunk, const __grid_constant__ RowStates states) {
  const int number = thread_of_grid();
  if (number >= *source.rows.counted * source.groups) return;
  const float before = states.max[number];
  float now = before;
  for (int t = 0; t < tiles; ++t)
    now = fmaxf(now, chunk.max[static_cast<int64_t>(t) * source.capacity + number]);
  const bool any = now != minus_infinity();  // finite logit; otherwise all exponentials are 0, or NaN
  double sum =
      before == now ? double{states.sum[number]} : exp(double{before} - double{now}) * states.sum[number];
  for (int t = 0; t < tiles; ++t) {
    const int64_t at = static_cast<int64_t>(t) * source.capacity + number;
    const float max = chunk.max[at];
    sum += (max == now ? 1.0 : exp(double{max} - double{now})) * chunk.sum[at];
    chunk.max[at] = any ? fmaxf(max, now - kFurthestBelow) : 0;
  }
  chunk.before[number] = before;
  chunk.after[number] = any ? now : 0;
  states.max[number] = now;
  states.sum[number] = static_cast<float>(sum);
}

unsigned blocks_of(int64_t work, int64_t each) { return static_cast<unsigned>(divide_up(work, each)); }

}  // namespace

LaunchError launch_list_rows(const RowQuery& query, const RowList& rows, const RowStates* states,
                             void* stream) {
  const int64_t threads = std::min<int64_t>(
      std::max(divide_up(static_cast<int64_t>(query.rows), 32), int64_t{1}) * 32, kMostListThreads);
  return launch(list_rows, 1, static_cast<unsigned>(threads), 0, stream, query, rows,
                states != nullptr ? states->max : nullptr, states != nullptr ? states->sum : nullptr);
}

LaunchError launch_losses(const LogitSource& source, const RowStates& states, const LossOutputs& outputs,
                          void* stream) {
  return launch(losses, blocks_of(source.capacity, kRowWarps), kRowThreads, 0, stream, source, states, outputs);
}

LaunchError launch_contrast(const rlcc_head_contrast_params& params, const RowList& rows, const float* nll,
                            void* stream) {
  const int64_t pairs = params.groups * params.segment_count;
  return launch(contrasts, blocks_of(pairs, kRowWarps), kRowThreads, 0, stream, params, rows, nll);
}

LaunchError launch_merge_chunk(const LogitSource& source, const Chunk& chunk, const ChunkStates& tiles,
                               const RowStates& states, void* stream) {
  const int count = static_cast<int>(divide_up(chunk.columns, loss_tile_columns(source.head.dtype)));
  return launch(merge_chunk, blocks_of(source.capacity, kRowThreads), kRowThreads, 0, stream, source, count,
                tiles, states);
}

}  // namespace restorelcc::cuda
