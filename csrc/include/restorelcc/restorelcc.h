/* restorelcc: sparse projections with lost component compensation. The C ABI (C99).
 *
 * No torch, no Python, no OpenMP. Every function may be called from any thread. A function that
 * fails returns a status, leaves its outputs as they were, and sets this thread's last error.
 */
#ifndef RESTORELCC_RESTORELCC_H_
#define RESTORELCC_RESTORELCC_H_

#include "restorelcc/params.h"

#if defined(_WIN32)
#define RLCC_API __declspec(dllexport)
#else
#define RLCC_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 0: not frozen. */
#define RLCC_ABI_VERSION 0

/* "1 sentence saying what is wrong, with the numbers, and what to do"; "" after success. Owned by
 * the library, valid until this thread's next call. */
RLCC_API const char* rlcc_last_error(void);

/* JSON object: version, abi_version, compiler, build_type, backends, isas compiled, isa in use. */
RLCC_API const char* rlcc_build_info(void);

/* The kernel registry: *count rows, owned by the library. */
RLCC_API rlcc_status rlcc_kernels(const rlcc_kernel_info** kernels, int64_t* count);

/* Use this instruction set and no better one from now on, in all threads: "scalar", "avx2", "avx512f" (F, BW,
 * DQ, VL), "avx512vbmi2", "avx512bf16" (VBMI2, BF16, VNNI); null or "" goes back to the best the CPU has. The
 * environment variable RLCC_ISA does the same at start. RLCC_UNSUPPORTED when the CPU or the build lacks it. */
RLCC_API rlcc_status rlcc_force_isa(const char* isa);
RLCC_API const char* rlcc_isa(void); /* the one in use */

/* Threads of the library's own pool, used where params.parallel is null: 1 to 4096. Default: the CPUs this
 * process may run on. Where the system starts fewer, those do the work. */
RLCC_API rlcc_status rlcc_set_num_threads(int32_t threads);
RLCC_API int32_t rlcc_get_num_threads(void);

/* task(context, begin, end) on chunks of [0, count), at least `grain` items each but for the last, as the ops
 * run: on `parallel`, or where that is null on the library's own pool. Returns when all are done. The task must
 * not throw. On the library's pool, an op or rlcc_parallel_for() inside a task runs on the task's thread alone;
 * and between calls that follow each other within some 20 us no thread sleeps, so a call costs little more than
 * the few cache lines that move between the cores. */
RLCC_API rlcc_status rlcc_parallel_for(const rlcc_parallel* parallel, int64_t count, int64_t grain,
                                       rlcc_task task, void* context);

/* Packing, in two calls: sizes first, then the caller's buffers are filled.
 * weight [N, K] of dtype (not RLCC_I8), row stride weight_stride. A weight is pruned when it equals 0 (so -0.0
 * is); NaN and Inf survive. values_dtype is dtype, or RLCC_I8: then value = round(W / scale), scale = max |W| /
 * 127 over the group's columns, rounded up to bf16; a survivor may round to 0 and stays a survivor; NaN and Inf
 * are refused. value_count receives the elements needed, padding included. */
RLCC_API rlcc_status rlcc_pack_count(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride,
                                     rlcc_dtype dtype, rlcc_dtype values_dtype, int64_t* value_count);
/* mask [N, words], values [value_count] (16-byte aligned; gaps and padding are zeroed), row_offsets [N + 1],
 * scales [N, ceil(K / RLCC_SCALE_COLUMNS)] for RLCC_I8, else null. */
RLCC_API rlcc_status rlcc_pack(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride,
                               rlcc_dtype dtype, rlcc_dtype values_dtype, uint64_t* mask, void* values,
                               int64_t value_count, int64_t* row_offsets, uint16_t* scales);
/* weight [N, K] of packed->dtype, row stride weight_stride: the same bits, pruned places +0.0. Of RLCC_I8
 * values: value * scale in fp32, which is exact. */
RLCC_API rlcc_status rlcc_unpack(const rlcc_packed_weight* packed, void* weight, int64_t weight_stride);
/* Whether every index in `packed` stays inside its arrays, whatever the bytes. */
RLCC_API rlcc_status rlcc_packed_validate(const rlcc_packed_weight* packed);

RLCC_API rlcc_status rlcc_sparse_linear(const rlcc_sparse_linear_params* params);
RLCC_API rlcc_status rlcc_dense_linear(const rlcc_dense_linear_params* params);
RLCC_API rlcc_status rlcc_sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params* params);
RLCC_API rlcc_status rlcc_sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params* params);
/* Adds up in the order of m, so the bits do not depend on the number of threads. */
RLCC_API rlcc_status rlcc_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params* params);
RLCC_API rlcc_status rlcc_head_moments(const rlcc_head_moments_params* params);
RLCC_API rlcc_status rlcc_linear_cross_entropy(const rlcc_linear_cross_entropy_params* params);
RLCC_API rlcc_status
rlcc_linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params* params);
RLCC_API rlcc_status rlcc_head_contrast(const rlcc_head_contrast_params* params);

/* The scalar oracles: the same equations, accumulated in float64, one thread, no cleverness. */
RLCC_API rlcc_status rlcc_sparse_linear_reference(const rlcc_sparse_linear_params* params);
RLCC_API rlcc_status rlcc_dense_linear_reference(const rlcc_dense_linear_params* params);
RLCC_API rlcc_status rlcc_sparse_linear_grad_x_reference(const rlcc_sparse_linear_grad_x_params* params);
RLCC_API rlcc_status
rlcc_sparse_linear_grad_values_reference(const rlcc_sparse_linear_grad_values_params* params);
RLCC_API rlcc_status rlcc_sparse_linear_grad_comp_reference(const rlcc_sparse_linear_grad_comp_params* params);
RLCC_API rlcc_status rlcc_head_moments_reference(const rlcc_head_moments_params* params);
RLCC_API rlcc_status rlcc_linear_cross_entropy_reference(const rlcc_linear_cross_entropy_params* params);
RLCC_API rlcc_status
rlcc_linear_cross_entropy_backward_reference(const rlcc_linear_cross_entropy_backward_params* params);
RLCC_API rlcc_status rlcc_head_contrast_reference(const rlcc_head_contrast_params* params);

#ifdef __cplusplus
}
#endif
#endif /* RESTORELCC_RESTORELCC_H_ */
