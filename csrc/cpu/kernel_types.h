// What a kernel is told, and what a kernel is. Plain data only: this header is compiled with the flags
// of every instruction set, so nothing in it may become a function that the linker shares.
#pragma once

#include <cstdint>

#include "restorelcc/params.h"

// Everything called inside is inlined, whatever else the translation unit holds: left to the compiler's budget
// for it, adding a kernel at one end slowed one down at the other by two thirds (measured).
#define RLCC_FLAT __attribute__((flatten, noinline))

namespace restorelcc::cpu {

// Storage types that are no arithmetic types of C++.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
template <class Value>
inline constexpr bool kIsBf16 = false;
template <>
inline constexpr bool kIsBf16<Bf16> = true;  // inline: else clang sees one in each file

// y[m, n] = c[m, n] + comp_rows[comp_index[m], n] + bias[n] + residual[m, n], c being the product
struct Output {
  int64_t columns;            // N: the row stride of comp_rows
  const float* comp_rows;     // [G, N], may be null
  const int64_t* comp_index;  // [M], may be null: row 0 for all
  const float* bias;          // [N], may be null
  const void* residual;       // [M, N] of dtype, may be null
  int64_t residual_stride;    // elements
  void* y;                    // [M, N] of dtype
  int64_t y_stride;           // elements
  rlcc_dtype dtype;
};

// y[0..M, n] for a few rows of x.
struct DecodeJob {
  rlcc_packed_weight weight;  // W [N, K], validated
  const void* x;              // [M, K] of x_dtype
  int64_t x_stride;           // elements
  rlcc_dtype x_dtype;
  int64_t rows;  // M
  Output output;
};

constexpr int64_t kDecodeMostRows = 16;  // of any decode kernel

struct sparse_linear_decode_kernel {
  int64_t max_rows;  // with more rows of x the panel kernel is faster; at most kDecodeMostRows
  // x as the kernel reads it: in tiles of the kernel's own number of rows (the last may be smaller), the rows
  // of a tile interleaved step by step, widened (or quantised, for int8 values), zeros behind column K. Starts
  // at a multiple of 64 bytes.
  int64_t (*x_bytes)(const DecodeJob& job);
  void (*pack_x)(const DecodeJob& job, char* x);
  void (*run)(const DecodeJob& job, const char* x, int64_t output_begin, int64_t output_end);
};

// C[M, columns] = A[M, depth] B[depth, columns], B being W transposed (sparse_linear, dense_linear: depth = K,
// columns = N) or W itself (sparse_linear_grad_x: depth = N, columns = K). For sparse_linear_grad_values B is x
// [depth = rows of x, columns = K], A is grad_y transposed, and of C only what W's mask keeps is stored.
struct PanelJob {
  rlcc_packed_weight weight;  // validated; not of dense_linear
  const void* a;              // [M, depth] of a_dtype
  int64_t a_stride;           // elements between rows of A
  int64_t a_depth_stride;     // elements between columns of A
  rlcc_dtype a_dtype;
  int64_t rows;       // M
  int64_t most_rows;  // of any part of this product that runs at once: what scratch is made for
  int64_t depth;
  int64_t columns;
  char* a_tiles;  // [ceil(M / tile_rows), depth, tile_rows] fp32 or what tile_bytes says: pack() to run()
  Output output;
  // grad_values: [depth, columns] of a_dtype; dense_linear: W [columns, depth] of the kernel's values.
  const void* b;
  int64_t b_stride;   // elements
  bool by_mask;       // C goes to the places that the mask keeps, not to rows of y (grad_values)
  int64_t first_row;  // of W, that row 0 of A is (grad_values only)
};

struct panel_kernel {
  int64_t tile_rows;                               // rows of A per register tile
  int64_t panel_columns;                           // columns of B per register tile
  int64_t (*panels_at_once)(const PanelJob& job);  // a run likes to have at least so many
  int64_t (*tile_bytes)(const PanelJob& job);      // of one tile of A, packed
  int64_t (*scratch_bytes)(const PanelJob& job, int64_t tiles);
  // Widens and interleaves the rows of tiles [begin, end) of A.
  void (*pack)(const PanelJob& job, int64_t tile_begin, int64_t tile_end);
  // Panels [panel_begin, panel_end) of C for the rows of tiles [tile_begin, tile_end).
  void (*run)(const PanelJob& job, int64_t panel_begin, int64_t panel_end, int64_t tile_begin, int64_t tile_end,
              char* scratch);
};
using sparse_linear_panel_kernel = panel_kernel;
using dense_linear_panel_kernel = panel_kernel;
using sparse_linear_grad_x_panel_kernel = panel_kernel;
using sparse_linear_grad_values_panel_kernel = panel_kernel;

// Rows of a dense matrix A [M, depth] as columns: element (k, m) of tile t at [t, k, tile_rows], fp32, zeros
// behind the last row.
struct ColumnTiles {
  const void* a;
  int64_t a_stride;  // elements
  rlcc_dtype a_dtype;
  int64_t rows;  // M
  int64_t depth;
  int64_t tile_rows;  // what the kernel allows
  float* tiles;       // pack() to run()
};

// y [M, N] for many rows of x, survivor by survivor.
struct SpmmJob {
  rlcc_packed_weight weight;  // W [N, K], validated
  ColumnTiles x;              // [M, K]
  Output output;
};

struct sparse_linear_spmm_kernel {
  int64_t row_multiple;  // of the rows of a tile, which are least_tile_rows to most_tile_rows
  int64_t least_tile_rows;
  int64_t most_tile_rows;
  int64_t most_outputs;  // of a run
  // Whether rows [begin, end) hold no NaN or infinity, which zeros of W that are left out would not spread.
  bool (*finite)(const ColumnTiles& a, int64_t row_begin, int64_t row_end);
  void (*pack)(const ColumnTiles& a, int64_t tile_begin, int64_t tile_end);
  int64_t (*scratch_bytes)(const SpmmJob& job);
  // Outputs [begin, end), at most most_outputs, of the rows of tiles [tile_begin, tile_end).
  void (*run)(const SpmmJob& job, int64_t output_begin, int64_t output_end, int64_t tile_begin,
              int64_t tile_end, char* scratch);
};

// grad_values [n, k] (+)= sum over m of grad_y[m, n] x[m, k], where the mask keeps (n, k).
struct SddmmJob {
  rlcc_packed_weight weight;  // of which the values are not read
  ColumnTiles grad_y;         // [M, N]
  ColumnTiles x;              // [M, K], of the same tile_rows
  float* grad_values;         // in packed order
  bool accumulate;            // onto what stands there
};

struct sparse_linear_grad_values_sddmm_kernel {
  int64_t row_multiple;
  int64_t least_tile_rows;
  int64_t most_tile_rows;
  int64_t some_rows;  // of W, that a run likes to have
  void (*pack)(const ColumnTiles& a, int64_t tile_begin, int64_t tile_end);
  int64_t (*scratch_bytes)();
  // Rows [begin, end) of W.
  void (*run)(const SddmmJob& job, int64_t row_begin, int64_t row_end, char* scratch);
};

// Rows of a dense matrix X [rows, columns], at data + i stride, or at data + offsets[i] where those are set.
struct DenseMatrix {
  const void* data;
  int64_t stride;          // elements
  const int64_t* offsets;  // [rows] elements, may be null
  int64_t rows;
  int64_t columns;
};

// y[0..M, n] for a few rows of x and a dense W.
struct DenseDecodeJob {
  DenseMatrix weight;  // W [N, K]
  const void* x;       // [M, K] of x_dtype
  int64_t x_stride;    // elements
  rlcc_dtype x_dtype;
  int64_t rows;  // M
  Output output;
};

struct dense_linear_decode_kernel {
  int64_t max_rows;  // with more rows of x the panel kernel is faster; at most kDecodeMostRows
  // x as the kernel reads it, as that of sparse_linear_decode_kernel. Starts at a multiple of 64 bytes.
  int64_t (*x_bytes)(const DenseDecodeJob& job);
  void (*pack_x)(const DenseDecodeJob& job, char* x);
  void (*run)(const DenseDecodeJob& job, const char* x, int64_t output_begin, int64_t output_end);
};

// One block of rows of h against one chunk of the vocabulary: see linear_cross_entropy in params.h.
//
// The state of a row is kept without the logit t of its label: max and sum with sum exp(max) = sum_{v != label}
// exp(l_v), so that neither nll = log(1 + sum exp(max - t)) nor the gradient loses digits where a model is
// sure.
struct CrossEntropyJob {
  rlcc_dtype dtype;       // of W, h and what is written to grad
  DenseMatrix weight;     // W [V, E]
  const float* bias;      // [V], may be null
  DenseMatrix h;          // this block's rows [rows, E]
  const int64_t* labels;  // [rows], -1: none

