// A chunk of the vocabulary: tiles of logits, turned into what is multiplied by W and h, and stored in the
// head's type.
//
//   forward    exp(l - max of the row's logits in this tile), the label's own 0, and max and sum of each row
//   and tile.
//              A maximum of the whole row is not known yet; merge_chunk and the product with W make up for
//              that.
//   backward   scale grad_nll[m] (exp(l - lse[m]) - [v = labels[m]])
//
// A block has one tile; rows are fastest in the grid, so that blocks at work together share tiles of W in L2.
#include "cuda/logit_tile.cuh"

namespace restorelcc::cuda {
namespace {

template <class P>
using LogitStages = Stages<P, HiddenCopy<P>, WeightCopy<P>>;

// In the same memory, once the product is done: two blocks of it fit in the 100 KiB of sm_86 and sm_89.
template <class P>
struct Rows {
  // Forward: max and sum over a part of the tile's columns. Backward: max[0] is lse, sum[0] scale grad_nll.
  float max[P::kRowParts][P::kRows];
  float sum[P::kRowParts][P::kRows];
  float column_sum[P::kColumnParts][P::kColumns];
  int label[P::kRows];
};

template <class P>
constexpr size_t shared_bytes() {
  return sizeof(LogitStages<P>) > sizeof(Rows<P>) ? sizeof(LogitStages<P>) : sizeof(Rows<P>);
}

struct Place {
  int first_row, total, counted;  // of numbers
  int first_column;               // of the tile, in the chunk
};

// The logits of the block's tile, bias included; -Inf behind the last column. Leaves the stages free.
template <class P>
__device__ __forceinline__ void form_logits(const LogitSource& source, const Chunk& chunk, const Place& at,
                                            LogitStages<P>& stages, typename P::Sums& sums) {
  const int row_bytes = static_cast<int>(source.head.columns) * P::Element::kBytes;
  const int depths = (row_bytes + kInsideLineBytes - 1) / kInsideLineBytes;
  HiddenCopy<P> hidden;
  WeightCopy<P> weight;
  set_hidden_rows<P>(source, at.first_row, at.total, at.counted, hidden);
  set_weight_rows<P>(source, chunk.first + at.first_column, weight);
  const typename P::Places places = P::places();
  const bool busy = P::has_rows(at.total - at.first_row);
  clear<P>(sums);
  int byte = 0;
  through_stages(
      depths,
      [&](int stage, int) {
        hidden.queue(stages.a[stage], byte, row_bytes, source.wide_h);
        weight.queue(stages.b[stage], byte, row_bytes, source.wide_weight);
        byte += kInsideLineBytes;
      },
      [&](int stage, int) {
        if (busy) P::multiply(stages.a[stage], stages.b[stage], places, sums);
      });
  __syncthreads();
  add_bias<P>(source.head.bias, chunk.first + at.first_column, chunk.columns - at.first_column, sums);
}

// sums, narrowed, to rows that exist. Columns behind the chunk's last are stored too: they are 0, or never
// read.
template <class P>
__device__ __forceinline__ void store_values(const Chunk& chunk, const Place& at, typename P::Sums& sums) {
  using Element = typename P::Element;
  using Bits = typename Element::Bits;
  const int row = at.first_row + P::first_row();
  Bits* const own = static_cast<Bits*>(chunk.values) + row * chunk.stride + at.first_column + P::first_column();
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
    if (row + P::row_step(i) >= at.total) break;
    Bits* const to = own + P::row_step(i) * chunk.stride;
#pragma unroll
    for (int j = 0; j < P::kThreadColumns; ++j) {
      if constexpr (Element::kBytes == 2) {
        if (j % 2 == 0) {
          *reinterpret_cast<uint32_t*>(to + P::column_step(j)) = Element::pair(sums(i, j), sums(i, j + 1));
        }
      } else {
        to[P::column_step(j)] = sums(i, j);
      }
    }
  }
}

// The sum of each column over the block's rows, in fp32: what 16 bits keep of a small share is enough for
// products, whose result is rounded to 16 bits too, but not for the fp32 gradient of the bias.
template <class P>
__device__ __forceinline__ void sum_columns(Rows<P>& shared, typename P::Sums& sums, float* block_sums) {
#pragma unroll
  for (int j = 0; j < P::kThreadColumns; ++j) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < P::kThreadRows; ++i) sum += sums(i, j);
    sum = sum_of_column<P::kRowLanes>(sum);
    if (lane_index() < P::kRowLanes)
      shared.column_sum[P::column_part()][P::first_column() + P::column_step(j)] = sum;
  }
  __syncthreads();
  for (int column = static_cast<int>(threadIdx.x); column < P::kColumns; column += P::kThreads) {
    float sum = 0;
    for (int part = 0; part < P::kColumnParts; ++part) sum += shared.column_sum[part][column];
    block_sums[column] = sum;
  }
}

template <class P>
__device__ __forceinline__ Place place_of_block(const LogitSource& source) {
  const int counted = *source.rows.counted;
  return {static_cast<int>(blockIdx.x) * P::kRows, counted * source.groups, counted,
          static_cast<int>(blockIdx.y) * P::kColumns};
}

