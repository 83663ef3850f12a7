// linear_cross_entropy, forward: the state of each row's logits l[v] = sum_e h[m, e] W[v, e] + bias[v],
//
//   max = max_v l[v]     sum = sum_v exp(l[v] - max)     over a part of the vocabulary, v != labels[m]
//
// which exist as tiles in registers alone. A block goes with its rows of h through all tiles of its part
// without a gap: while the last logits of one tile are summed up, the first depths of the next are on their
// way. Rows are fastest in the grid, so that blocks at work together share tiles of W in L2.
#include "cuda/logit_tile.cuh"

namespace restorelcc::cuda {
namespace {

template <class P>
struct Shared {
  Stages<P, HiddenCopy<P>, WeightCopy<P>> stages;
  float max[P::kRowParts][P::kRows];
  float sum[P::kRowParts][P::kRows];
  float label_logit[P::kRows];
  int label[P::kRows];
};

// The tile's logits into the states of the thread's rows. Of the lanes of a row only the first one looks at its
// state.
template <class P>
__device__ __forceinline__ void take_tile(const rlcc_language_head& head, Shared<P>& shared, int first,
                                          typename P::Sums& sums) {
  using Element = typename P::Element;
  add_bias<P>(head.bias, first, static_cast<int>(head.vocabulary) - first, sums);
  const int first_row = P::first_row();
  const bool first_lane = lane_index() % P::kRowLanes == 0;
  float* const max_of = &shared.max[P::row_part()][first_row];
  float* const sum_of = &shared.sum[P::row_part()][first_row];
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
    const int step = P::row_step(i), label = column_of_label(shared.label[first_row + step], first);
    const float before = first_lane ? max_of[step] : minus_infinity();
    const float now = take_row_max<P>(sums, i, label, &shared.label_logit[first_row + step], before);
    const float sum = exponentials_of_row<P>(sums, i, now);
    if (!first_lane) continue;
    const float shrink = before == now ? 1.0f : exponential<Element>(before - now);
    max_of[step] = now;
    sum_of[step] = sum_of[step] * shrink + sum;
  }
}

template <class Element, int kRows>
__global__ void __launch_bounds__(LogitProduct<Element, kRows>::kThreads, LogitProduct<Element, kRows>::kBlocks)
    linear_cross_entropy_states(const __grid_constant__ LogitSource source,
                                const __grid_constant__ RowStates states) {
  using P = LogitProduct<Element, kRows>;
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  Shared<P>& shared = *reinterpret_cast<Shared<P>*>(memory);
  const int counted = *source.rows.counted, total = counted * source.groups;
  const int first_row = static_cast<int>(blockIdx.x) * kRows;
  if (first_row >= total) return;
  load_labels<P>(source, first_row, total, counted, shared.label);
  for (int at = static_cast<int>(threadIdx.x); at < P::kRowParts * kRows; at += P::kThreads) {
    shared.max[at / kRows][at % kRows] = minus_infinity();
    shared.sum[at / kRows][at % kRows] = 0;
  }

  const int64_t all_tiles = (source.head.vocabulary + P::kColumns - 1) / P::kColumns;
  const int first_tile = static_cast<int>(all_tiles * blockIdx.y / gridDim.y);
  const int tiles = static_cast<int>(all_tiles * (blockIdx.y + 1) / gridDim.y) - first_tile;
  const int row_bytes = static_cast<int>(source.head.columns) * Element::kBytes;
  const int depths = max((row_bytes + kInsideLineBytes - 1) / kInsideLineBytes, 1);  // steps of one tile
  HiddenCopy<P> hidden;
  WeightCopy<P> weight;
  set_hidden_rows<P>(source, first_row, total, counted, hidden);
  int queued_column = first_tile * P::kColumns, column = queued_column;
  int queued_depth = 0, depth = 0;
  typename P::Sums sums;
  clear<P>(sums);
  const typename P::Places places = P::places();
  const bool busy = P::has_rows(total - first_row);

  through_stages(
      tiles * depths,
      [&](int stage, int) {
        if (queued_depth == 0) set_weight_rows<P>(source, queued_column, weight);
        const int byte = queued_depth * kInsideLineBytes;
        hidden.queue(shared.stages.a[stage], byte, row_bytes, source.wide_h);
        weight.queue(shared.stages.b[stage], byte, row_bytes, source.wide_weight);
        if (++queued_depth == depths) {
          queued_depth = 0;
          queued_column += P::kColumns;
        }
      },
      [&](int stage, int) {
        if (busy) P::multiply(shared.stages.a[stage], shared.stages.b[stage], places, sums);
        if (++depth < depths) return;
        if (busy) take_tile<P>(source.head, shared, column, sums);
        depth = 0;
        column += P::kColumns;
        clear<P>(sums);
      });

  __syncthreads();
  for (int row = static_cast<int>(threadIdx.x); row < kRows && first_row + row < total; row += P::kThreads) {
    float most = minus_infinity(), sum = 0;
    for (int part = 0; part < P::kRowParts; ++part) most = fmaxf(most, shared.max[part][row]);
    for (int part = 0; part < P::kRowParts; ++part) {
      const float part_max = shared.max[part][row];
      sum += (part_max == most ? 1.0f : exponential<Element>(part_max - most)) * shared.sum[part][row];
    }
    const int label = shared.label[row];  // of one block alone
    if (label >= first_tile * P::kColumns && label < column)
      states.label_logit[first_row + row] = shared.label_logit[row];
    const int64_t at = static_cast<int64_t>(blockIdx.y) * source.capacity + first_row + row;
    states.max[at] = most;
    states.sum[at] = sum;
  }
}

}  // namespace

LaunchError launch_states(const LogitSource& source, const RowStates& states, int tile_rows, void* stream) {
  return with_tile(source.head.dtype, tile_rows, [&](auto element, auto rows) {
    using P = LogitProduct<decltype(element), decltype(rows)::kValue>;
    const dim3 grid(row_blocks(source, tile_rows), static_cast<unsigned>(states.parts));
    return launch(linear_cross_entropy_states<decltype(element), decltype(rows)::kValue>, grid, P::kThreads,
                  sizeof(Shared<P>), stream, source, states);
  });
}

}  // namespace restorelcc::cuda
