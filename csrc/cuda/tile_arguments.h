// What the tile kernels of sparse_linear are handed. Plain C++: launchers fill it.
#pragma once

#include <cstdint>

#include "restorelcc/params.h"

namespace restorelcc::cuda {

// A dense matrix [rows, columns], unit column stride.
struct Operand {
  const void* data;
  int64_t stride;  // elements
  int rows, columns;
  int copy_bytes;  // 16-bit elements: every row begins at a multiple of this: 16, 4 or 2
  rlcc_dtype dtype;
};

// W [rows, columns], as rlcc_packed_weight.
struct Weight {
  const uint32_t* mask;  // [rows, words]: the 64-bit words in halves, low one first
  const void* values;
  const int64_t* row_offsets;
  const uint16_t* scales;  // [rows, scale_groups]
  int64_t words, scale_groups;
  int rows, columns;
  bool wide_mask;  // 128 columns of it may be loaded at once
  rlcc_dtype dtype;
  const uint32_t*
      index;  // [ceil(columns / kIndexColumns), rows]: values of the row before these columns; or null
};

constexpr int kIndexColumns = 128;

// Where sums [rows, columns] go: rounded once, after what belongs to them was added; or, in fp32 and as they
// are, to partials[split].
struct Output {
  void* y;
  int64_t stride;
  rlcc_dtype dtype;  // of y and residual
  int rows, columns;
  bool wide;  // eight 16-bit elements of y, and of residual, may be moved at once
  const void* residual;
  int64_t residual_stride;
  const float* comp_rows;  // [groups, columns]
  const int64_t* comp_index;
  int64_t groups;
  const float* bias;
  float* partials;  // [splits, rows, columns]; null: y is written
};

struct TileArguments {
  Operand left;  // x or grad_y; rows of the output
  Weight weight;
  Output output;
  int steps_per_split;  // of kStepDepth along the reduction
};

struct GradValuesArguments {
  Operand grad_y, x;  // [M, N], [M, K]
  Weight weight;
  void* grad_values;
};

// The repacked weight of cuda.h: two values of every four columns.
struct SparseTileArguments {
  Operand values;            // [N rounded up to 16, K rounded up to 64, halved]
  const uint32_t* metadata;  // [rows / 16, K rounded up / 64, 32 lanes]
  Operand x;
  Output output;
  int steps_per_split;  // of 32 columns, as everywhere; even
};

Operand operand_of(const void* data, int64_t rows, int64_t columns, int64_t stride, rlcc_dtype dtype);
Weight weight_of(const rlcc_packed_weight& weight, const uint32_t* index);
Output output_of(const rlcc_sparse_linear_params& params, float* partials);
Output output_of(const rlcc_sparse_linear_grad_x_params& params, float* partials);

}  // namespace restorelcc::cuda
