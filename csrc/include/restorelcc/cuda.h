/* The ops on CUDA devices. The C ABI (C99); streams are opaque, so no CUDA header is needed.
 *
 * Every entry point takes the parameter struct of the CPU's op and means the same by it, but
 *  - all arrays are in device memory of the current device (cudaGetDevice), the packed weight's too;
 *  - the call queues kernels on `stream` (a cudaStream_t; null: the legacy default stream) and returns: arrays
 * stay in use until the stream has passed the call. Nothing is allocated, nothing waits; a capturing stream is
 * fine;
 *  - only what a host can see is checked: sizes, strides, types, alignment, null. weight.trusted must be 1:
 * check the weight with rlcc_packed_validate() before it is uploaded. An index in device memory that is out of
 * its range gives NaN, never a read outside of the arrays;
 *  - scratch is the caller's: ask for its size with the same params, hand over 16-byte aligned device memory.
 *    Two calls that may overlap in time need two workspaces;
 *  - `parallel` is not looked at.
 * Results do not depend on timing: the same call on the same kind of device gives the same bits.
 *
 * RLCC_UNSUPPORTED: the library was built without nvcc or for other devices, or there is no usable device or
 * driver; or a size is beyond what is said at the op, though the CPU's op may take it. Of the _workspace
 * functions those of head_moments and grad_values do not ask for a device: their bytes depend on the params
 * alone. Needs compute capability 8.0 or later, and the driver that the toolkit of the build asks for (CUDA
 * 13.0: 580 or later).
 */
#ifndef RESTORELCC_CUDA_H_
#define RESTORELCC_CUDA_H_

#include <stddef.h>

#include "restorelcc/restorelcc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* weight.values must be 16-byte aligned. x is used as it is, whatever its rows, also with RLCC_I8 values:
 * exact_x is not looked at. A comp_index outside of [0, groups) makes its row of y NaN. Of any op at most 2^31
 * - 257 rows and 2^30 columns of W, rows of x and groups; with more than 16 rows of x, and in the gradients of
 * x and of the values, at most 4,194,240 columns of what is written. */
