// What the kernels that form tiles of logits share: which rows of h, which columns of W, bias, label.
#pragma once

#include "cuda/cross_entropy.h"
#include "cuda/tile_product.cuh"

namespace restorelcc::cuda {

// Logits: rows of h times rows of W, both with the depth E inside.
template <class Element, int kRows>
using LogitProduct = Product<Element, kRows, Order::kDepthInside, Order::kDepthInside>;
template <class P>
using HiddenCopy = RowsCopy<typename P::Element, P::kRows, P::kThreads>;
template <class P>
using WeightCopy = RowsCopy<typename P::Element, P::kColumns, P::kThreads>;

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }
__device__ __forceinline__ float not_a_number() { return __uint_as_float(0x7fc00000u); }

// exp: of 16-bit logits the fast one, of two instructions (__expf has five, for results below 2^-126).
template <class Element>
__device__ __forceinline__ float exponential(float x) {
  return Element::kBytes == 2 ? ptx::exp2_approximate(x * 1.44269504088896341f) : expf(x);
}

// Row m of group g for the number of a counted row.
__device__ __forceinline__ const char* hidden_row(const LogitSource& source, int number, int counted,
                                                  int bytes) {
  const int group = source.groups == 1 ? 0 : number / counted;
  const int64_t offset =
      group * source.group_stride + source.rows.row[number - group * counted] * source.h_stride;
  return static_cast<const char*>(source.h) + offset * bytes;
}

template <class P>
__device__ __forceinline__ void set_hidden_rows(const LogitSource& source, int first, int total, int counted,
                                                HiddenCopy<P>& copy) {
  copy.set([&](int line, bool* exists) {
    *exists = first + line < total;
    if (!*exists) return static_cast<const char*>(source.h);
    return hidden_row(source, first + line, counted, P::Element::kBytes);
  });
}

template <class P>
__device__ __forceinline__ void set_weight_rows(const LogitSource& source, int64_t first, WeightCopy<P>& copy) {
  const char* const weight = static_cast<const char*>(source.head.weight);
  copy.set([&](int line, bool* exists) {
    *exists = first + line < source.head.vocabulary;
    return *exists ? weight + (first + line) * source.head.weight_stride * P::Element::kBytes : weight;
  });
}

// The labels of the block's rows, as columns; kNoLabel behind the last row.
template <class P>
__device__ __forceinline__ void load_labels(const LogitSource& source, int first, int total, int counted,
                                            int* labels) {
  for (int line = static_cast<int>(threadIdx.x); line < P::kRows; line += P::kThreads) {
    labels[line] = first + line < total ? source.rows.label[(first + line) % counted] : kNoLabel;
  }
}

// Adds the bias of the tile's columns, and makes what lies behind the last of them, `left` columns on, -Inf.
template <class P>
__device__ __forceinline__ void add_bias(const float* bias, int64_t first, int left, typename P::Sums& sums) {
  const float* const own = bias != nullptr ? bias + first + P::first_column() : nullptr;
  const int own_left = left - P::first_column();
#pragma unroll
  for (int j = 0; j < P::kThreadColumns; ++j) {
    const bool exists = P::column_step(j) < own_left;
    const float value = exists && bias != nullptr ? own[P::column_step(j)] : 0;
#pragma unroll
    for (int i = 0; i < P::kThreadRows; ++i) sums(i, j) = exists ? sums(i, j) + value : minus_infinity();
  }
}

// A label as a column of the tile that begins with column `first`; none stays none.
__device__ __forceinline__ int column_of_label(int label, int first) {
  return label < 0 ? label : label - first;
}

template <class P>
__device__ __forceinline__ void clear(typename P::Sums& sums) {
#pragma unroll
  for (int i = 0; i < P::kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < P::kThreadColumns; ++j) sums(i, j) = 0;
  }
}

// The largest of the i-th row's logits in the tile as far as its kRowLanes lanes hold them, and of what each
// lane brings as `most`. The label's is left out: that one goes to *label_logit and becomes -Inf. label: as a
// column of the tile; it may be none.
template <class P>
__device__ __forceinline__ float take_row_max(typename P::Sums& sums, int i, int label, float* label_logit,
                                              float most = minus_infinity()) {
  const int own_label = label - P::first_column();
#pragma unroll
  for (int j = 0; j < P::kThreadColumns; ++j) {
    if (P::column_step(j) == own_label) {
      *label_logit = sums(i, j);
      sums(i, j) = minus_infinity();
    }
    most = fmaxf(most, sums(i, j));
  }
  return largest_of_row<P::kRowLanes>(most);
}

// The i-th row's logits become exp(logit - max); their sum, again over kRowLanes lanes. A NaN or +Inf makes it
// NaN.
template <class P>
__device__ __forceinline__ float exponentials_of_row(typename P::Sums& sums, int i, float max) {
  const float reference = max == minus_infinity() ? 0 : max;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < P::kThreadColumns; ++j) {
    sums(i, j) = exponential<typename P::Element>(sums(i, j) - reference);
    sum += sums(i, j);
  }
  return sum_of_row<P::kRowLanes>(sum);
}

inline unsigned row_blocks(const LogitSource& source, int tile_rows) {
  return static_cast<unsigned>(divide_up(source.capacity, tile_rows));
}

// kernel<Element, rows of the tile>: run(element, integral_constant) for the head's type and the plan's tile.
template <int kRows>
struct TileRows {
  static constexpr int kValue = kRows;
};
template <class Run>
LaunchError with_tile(rlcc_dtype dtype, int tile_rows, const Run& run) {
  if (dtype == RLCC_F32) return run(F32{}, TileRows<64>{});
  if (dtype == RLCC_BF16) {
    return tile_rows == kLossFewRows ? run(Bf16{}, TileRows<kLossFewRows>{}) : run(Bf16{}, TileRows<128>{});
  }
  return tile_rows == kLossFewRows ? run(F16{}, TileRows<kLossFewRows>{}) : run(F16{}, TileRows<128>{});
}

}  // namespace restorelcc::cuda
