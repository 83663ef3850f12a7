// The products of a chunk's values [rows, columns], exponentials or gradients of logits, which give the
// gradients:
//
//   grad_h       values W     summed over the vocabulary: over the columns of this chunk on top of those before
//   grad_weight  valuesᵀ h    summed over all rows, complete in one go
//
// Every sum belongs to one block, in fp32, in a fixed order: no atomics, the same bits each time.
#include "cuda/logit_tile.cuh"

namespace restorelcc::cuda {
namespace {

// values with the columns (the depth) inside, W with its rows (the depth) outside.
template <class Element, int kRows>
using WeightProduct = Product<Element, kRows, Order::kDepthInside, Order::kDepthOutside>;
template <class P>
using ValuesCopy = RowsCopy<typename P::Element, P::kRows, P::kThreads>;
// Rows (the depth) outside in both.
template <class Element>
using HiddenProduct =
    Product<Element, Element::kBytes == 2 ? 128 : 64, Order::kDepthOutside, Order::kDepthOutside>;
template <class P>
using DepthsCopy = ColumnsCopy<typename P::Element, P::kDepth, P::kThreads>;

constexpr int kStepsOfTile =
    4;  // of the product's depth in a tile of logits, whose exponentials share a reference

__device__ __forceinline__ float2 load_pair(const float* at) { return *reinterpret_cast<const float2*>(at); }

// The thread's sums as pairs of neighbours: visit(row, column, first, second), a reference to each.
template <class P, class Visit>
__device__ __forceinline__ void for_each_pair(typename P::Sums& sums, const Visit& visit) {
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < P::kThreadColumns; j += 2) {
      visit(P::first_row() + P::row_step(i), P::first_column() + P::column_step(j), sums(i, j), sums(i, j + 1));
    }
  }
}

// sums *= exp(before - now), row by row; references of rows from first_row on, of rows that do not exist
// untouched.
template <class P>
__device__ __forceinline__ void change_reference(const float* before, const float* now, int rows,
                                                 typename P::Sums& sums) {
  const int first = P::first_row();
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
    const int row = first + P::row_step(i);
    if (row >= rows) break;
    const float factor = exponential<typename P::Element>(before[row] - now[row]);
#pragma unroll
    for (int j = 0; j < P::kThreadColumns; ++j) sums(i, j) *= factor;
  }
}

// Block (x, y, z): rows x, columns y of E, part z of the chunk.
template <class Element, int kRows, bool kMovingReference>
__global__ void __launch_bounds__(WeightProduct<Element, kRows>::kThreads,
                                  WeightProduct<Element, kRows>::kBlocks)
    linear_cross_entropy_grad_h(const __grid_constant__ LogitSource source, const __grid_constant__ Chunk chunk,
                                const __grid_constant__ ChunkStates references,
                                const __grid_constant__ GradientSums out, int first_chunk) {
  using P = WeightProduct<Element, kRows>;
  constexpr int kTile = kStepsOfTile * P::kDepth;
  static_assert(kTile == P::kColumns, "a tile of logits");
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  auto& stages = *reinterpret_cast<Stages<P, ValuesCopy<P>, DepthsCopy<P>>*>(memory);
  const int total = *source.rows.counted * source.groups, first_row = static_cast<int>(blockIdx.x) * kRows;
  if (first_row >= total) return;
  const int rows = total - first_row;  // that there are from here on
  const int all_tiles = (chunk.columns + kTile - 1) / kTile;
  const int first_tile = all_tiles * static_cast<int>(blockIdx.z) / static_cast<int>(gridDim.z);
  const int end_tile = all_tiles * (static_cast<int>(blockIdx.z) + 1) / static_cast<int>(gridDim.z);
  const int first_column = static_cast<int>(blockIdx.y) * P::kColumns;
  float* const block_sums =
      out.sums + (static_cast<int64_t>(blockIdx.z) * source.capacity + first_row) * out.stride + first_column;

  typename P::Sums sums;
  clear<P>(sums);
  if (first_chunk == 0) {
    for_each_pair<P>(sums, [&](int row, int column, float& first, float& second) {
      if (row >= rows) return;
      const float2 pair = load_pair(block_sums + row * out.stride + column);
      first = pair.x;
      second = pair.y;
    });
    if (kMovingReference && first_tile < end_tile) {
      const int64_t now = static_cast<int64_t>(first_tile) * source.capacity;
      change_reference<P>(references.before + first_row, references.max + now + first_row, rows, sums);
    }
  }

  ValuesCopy<P> values;
  values.set([&](int line, bool* exists) {
    *exists = line < rows;
    return static_cast<const char*>(chunk.values) +
           (*exists ? first_row + line : first_row) * chunk.stride * Element::kBytes;
  });
  const char* const weight = static_cast<const char*>(source.head.weight);
  const int64_t weight_row_bytes = source.head.weight_stride * Element::kBytes;
  const typename P::Places places = P::places();
  const bool busy = P::has_rows(rows);
  int queued = first_tile * kTile;  // column of the chunk
  through_stages(
      (end_tile - first_tile) * kStepsOfTile,
      [&](int stage, int) {
        values.queue(stages.a[stage], queued * Element::kBytes, chunk.columns * Element::kBytes, true);
        DepthsCopy<P>::queue(
            stages.b[stage],
            [&](int line, bool* exists) {
              *exists = queued + line < chunk.columns;
              return *exists ? weight + (chunk.first + queued + line) * weight_row_bytes : weight;
            },
            first_column * Element::kBytes, static_cast<int>(source.head.columns) * Element::kBytes,
            source.wide_weight);
        queued += P::kDepth;
      },
      [&](int stage, int step) {
        if (kMovingReference && step > 0 && step % kStepsOfTile == 0) {
          const float* const now = references.max +
                                   static_cast<int64_t>(first_tile + step / kStepsOfTile) * source.capacity +
                                   first_row;
          change_reference<P>(now - source.capacity, now, rows, sums);
        }
        if (busy) P::multiply(stages.a[stage], stages.b[stage], places, sums);
      });

  if (kMovingReference) {
    const float* const last = first_tile < end_tile
                                  ? references.max + static_cast<int64_t>(end_tile - 1) * source.capacity
                                  : references.before;
    if (first_tile < end_tile || first_chunk == 0) {
      change_reference<P>(last + first_row, references.after + first_row, rows, sums);
    }
  }
  for_each_pair<P>(sums, [&](int row, int column, float& first, float& second) {
    if (row < rows)
      *reinterpret_cast<float2*>(block_sums + row * out.stride + column) = make_float2(first, second);
  });
}

