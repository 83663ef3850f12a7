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
 * RLCC_UNSUPPORTED: the library was built without nvcc, or there is no usable device or driver. Needs compute
 * capability 8.0 or later, and the driver that the toolkit of the build asks for (CUDA 13.0: 580 or later).
 */
#ifndef RESTORELCC_CUDA_H_
#define RESTORELCC_CUDA_H_

#include <stddef.h>

#include "restorelcc/restorelcc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* weight.values must be 16-byte aligned. x is used as it is, whatever its rows, also with RLCC_I8 values:
 * exact_x is not looked at. A comp_index outside of [0, groups) makes its row of y NaN. */
RLCC_API rlcc_status rlcc_cuda_sparse_linear_workspace(const rlcc_sparse_linear_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_sparse_linear(const rlcc_sparse_linear_params* params, void* workspace,
                                             size_t workspace_bytes, void* stream);

/* Differences are rounded to fp32, as are the products' sums over 12 tokens; between those, additions are worth 48 bits
 * or fp64. |gram[h, i, j] - exact| <= 1e-6 sum_t |dz_i dz_j|, and |total[h, d] - exact| <= 1e-6 sum_t |dz_d|, as long as
 * sums of products stay inside fp32's range: above 3.4e38 they are Inf, below 1.2e-38 they lose digits. The bits depend
 * on the shape alone, and gram stays exactly symmetric. The workspace is at most 34.1 MB (1024 tiles of 64 x 64
 * doubles), and none is needed where all heads' triangles have more than 512 tiles. */
RLCC_API rlcc_status rlcc_cuda_head_moments_workspace(const rlcc_head_moments_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_head_moments(const rlcc_head_moments_params* params, void* workspace,
                                            size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* RESTORELCC_CUDA_H_ */
