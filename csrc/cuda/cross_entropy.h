// The steps of linear_cross_entropy, its gradient and head_contrast on a device, each a launcher;
// cross_entropy.cpp puts them in order. All pointers are to device memory; arrays that are the library's own
// lie in the workspace.
//
// A row is counted unless it is ignored. Rows of h that are counted are listed first and numbered 0 .. counted
// - 1; what follows goes by these numbers (of head_contrast: group g's j-th counted row has number g counted +
// j), so that rows that do not count cost nothing. The number of rows is known to the device alone: grids are
// made for all, and blocks behind the last row end at once.
#pragma once

#include "cuda/launch.h"
#include "cuda/plan_cross_entropy.h"
#include "restorelcc/params.h"

namespace restorelcc::cuda {

constexpr int kNoLabel = -1;   // an ignored row whose lse is wanted
constexpr int kBadLabel = -2;  // outside of the vocabulary: NaN

// Exponentials of at most 1 are stored times this: fp16 ends at 6e-8, which a word of a large vocabulary may be
// below.
constexpr float exponential_scale(rlcc_dtype dtype) { return dtype == RLCC_F16 ? 16384.0f : 1.0f; }

// The counted rows.
struct RowList {
  int* counted;   // [1]
  int* row;       // [M] row m of each number
  int* label;     // [M] of each number; kNoLabel, kBadLabel
  int* position;  // [M] the number of each row, or -1; may be null
};

// The state of the logits of a row, its label's left out (so that nothing cancels where the model is sure), in
// `parts` parts of the vocabulary.
struct RowStates {
  float* max;          // [parts, capacity]
  float* sum;          // [parts, capacity] of exp(logit - max); NaN where a logit is NaN or +Inf
  float* label_logit;  // [capacity]; not set where there is no label in the vocabulary
  int parts;
};

// What the kernels that form logits read.
struct LogitSource {
  rlcc_language_head head;
  const void* h;                   // [groups, M, E]
  int64_t h_stride, group_stride;  // elements
  int groups;
  int capacity;              // groups M: what a row's number stays below, and the stride of arrays by number
  bool wide_h, wide_weight;  // rows are 16-byte aligned
  RowList rows;
};

// ---- cross_entropy_rows.cu

struct RowQuery {
  const int64_t* labels;  // [M]
  int64_t ignore_index, vocabulary;
  int rows;                 // M
  int all;                  // 1: ignored rows are listed too, without a label
  const int64_t* segments;  // [M] negative: not counted; may be null
  const float* weights;     // [M] 0: not counted; may be null
  float* nll;               // [M] becomes 0 where ignored; may be null
  const float* grad_nll;    // [M] whose largest magnitude gives `scale`
  float* scale;             // [2] a power of two that brings grad_nll below 2^14, and its inverse; may be null
};
// Also empties `states` (may be null) of one part.
LaunchError launch_list_rows(const RowQuery& query, const RowList& rows, const RowStates* states, void* stream);

// The loss of each number, and what its exponentials are multiplied by in the gradient.
struct LossOutputs {
  float* nll;  // by row; of head_contrast by number
  float* lse;  // by row; may be null
  int by_number;
  float* factor;        // [capacity] 1 / sum of all exponentials; may be null
  float* label_factor;  // [capacity] softmax at the label - 1; null if factor is
  int64_t vocabulary;
};
LaunchError launch_losses(const LogitSource& source, const RowStates& states, const LossOutputs& outputs,
                          void* stream);

// contrast from the nll of each number.
LaunchError launch_contrast(const rlcc_head_contrast_params& params, const RowList& rows, const float* nll,
                            void* stream);

// ---- cross_entropy_states.cu: the states of the plan's splits of the vocabulary.
LaunchError launch_states(const LogitSource& source, const RowStates& states, int tile_rows, void* stream);

// ---- Chunks: logits of the columns [first, first + columns), turned into what is multiplied by W and h.

struct Chunk {
  int64_t first;
  int columns;     // that exist
  int64_t stride;  // elements between rows of `values`: the plan's chunk_columns
  void* values;    // [capacity, stride] of head.dtype
};

// Exponentials relative to a maximum of each row and tile; the label's is 0.
struct ChunkStates {
  float* max;     // [tiles, capacity]; merged: the reference of each tile's values, see merge_chunk
  float* sum;     // [tiles, capacity]
  float* before;  // [capacity] reference of the sums so far, -Inf: there are none
  float* after;   // [capacity] reference of the sums with this chunk
};

// ---- cross_entropy_chunk.cu
LaunchError launch_exponentials(const LogitSource& source, const Chunk& chunk, const ChunkStates& tiles,
                                float* label_logit, int tile_rows, void* stream);
// values = scale grad_nll[m] (exp(logit - lse[m]) - [label])
struct LossGradient {
  const float* lse;       // [M]
  const float* grad_nll;  // [M]
  const float* scale;     // [1]
  float* bias_sums;  // [row blocks, stride of the chunk] sums of each block's rows, before they are rounded;
                     // may be null
};
LaunchError launch_logit_gradients(const LogitSource& source, const Chunk& chunk, const LossGradient& gradient,
                                   int tile_rows, void* stream);

// ---- cross_entropy_rows.cu: takes the tiles of a chunk into states (of one part).
LaunchError launch_merge_chunk(const LogitSource& source, const Chunk& chunk, const ChunkStates& tiles,
                               const RowStates& states, void* stream);

// ---- cross_entropy_products.cu

// sums[s, i, e] (+)= sum over the s-th part of the chunk of values[i, v] W[v, e], relative to a moving
// reference where `tiles` is set. first_chunk: = rather than +=.
struct GradientSums {
  float* sums;     // [splits, capacity, stride] fp32
  int64_t stride;  // E rounded up to whole tiles
  int splits;
};
LaunchError launch_multiply_weight(const LogitSource& source, const Chunk& chunk, const ChunkStates* tiles,
                                   const GradientSums& sums, bool first_chunk, int tile_rows, void* stream);

// grad_weight[first + v, e] = inverse_scale sum_i values[i, v] h[i, e], all columns of the chunk.
struct WeightGradient {
  void* grad_weight;  // [V, E]
  int64_t stride;
  const float* inverse_scale;
};
LaunchError launch_multiply_h(const LogitSource& source, const Chunk& chunk, const WeightGradient& gradient,
                              void* stream);

// ---- cross_entropy_finish.cu

// grad_bias[first + v] = inverse_scale sum of bias_sums[.., v]
LaunchError launch_grad_bias(const LogitSource& source, const Chunk& chunk, int tile_rows,
                             const float* bias_sums, const float* inverse_scale, float* grad_bias,
                             void* stream);

// grad_h[m, e] = factor sum_s sums[s, i, e] + label_factor[i] W[label[i], e] for row m of number i; 0 where m
// is ignored.
struct HiddenGradient {
  void* grad_h;  // [M, E]
  int64_t stride;
  int rows;                   // M
  const float* factor;        // [1], or [capacity] where label_factor is set
  const float* label_factor;  // [capacity]; may be null: the label is in the sums
};
LaunchError launch_finish_grad_h(const LogitSource& source, const GradientSums& sums,
                                 const HiddenGradient& gradient, void* stream);

}  // namespace restorelcc::cuda
