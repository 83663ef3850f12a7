/* Plain structs that cross the C ABI, and the glossary of letters used everywhere in restorelcc.
 *
 * M rows (batch x tokens) · K = H*D inputs of the projection · N outputs · H heads · D head size ·
 * G compensations served side by side, or edited variants · T tokens · E hidden size · V vocabulary ·
 * S segments · words = ceil(K / 64).
 *
 * All pointers are borrowed for the duration of the call; the library keeps none. Strides are in
 * elements, never in bytes. "may be null" is said where it holds; every other pointer must be set
 * unless the array it points to is empty. C99.
 */
#ifndef RESTORELCC_PARAMS_H_
#define RESTORELCC_PARAMS_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Every entry point returns one of these; rlcc_last_error() has the sentence. */
typedef enum rlcc_status {
  RLCC_OK = 0,
  RLCC_INVALID_ARGUMENT = 1, /* the caller passed something wrong; nothing was written */
  RLCC_OUT_OF_MEMORY = 2,    /* a scratch allocation failed */
  RLCC_UNSUPPORTED = 3,      /* this build or this CPU cannot do it */
  RLCC_INTERNAL = 4          /* a bug in the library */
} rlcc_status;

/* Storage types. Accumulation is always at least fp32 (of RLCC_I8 values: exact int32 within a group of
 * columns, fp32 across groups). RLCC_I8 is for the values of a packed weight alone. An integer rather than the
 * enum's own type, so that a wrong value from outside can be looked at (and refused) in C++ too. */
enum { RLCC_F32 = 0, RLCC_BF16 = 1, RLCC_F16 = 2, RLCC_I8 = 3 };
typedef int32_t rlcc_dtype;

/* A half-open range of work: task(context, begin, end). A task must not throw. */
typedef void (*rlcc_task)(void* context, int64_t begin, int64_t end);

/* The caller's thread pool. run() splits [0, count) into chunks of at least `grain` items, calls
 * `task` on each (from any thread) and returns when all are done. */
typedef struct rlcc_parallel {
  void (*run)(void* self, int64_t count, int64_t grain, rlcc_task task, void* context);
  void* self;      /* handed back to run(); may be null */
  int32_t threads; /* how many threads run() uses at most; >= 1 */
} rlcc_parallel;

/* The `bitmask` format: the surviving (non-zero) values of W [N, K], row after row.
 *
 *   mask         bit i of word j of row n is set  <=>  W[n, 64 j + i] survived; bits at columns >= K are 0
 *   row_offsets  row n's values are values[row_offsets[n] .. row_offsets[n] + popcount(mask row n)),
 *                in column order; each offset is a multiple of 16 bytes; row_offsets[N] is the end of
 *                the last row, rounded up so
 *   values       value_count elements, of which the last RLCC_VALUE_PADDING_BYTES are padding that a
 *                vector load may touch: value_count >= row_offsets[N] + padding
 *   scales       with RLCC_I8 values only: W[n, k] = value * scales[n, k / RLCC_SCALE_COLUMNS], in bf16
 */
typedef struct rlcc_packed_weight {
  int64_t rows;               /* N */
  int64_t columns;            /* K */
  const uint64_t* mask;       /* [N, words] contiguous */
  const void* values;         /* [value_count] of `dtype` */
  int64_t value_count;        /* elements, padding included */
  const int64_t* row_offsets; /* [N + 1] elements into values */
  rlcc_dtype dtype;           /* of values */
  int32_t trusted; /* 1: rlcc_packed_validate() said RLCC_OK for these very bytes; 0: checked in each call */
  const uint16_t* scales; /* [N, ceil(K / RLCC_SCALE_COLUMNS)] bf16; null unless dtype is RLCC_I8 */
} rlcc_packed_weight;

#define RLCC_VALUE_ALIGNMENT_BYTES 16
#define RLCC_VALUE_PADDING_BYTES 64
#define RLCC_SCALE_COLUMNS 128 /* two mask words */

