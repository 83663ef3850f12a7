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

/* A label that is neither in [0, V) nor ignore_index makes nll and the row of grad_h NaN; lse does not depend
 * on it. With grad_h, W is read once per chunk of the vocabulary and multiplied twice. The workspace grows with
 * M E, with grad_h (its fp32 sums and 64 MiB or so of exponentials); else with M alone. Rows of h and W that
 * are 16-byte aligned are read 16 bytes at a time, others element by element. At most 2^30 rows and words, 2^28
 * columns. */
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

/* A label from outside, as above, makes the contrast of its segment NaN, in every group; a segment >=
 * segment_count makes all contrasts NaN. weights are used as they are: NaN, infinite and negative ones are not
 * refused. */
RLCC_API rlcc_status rlcc_cuda_head_contrast_workspace(const rlcc_head_contrast_params* params, size_t* bytes);
RLCC_API rlcc_status rlcc_cuda_head_contrast(const rlcc_head_contrast_params* params, void* workspace,
                                             size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif
#endif /* RESTORELCC_CUDA_H_ */