template <class Element, int kRows>
__global__ void __launch_bounds__(LogitProduct<Element, kRows>::kThreads, LogitProduct<Element, kRows>::kBlocks)
    linear_cross_entropy_exponentials(const __grid_constant__ LogitSource source,
                                      const __grid_constant__ Chunk chunk,
                                      const __grid_constant__ ChunkStates tiles, float* label_logit,
                                      float scale) {
  using P = LogitProduct<Element, kRows>;
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  Rows<P>& shared = *reinterpret_cast<Rows<P>*>(memory);
  const Place at = place_of_block<P>(source);
  if (at.first_row >= at.total) return;
  typename P::Sums sums;
  form_logits<P>(source, chunk, at, *reinterpret_cast<LogitStages<P>*>(memory), sums);
  load_labels<P>(source, at.first_row, at.total, at.counted, shared.label);
  __syncthreads();

  const int first_row = P::first_row(), first = static_cast<int>(chunk.first) + at.first_column;
  const bool first_lane = lane_index() % P::kRowLanes == 0;
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
    const int row = first_row + P::row_step(i);
    // Of rows that exist only one thread of the whole grid has the label.
    const float max =
        take_row_max<P>(sums, i, column_of_label(shared.label[row], first), label_logit + at.first_row + row);
    if (first_lane) shared.max[P::row_part()][row] = max;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
    const int row = first_row + P::row_step(i);
    float max = shared.max[0][row];
#pragma unroll
    for (int part = 1; part < P::kRowParts; ++part) max = fmaxf(max, shared.max[part][row]);
    const float sum = exponentials_of_row<P>(sums, i, max);
    if (first_lane) shared.sum[P::row_part()][row] = sum;
#pragma unroll
    for (int j = 0; j < P::kThreadColumns; ++j) sums(i, j) *= scale;
  }
  store_values<P>(chunk, at, sums);
  __syncthreads();
  for (int row = static_cast<int>(threadIdx.x); row < kRows && at.first_row + row < at.total;
       row += P::kThreads) {
    float max = minus_infinity(), sum = 0;
    for (int part = 0; part < P::kRowParts; ++part) {
      max = fmaxf(max, shared.max[part][row]);
      sum += shared.sum[part][row];
    }
    const int64_t number = static_cast<int64_t>(blockIdx.y) * source.capacity + at.first_row + row;
    tiles.max[number] = max;
    tiles.sum[number] = sum;
  }
}

template <class Element, int kRows>
__global__ void __launch_bounds__(LogitProduct<Element, kRows>::kThreads, LogitProduct<Element, kRows>::kBlocks)
    linear_cross_entropy_logit_gradients(const __grid_constant__ LogitSource source,
                                         const __grid_constant__ Chunk chunk,
                                         const __grid_constant__ LossGradient gradient) {
  using P = LogitProduct<Element, kRows>;
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  Rows<P>& shared = *reinterpret_cast<Rows<P>*>(memory);
  const Place at = place_of_block<P>(source);
  if (at.first_row >= at.total) return;
  typename P::Sums sums;
  form_logits<P>(source, chunk, at, *reinterpret_cast<LogitStages<P>*>(memory), sums);
  load_labels<P>(source, at.first_row, at.total, at.counted, shared.label);
  for (int row = static_cast<int>(threadIdx.x); row < kRows; row += P::kThreads) {
    const bool exists = at.first_row + row < at.total;
    const int m = exists ? source.rows.row[at.first_row + row] : 0;
    const bool bad = exists && source.rows.label[at.first_row + row] == kBadLabel;
    shared.max[0][row] = exists ? gradient.lse[m] : -minus_infinity();  // no share of anything
    shared.sum[0][row] = bad ? not_a_number() : exists ? gradient.grad_nll[m] * gradient.scale[0] : 0;
  }
  __syncthreads();

  const int first_row = P::first_row(), first = static_cast<int>(chunk.first) + at.first_column;
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
    const int row = first_row + P::row_step(i);
    const float lse = shared.max[0][row], factor = shared.sum[0][row];
    const int own_label = column_of_label(shared.label[row], first) - P::first_column();
#pragma unroll
    for (int j = 0; j < P::kThreadColumns; ++j) {
      const float ahead = sums(i, j) - lse;
      // At the label exp(..) - 1, without the cancellation.
      sums(i, j) = factor * (P::column_step(j) == own_label ? expm1f(ahead) : exponential<Element>(ahead));
    }
  }
  store_values<P>(chunk, at, sums);
  if (gradient.bias_sums != nullptr) {
    sum_columns<P>(shared, sums, gradient.bias_sums + blockIdx.x * chunk.stride + at.first_column);
  }
}

template <class P>
dim3 grid_of(const LogitSource& source, const Chunk& chunk) {
  return dim3(row_blocks(source, P::kRows), static_cast<unsigned>(divide_up(chunk.columns, P::kColumns)));
}

}  // namespace

LaunchError launch_exponentials(const LogitSource& source, const Chunk& chunk, const ChunkStates& tiles,
                                float* label_logit, int tile_rows, void* stream) {
  return with_tile(source.head.dtype, tile_rows, [&](auto element, auto rows) {
    using P = LogitProduct<decltype(element), decltype(rows)::kValue>;
    return launch(linear_cross_entropy_exponentials<decltype(element), decltype(rows)::kValue>,
                  grid_of<P>(source, chunk), P::kThreads, shared_bytes<P>(), stream, source, chunk, tiles,
                  label_logit, exponential_scale(source.head.dtype));
  });
}

LaunchError launch_logit_gradients(const LogitSource& source, const Chunk& chunk, const LossGradient& gradient,
                                   int tile_rows, void* stream) {
  return with_tile(source.head.dtype, tile_rows, [&](auto element, auto rows) {
    using P = LogitProduct<decltype(element), decltype(rows)::kValue>;
    return launch(linear_cross_entropy_logit_gradients<decltype(element), decltype(rows)::kValue>,
                  grid_of<P>(source, chunk), P::kThreads, shared_bytes<P>(), stream, source, chunk, gradient);
  });
}

}  // namespace restorelcc::cuda