/* y[m, n] = sum_k x[m, k] W[n, k] + comp_rows[comp_index[m], n] + bias[n] + residual[m, n]
 *
 * comp_rows = comp Wᵀ is itself a sparse_linear of the compensation vectors comp [G, K] in fp32.
 *
 * With RLCC_I8 values and at most 16 rows, x too is rounded to 8 bits, per row and RLCC_SCALE_COLUMNS columns
 * (scale max|x| / 127): |error| <= sum_k |W[n, k]| max|x of k's group| / 254, beside fp32 rounding; a group of
 * x below 127 * 2^-126 counts as 0, and a row of x that is not finite gives NaN. With more rows, or with
 * exact_x, x is used as it is. */
typedef struct rlcc_sparse_linear_params {
  rlcc_packed_weight weight;     /* W [N, K] */
  const void* x;                 /* [M, K] of x_dtype, row stride x_stride, unit column stride */
  int64_t x_rows;                /* M >= 0 */
  int64_t x_stride;              /* elements, >= K unless M <= 1 */
  rlcc_dtype x_dtype;            /* also of y and residual; not RLCC_I8 */
  const float* comp_rows;        /* [G, N] contiguous fp32; may be null (then groups is 0) */
  int64_t groups;                /* G */
  const int64_t* comp_index;     /* [M], 0 <= index < G; may be null when G <= 1 */
  const float* bias;             /* [N] fp32; may be null */
  const void* residual;          /* [M, N] of x_dtype; may be null */
  int64_t residual_stride;       /* elements */
  void* y;                       /* [M, N] of x_dtype; must not overlap an input, save that y may be residual */
  int64_t y_stride;              /* elements */
  const rlcc_parallel* parallel; /* may be null: the library's own pool */
  int32_t exact_x; /* 1: x is never rounded to 8 bits, whatever its rows; for comp_rows = comp Wᵀ */
} rlcc_sparse_linear_params;

/* y[m, n] = sum_k x[m, k] W[n, k] + bias[n] + residual[m, n]
 *
 * of a dense W: the head of a language model, a matrix with too few zeros to be packed. Up to 8 rows of x (16
 * with AVX-512) W is read once and nothing of its size is kept. Sums are fp32, rounded once; with weight_dtype
 * and x_dtype both RLCC_BF16 a CPU may multiply pairs of them (vdpbf16ps), which counts subnormals as 0. The
 * bits depend on shapes and types, not on the number of threads. */
typedef struct rlcc_dense_linear_params {
  const void* weight;      /* W [N, K] of weight_dtype, row stride weight_stride, unit column stride */
  int64_t rows;            /* N >= 0 */
  int64_t columns;         /* K >= 0 */
  int64_t weight_stride;   /* elements, >= K unless N <= 1 */
  rlcc_dtype weight_dtype; /* not RLCC_I8 */
  const void* x;           /* [M, K] of x_dtype, row stride x_stride, unit column stride */
  int64_t x_rows;          /* M >= 0 */
  int64_t x_stride;        /* elements, >= K unless M <= 1 */
  rlcc_dtype x_dtype;      /* not RLCC_I8 */
  const float* bias;       /* [N]; may be null */
  const void* residual;    /* [M, N] of y_dtype; may be null */
  int64_t residual_stride; /* elements */
  void* y;                 /* [M, N] of y_dtype; must not overlap an input, save that y may be residual */
  int64_t y_stride;        /* elements */
  rlcc_dtype y_dtype;      /* also of residual; not RLCC_I8. RLCC_F32: logits that are not rounded again */
  const rlcc_parallel* parallel; /* may be null: the library's own pool */
} rlcc_dense_linear_params;

/* grad_x[m, k] = sum_n grad_y[m, n] W[n, k]: the gradient of x, and (with M = G, grad_y = grad of
 * comp_rows) the gradient of comp. */