RLCC_API rlcc_status rlcc_cuda_sparse_linear_workspace(const rlcc_sparse_linear_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_sparse_linear(const rlcc_sparse_linear_params* params, void* workspace,
                                             size_t workspace_bytes, void* stream);

/* Differences are rounded to fp32, as are the products' sums over 12 tokens; between those, additions are worth
 * 48 bits or fp64. |gram[h, i, j] - exact| <= 1e-6 sum_t |dz_i dz_j|, and |total[h, d] - exact| <= 1e-6 sum_t
 * |dz_d|, for up to 80,000 tokens in a call even if all roundings go the same way, and as long as sums of
 * products stay inside fp32's range: above 3.4e38 they are Inf, below 1.2e-38 they lose digits. The bits depend
 * on the shape alone, and gram stays exactly symmetric. The workspace is at most 34.1 MB (1024 tiles of 64 x 64
 * doubles), and none is needed where the triangles of all heads have more than 512 tiles. At most 2^20 of
 * head_dim, and 2^31 - 1 tiles of all heads. */
RLCC_API rlcc_status rlcc_cuda_head_moments_workspace(const rlcc_head_moments_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_head_moments(const rlcc_head_moments_params* params, void* workspace,
                                            size_t workspace_bytes, void* stream);

/* The gradients, as rlcc_sparse_linear_grad_x and _grad_values. The latter leaves what lies between the rows of
 * grad_values as it is. Workspace: 4 bytes per row and 128 columns of W, and partial sums where few blocks
 * would be at work. */
RLCC_API rlcc_status rlcc_cuda_sparse_linear_grad_x_workspace(const rlcc_sparse_linear_grad_x_params* params,
                                                              size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params* params,
                                                    void* workspace, size_t workspace_bytes, void* stream);
RLCC_API rlcc_status rlcc_cuda_sparse_linear_grad_values_workspace(
    const rlcc_sparse_linear_grad_values_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params* params,
                                                         void* workspace, size_t workspace_bytes, void* stream);

/* A comp_index outside of [0, groups) makes all of grad_comp_rows NaN. The workspace takes at most a sixteenth
 * of the bytes of a 16-bit grad_y. With more than 8 groups and grad_bias, rows of the groups behind the eighth
 * are read twice. At most 2^31 - 1 blocks, one for 256 columns and 8 groups. */
RLCC_API rlcc_status
rlcc_cuda_sparse_linear_grad_comp_workspace(const rlcc_sparse_linear_grad_comp_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params* params,
                                                       void* workspace, size_t workspace_bytes, void* stream);

/* W [N, K] with at most two survivors in every four columns (4 i .. 4 i + 3), repacked at load time for the
 * sparse tensor cores (mma.sp, RLCC_BF16 or RLCC_F16). With N' = N rounded up to 16 and K' = K rounded up to
 * 64:
 *
 *   values    [N', K' / 2] contiguous, 16-byte aligned: two of each four columns, in column order;
 *             where fewer survive, zeros beside them
 *   metadata  [N' / 16, K' / 64, 32]: for 16 rows and 64 columns a word per lane of a warp. Lane l:
 *             rows r = l / 4 (low 16 bits) and r + 8 (high), columns 16 (l % 4) .. + 16; two bits per
 *             value: its column within its four */
typedef struct rlcc_cuda_weight_2to4 {
  int64_t rows;             /* N */
  int64_t columns;          /* K */
  const void* values;       /* [N', K' / 2] of dtype */
  const uint32_t* metadata; /* [N' / 16, K' / 64, 32] */
  rlcc_dtype dtype;         /* RLCC_BF16 or RLCC_F16 */
} rlcc_cuda_weight_2to4;

/* Repacking, in two calls, as rlcc_pack: on the host, from and to host memory; works without a device, too.
 * RLCC_INVALID_ARGUMENT, with the place, if four columns have more than two survivors. */
RLCC_API rlcc_status rlcc_cuda_pack_2to4_counts(const rlcc_packed_weight* weight, int64_t* value_count,
                                                int64_t* metadata_count);
RLCC_API rlcc_status rlcc_cuda_pack_2to4(const rlcc_packed_weight* weight, void* values, int64_t value_count,
                                         uint32_t* metadata, int64_t metadata_count);

/* As rlcc_cuda_sparse_linear, with `weight` (device memory, of x_dtype) in place of params.weight, which is not
 * looked at. At most 4,194,240 rows of x. An Inf or NaN in x makes NaN where it meets a kept place of W (a
 * survivor, or a zero beside fewer than two), but, unlike elsewhere, not where it meets a place that the
 * repacking left out.
 */
RLCC_API rlcc_status rlcc_cuda_sparse_linear_2to4_workspace(const rlcc_sparse_linear_params* params,
                                                            const rlcc_cuda_weight_2to4* weight, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_sparse_linear_2to4(const rlcc_sparse_linear_params* params,
                                                  const rlcc_cuda_weight_2to4* weight, void* workspace,
                                                  size_t workspace_bytes, void* stream);

/* A label that is neither in [0, V) nor ignore_index makes nll and the row of grad_h NaN; lse does not depend
 * on it. With grad_h, W is read once per chunk of the vocabulary and multiplied twice. With grad_h the
 * workspace holds up to 16 M E fp32 sums and the exponentials of a chunk (64 MiB, or 2048 words of M rows where
 * that is more); else it grows with M alone. Rows of h and W that are 16-byte aligned are read 16 bytes at a
 * time, others element by element. At most 2^30 rows and words, 4,194,240 columns, 2^41 weights. */
RLCC_API rlcc_status rlcc_cuda_linear_cross_entropy_workspace(const rlcc_linear_cross_entropy_params* params,
                                                              size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_linear_cross_entropy(const rlcc_linear_cross_entropy_params* params,
                                                    void* workspace, size_t workspace_bytes, void* stream);

/* The gradient of the logits is rounded to head.dtype before it is multiplied by W and h. A label from outside,
 * as above, makes the row of grad_h, all of grad_weight and all of grad_bias NaN. */
RLCC_API rlcc_status rlcc_cuda_linear_cross_entropy_backward_workspace(
    const rlcc_linear_cross_entropy_backward_params* params, size_t* bytes);
RLCC_API rlcc_status
rlcc_cuda_linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params* params,
                                        void* workspace, size_t workspace_bytes, void* stream);

/* Of a row that counts (its label is not ignored and its weight not 0), a label from outside, as above, makes
 * the contrast of its segment NaN, in every group, and a segment >= segment_count all contrasts. weights are
 * used as they are: NaN, infinite and negative ones are not refused. Of G M rows and of W as many as above, and
 * at most 2^31 - 1 contrasts. */
RLCC_API rlcc_status rlcc_cuda_head_contrast_workspace(const rlcc_head_contrast_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_head_contrast(const rlcc_head_contrast_params* params, void* workspace,
                                             size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* RESTORELCC_CUDA_H_ */