  char* h_tiles;  // [ceil(rows / tile_rows)] tiles of depth E: pack() to run()
  int64_t first;  // the chunk: columns [first, first + count) of the logits; a multiple of panel_columns
  int64_t count;
  float* logits;       // [panels of the chunk, logit_rows, panel_columns]
  int64_t logit_rows;  // rows, rounded up to whole tiles

  float* max;             // [rows] state
  float* sum;             // [rows] state
  float* label_logit;     // [rows]; written by the chunk that holds the label
  const float* lse;       // [rows] backward only: logits become grad_nll (exp(l - lse) - [v = label])
  const float* grad_nll;  // [rows]

  char* weight_tiles;  // what logits became, packed to be multiplied: rows of h, or (transposed) of W
  float* products;     // [panels of E, logit_rows or columns of a chunk, panel_columns] fp32, added to
};

struct linear_cross_entropy_panel_kernel {
  int64_t tile_rows;                     // rows of A per register tile
  int64_t panel_columns;                 // columns of B per register tile
  int64_t (*tile_bytes)(int64_t depth);  // of one packed tile of A
  int64_t scratch_bytes;                 // of run, gradient and weight_gradient
  // Packs the rows of h of tiles [begin, end).
  void (*pack)(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end);
  // Logits of panels [begin, end) of the chunk, without bias.
  void (*run)(const CrossEntropyJob& job, int64_t panel_begin, int64_t panel_end, char* scratch);
  // Adds the bias and updates max and sum of rows [begin, end), leaving logits as they were but for the bias.
  void (*add_to_state)(const CrossEntropyJob& job, int64_t row_begin, int64_t row_end);
  // The same, and exp(l - max) of the tiles [begin, end) into weight_tiles; products are kept to the new max.
  void (*exponentials)(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end);
  // Backward: grad_nll (exp(l - lse) - [v = label]) of the tiles, into weight_tiles and into logits.
  void (*logit_gradients)(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end);
  // products[panel] += weight_tiles W[chunk], for panels [begin, end) of E.
  void (*gradient)(const CrossEntropyJob& job, int64_t panel_begin, int64_t panel_end, char* scratch);
  // Packs columns of logits (rows of Wᵀ's gradient) of tiles [begin, end) into weight_tiles, depth rows of h.
  void (*pack_transposed)(const CrossEntropyJob& job, int64_t tile_begin, int64_t tile_end);
  // products[panel] += weight_tiles h, for panels [begin, end) of E.
  void (*weight_gradient)(const CrossEntropyJob& job, int64_t panel_begin, int64_t panel_end, char* scratch);
  // grad [E] of dtype = factor products[.., row, ..] + label_factor W[label] (no label: -1).
  void (*finish)(const CrossEntropyJob& job, int64_t product_rows, int64_t row, float factor,
                 float label_factor, int64_t label, void* grad);
};

struct sparse_linear_grad_comp_block_kernel {
  // Columns [begin, end) of both gradients, which are added up in place.
  void (*run)(const rlcc_sparse_linear_grad_comp_params& params, int64_t begin, int64_t end);
};

struct head_moments_block_kernel {
  int64_t (*scratch_bytes)(int64_t head_dim);
  // Rows [row_begin, row_end) of one head's Gram matrix (up to the diagonal, mirrored above it), and
  // of its total. row_begin is a multiple of row_multiple.
  void (*run)(const rlcc_head_moments_params& params, int64_t head, int64_t row_begin, int64_t row_end,
              char* scratch);
  int64_t row_multiple;
};

}  // namespace restorelcc::cpu