typedef struct rlcc_sparse_linear_grad_x_params {
  rlcc_packed_weight weight;     /* W [N, K] */
  const void* grad_y;            /* [M, N] of dtype, row stride grad_y_stride, unit column stride */
  int64_t y_rows;                /* M >= 0 */
  int64_t grad_y_stride;         /* elements */
  rlcc_dtype dtype;              /* of grad_y and grad_x; not RLCC_I8 */
  void* grad_x;                  /* [M, K] of dtype */
  int64_t grad_x_stride;         /* elements */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_sparse_linear_grad_x_params;

/* grad_values[v(n, k)] = sum_m grad_y[m, n] x[m, k] for every (n, k) that survived, v(n, k) being its place in
 * `values`: the gradient of the surviving weights under the mask. Elements of grad_values between the rows
 * (their alignment) and behind the last (padding) are left as they are. */
typedef struct rlcc_sparse_linear_grad_values_params {
  rlcc_packed_weight weight;     /* mask, row_offsets, value_count and dtype are read; not RLCC_I8 */
  const void* x;                 /* [M, K] of dtype, row stride x_stride, unit column stride */
  int64_t rows;                  /* M >= 0 */
  int64_t x_stride;              /* elements */
  const void* grad_y;            /* [M, N] of dtype, row stride grad_y_stride, unit column stride */
  int64_t grad_y_stride;         /* elements */
  rlcc_dtype dtype;              /* of x and grad_y; not RLCC_I8 */
  void* grad_values;             /* [value_count] of the weight's dtype */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_sparse_linear_grad_values_params;

/* grad_comp_rows[g, n] = sum over the rows m with comp_index[m] = g of grad_y[m, n]
 * grad_bias[n] = sum_m grad_y[m, n]
 *
 * The gradients of comp_rows and of bias. A group without rows gets zeros. Sums are fp32. */
typedef struct rlcc_sparse_linear_grad_comp_params {
  const void* grad_y;            /* [M, N] of dtype, row stride grad_y_stride, unit column stride */
  int64_t rows;                  /* M >= 0 */
  int64_t columns;               /* N >= 0 */
  int64_t grad_y_stride;         /* elements */
  rlcc_dtype dtype;              /* of grad_y; not RLCC_I8 */
  const int64_t* comp_index;     /* [M], 0 <= index < G; may be null when G <= 1 */
  int64_t groups;                /* G; 0 where grad_comp_rows is null */
  float* grad_comp_rows;         /* [G, N] contiguous; may be null */
  float* grad_bias;              /* [N]; may be null */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_sparse_linear_grad_comp_params;

/* With dz = z_dense - z_pruned, both widened to fp64 first:
 *   total[h, d]   += sum_t dz[t, h, d]
 *   gram[h, i, j] += sum_t dz[t, h, i] dz[t, h, j]
 * Tokens are added in order within a head, so the bits do not depend on the number of threads. */
typedef struct rlcc_head_moments_params {
  const void* z_dense;        /* [T, H, D] of dtype, unit stride over D */
  const void* z_pruned;       /* [T, H, D] of dtype, unit stride over D */
  int64_t tokens;             /* T >= 0 */
  int64_t heads;              /* H */
  int64_t head_dim;           /* D */
  int64_t dense_token_stride; /* elements between tokens */
  int64_t dense_head_stride;  /* elements between heads */
  int64_t pruned_token_stride;
  int64_t pruned_head_stride;
  rlcc_dtype dtype;              /* not RLCC_I8 */
  double* total;                 /* [H, D] contiguous, accumulated into */
  double* gram;                  /* [H, D, D] contiguous, accumulated into, exactly symmetric */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_head_moments_params;

/* The head of a language model and what it is to predict, shared by the three ops below. With the logits
 * l[m, v] = sum_e h[m, e] W[v, e] + bias[v], which are formed tile by tile in fp32 and never kept,
 *
 *   lse[m] = log sum_v exp(l[m, v])        nll[m] = lse[m] - l[m, labels[m]]        (natural logarithm)
 *
 * Both are NaN where a logit of row m is NaN or +Inf, or all are -Inf, as in torch's log_softmax; -Inf at the
 * label alone gives nll Inf. */
typedef struct rlcc_language_head {
  const void* weight;    /* W [V, E] of dtype, row stride weight_stride, unit column stride */
  int64_t vocabulary;    /* V >= 0 */
  int64_t columns;       /* E >= 0 */
  int64_t weight_stride; /* elements */
  const float* bias;     /* [V]; may be null */
  rlcc_dtype dtype;      /* of weight and of every h; not RLCC_I8 */
} rlcc_language_head;

/* nll and lse of M rows; and d nll[m] / d h[m, e] = sum_v (softmax(l[m])[v] - [v = labels[m]]) W[v, e] in the
 * same pass over W. A row whose label is ignore_index has nll 0 and gradient 0, and costs nothing unless lse is
 * asked for. The bits do not depend on the number of threads. */
typedef struct rlcc_linear_cross_entropy_params {
  rlcc_language_head head;
  const void* h;         /* [M, E] of head.dtype, row stride h_stride, unit column stride */
  int64_t rows;          /* M >= 0 */
  int64_t h_stride;      /* elements */
  const int64_t* labels; /* [M], each in [0, V) or ignore_index */
  int64_t ignore_index;
  float* nll;                    /* [M] */
  float* lse;                    /* [M]; may be null */
  void* grad_h;                  /* [M, E] of head.dtype, row stride grad_h_stride; may be null */
  int64_t grad_h_stride;         /* elements */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_linear_cross_entropy_params;

/* With g[m, v] = grad_nll[m] (softmax(l[m])[v] - [v = labels[m]]), 0 where labels[m] is ignore_index:
 *   grad_h[m, e] = sum_v g[m, v] W[v, e]   grad_weight[v, e] = sum_m g[m, v] h[m, e]   grad_bias[v] = sum_m
 * g[m, v] */
typedef struct rlcc_linear_cross_entropy_backward_params {
  rlcc_language_head head;
  const void* h;         /* [M, E] of head.dtype */
  int64_t rows;          /* M >= 0 */
  int64_t h_stride;      /* elements */
  const int64_t* labels; /* [M], each in [0, V) or ignore_index */
  int64_t ignore_index;
  const float* lse;              /* [M], as the forward pass gave it; read where labels count */
  const float* grad_nll;         /* [M] */
  void* grad_h;                  /* [M, E] of head.dtype, row stride grad_h_stride; may be null */
  int64_t grad_h_stride;         /* elements */
  void* grad_weight;             /* [V, E] of head.dtype, row stride grad_weight_stride; may be null */
  int64_t grad_weight_stride;    /* elements */
  float* grad_bias;              /* [V]; may be null */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_linear_cross_entropy_backward_params;

/* contrast[g, s] = sum_{m in s} w[m] (nll(h[g, m]) - base_nll[m]) / sum_{m in s} w[m]
 *
 * over the tokens m of segment s whose label is not ignore_index and whose w[m] is not 0; the mean change of
 * the NLL when the hidden states of a base run are replaced by those of edit g. NaN where a segment has no such
 * token. Sums are fp64, in the order of m. */
typedef struct rlcc_head_contrast_params {
  rlcc_language_head head;
  const void* h;         /* [G, M, E] of head.dtype, strides group_stride and h_stride, unit column stride */
  int64_t groups;        /* G >= 0 */
  int64_t rows;          /* M >= 0 */
  int64_t group_stride;  /* elements */
  int64_t h_stride;      /* elements */
  const int64_t* labels; /* [M], each in [0, V) or ignore_index */
  int64_t ignore_index;
  const float* base_nll;         /* [M] */
  const int64_t* segments;       /* [M], each in [0, S), or negative: in no segment; may be null when S = 1 */
  int64_t segment_count;         /* S >= 1 */
  const float* weights;          /* w [M], finite and >= 0; may be null: all 1 */
  double* contrast;              /* [G, S] */
  const rlcc_parallel* parallel; /* may be null */
} rlcc_head_contrast_params;

/* One row of the kernel registry. Strings are static. */
typedef struct rlcc_kernel_info {
  const char* op;    /* "sparse_linear" */
  const char* name;  /* "sparse_linear_bf16_decode__avx2": the name is the specification */
  const char* isa;   /* "scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16" */
  int32_t available; /* 1: this CPU can run it */
} rlcc_kernel_info;

#ifdef __cplusplus
}
#endif
#endif /* RESTORELCC_PARAMS_H_ */