// Block (x, y): columns x of E, words y of the chunk.
template <class Element>
__global__ void __launch_bounds__(HiddenProduct<Element>::kThreads, HiddenProduct<Element>::kBlocks)
    linear_cross_entropy_grad_weight(const __grid_constant__ LogitSource source,
                                     const __grid_constant__ Chunk chunk,
                                     const __grid_constant__ WeightGradient out) {
  using P = HiddenProduct<Element>;
  using Bits = typename Element::Bits;
  RLCC_DYNAMIC_SHARED(unsigned char, memory);
  auto& stages = *reinterpret_cast<Stages<P, DepthsCopy<P>, DepthsCopy<P>>*>(memory);
  const int counted = *source.rows.counted;
  const int first_word = static_cast<int>(blockIdx.y) * P::kRows,
            first_column = static_cast<int>(blockIdx.x) * P::kColumns;
  const char* const values = static_cast<const char*>(chunk.values);
  const char* const h = static_cast<const char*>(source.h);
  typename P::Sums sums;
  clear<P>(sums);
  const typename P::Places places = P::places();
  const bool busy = P::has_rows(chunk.columns - first_word);
  int queued = 0;  // row
  through_stages((counted + P::kDepth - 1) / P::kDepth,
                 [&](int stage, int) {
                   DepthsCopy<P>::queue(
                       stages.a[stage],
                       [&](int line, bool* exists) {
                         *exists = queued + line < counted;
                         return values + (*exists ? queued + line : 0) * chunk.stride * Element::kBytes;
                       },
                       first_word * Element::kBytes, chunk.columns * Element::kBytes, true);
                   DepthsCopy<P>::queue(
                       stages.b[stage],
                       [&](int line, bool* exists) {
                         *exists = queued + line < counted;
                         return *exists ? h + source.rows.row[queued + line] * source.h_stride * Element::kBytes
                                        : h;
                       },
                       first_column * Element::kBytes, static_cast<int>(source.head.columns) * Element::kBytes,
                       source.wide_h);
                   queued += P::kDepth;
                 },
                 [&](int stage, int) {
                   if (busy) P::multiply(stages.a[stage], stages.b[stage], places, sums);
                 });

  const float scale = *out.inverse_scale;
  const int columns = static_cast<int>(source.head.columns) - first_column, words = chunk.columns - first_word;
  Bits* const grad =
      static_cast<Bits*>(out.grad_weight) + (chunk.first + first_word) * out.stride + first_column;
  for_each_pair<P>(sums, [&](int word, int column, float& first, float& second) {
    if (word >= words) return;
    Bits* const to = grad + word * out.stride + column;
    if (column < columns) to[0] = Element::narrow(scale * first);
    if (column + 1 < columns) to[1] = Element::narrow(scale * second);
  });
}

}  // namespace

LaunchError launch_multiply_weight(const LogitSource& source, const Chunk& chunk, const ChunkStates* tiles,
                                   const GradientSums& sums, bool first_chunk, int tile_rows, void* stream) {
  return with_tile(source.head.dtype, tile_rows, [&](auto element, auto rows) {
    using Element = decltype(element);
    constexpr int kRows = decltype(rows)::kValue;
    using P = WeightProduct<Element, kRows>;
    const dim3 grid(row_blocks(source, kRows),
                    static_cast<unsigned>(divide_up(source.head.columns, P::kColumns)),
                    static_cast<unsigned>(sums.splits));
    return launch(tiles != nullptr ? linear_cross_entropy_grad_h<Element, kRows, true>
                                   : linear_cross_entropy_grad_h<Element, kRows, false>,
                  grid, P::kThreads, sizeof(Stages<P, ValuesCopy<P>, DepthsCopy<P>>), stream, source, chunk,
                  tiles != nullptr ? *tiles : ChunkStates{}, sums, first_chunk ? 1 : 0);
  });
}

LaunchError launch_multiply_h(const LogitSource& source, const Chunk& chunk, const WeightGradient& gradient,
                              void* stream) {
  const auto run = [&](auto element) {
    using P = HiddenProduct<decltype(element)>;
    const dim3 grid(static_cast<unsigned>(divide_up(source.head.columns, P::kColumns)),
                    static_cast<unsigned>(divide_up(chunk.columns, P::kRows)));
    return launch(linear_cross_entropy_grad_weight<decltype(element)>, grid, P::kThreads,
                  sizeof(Stages<P, DepthsCopy<P>, DepthsCopy<P>>), stream, source, chunk, gradient);
  };
  switch (source.head.dtype) {
    case RLCC_F32: return run(F32{});
    case RLCC_BF16: return run(Bf16{});
    default: return run(F16{});
  }
}

}  // namespace restorelcc::cuda
