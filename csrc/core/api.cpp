// The C border: guard -> validate -> dispatch.
#include "core/build_info.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/status.h"
#include "core/validate_params.h"
#include "cpu/ops.h"
#include "cpu/registry.h"
#include "ref/reference.h"
#include "restorelcc/cuda.h"
#include "restorelcc/restorelcc.h"
#include "sparse/layout.h"
#include "sparse/pack_2to4.h"

namespace restorelcc {
namespace {

template <class Params>
rlcc_status run_on_cpu(const Params* params, void (*op)(const Params&, Isa)) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    RLCC_RETURN_IF_FAILED(validate(*params));
    Isa isa = Isa::kScalar;
    RLCC_RETURN_IF_FAILED(current_isa(&isa));
    op(*params, isa);
    return {};
  });
}

template <class Params>
rlcc_status run_reference(const Params* params, void (*op)(const Params&)) {
  return guarded([&]() -> Status {
    if (params == nullptr) return invalid("params is null");
    RLCC_RETURN_IF_FAILED(validate(*params));
    op(*params);
    return {};
  });
}

}  // namespace
}  // namespace restorelcc

using namespace restorelcc;

extern "C" {

const char* rlcc_last_error(void) { return last_error(); }

const char* rlcc_build_info(void) {
  thread_local std::string info;
  const rlcc_status status = guarded([&]() -> Status {
    info = build_info_json();
    return {};
  });
  return status == RLCC_OK ? info.c_str() : "{}";
}

rlcc_status rlcc_kernels(const rlcc_kernel_info** kernels, int64_t* count) {
  return guarded([&]() -> Status {
    if (kernels == nullptr || count == nullptr) return invalid("kernels or count is null");
    *kernels = cpu::kernel_infos(count);
    return {};
  });
}

rlcc_status rlcc_force_isa(const char* isa) {
  return guarded([&] { return force_isa(isa); });
}

const char* rlcc_isa(void) {
  Isa isa = Isa::kScalar;
  const rlcc_status status = guarded([&] { return current_isa(&isa); });
  return status == RLCC_OK ? isa_name(isa) : "";
}

rlcc_status rlcc_set_num_threads(int32_t threads) {
  return guarded([&] { return set_num_threads(threads); });
}

int32_t rlcc_get_num_threads(void) { return get_num_threads(); }

rlcc_status rlcc_parallel_for(const rlcc_parallel* parallel, int64_t count, int64_t grain, rlcc_task task,
                              void* context) {
  return guarded([&]() -> Status {
    if (task == nullptr) return invalid("task is null");
    if (count < 0) return invalid("count is ", count, ", must not be negative");
    RLCC_RETURN_IF_FAILED(validate_parallel(parallel));
    run_parallel(parallel, count, grain, task, context);
    return {};
  });
}

rlcc_status rlcc_pack_count(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride,
                            rlcc_dtype dtype, rlcc_dtype values_dtype, int64_t* value_count) {
  return guarded(
      [&] { return pack_count(weight, rows, columns, weight_stride, dtype, values_dtype, value_count); });
}

rlcc_status rlcc_pack(const void* weight, int64_t rows, int64_t columns, int64_t weight_stride,
                      rlcc_dtype dtype, rlcc_dtype values_dtype, uint64_t* mask, void* values,
                      int64_t value_count, int64_t* row_offsets, uint16_t* scales) {
  return guarded([&] {
    return pack(weight, rows, columns, weight_stride, dtype, values_dtype, mask, values, value_count,
                row_offsets, scales);
  });
}

rlcc_status rlcc_unpack(const rlcc_packed_weight* packed, void* weight, int64_t weight_stride) {
  return guarded([&]() -> Status {
    if (packed == nullptr) return invalid("packed is null");
    return unpack(*packed, weight, weight_stride);
  });
}

rlcc_status rlcc_packed_validate(const rlcc_packed_weight* packed) {
  return guarded([&]() -> Status {
    if (packed == nullptr) return invalid("packed is null");
    return validate(*packed);
  });
}

rlcc_status rlcc_cuda_pack_2to4_counts(const rlcc_packed_weight* weight, int64_t* value_count,
                                       int64_t* metadata_count) {
  return guarded([&]() -> Status {
    if (weight == nullptr || value_count == nullptr || metadata_count == nullptr) {
      return invalid("weight, value_count or metadata_count is null");
    }
    return pack_2to4_counts(*weight, value_count, metadata_count);
  });
}

rlcc_status rlcc_cuda_pack_2to4(const rlcc_packed_weight* weight, void* values, int64_t value_count,
                                uint32_t* metadata, int64_t metadata_count) {
  return guarded([&]() -> Status {
    if (weight == nullptr) return invalid("weight is null");
    return pack_2to4(*weight, values, value_count, metadata, metadata_count);
  });
}

rlcc_status rlcc_sparse_linear(const rlcc_sparse_linear_params* params) {
  return run_on_cpu(params, cpu::sparse_linear);
}

rlcc_status rlcc_dense_linear(const rlcc_dense_linear_params* params) {
  return run_on_cpu(params, cpu::dense_linear);
}

rlcc_status rlcc_sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params* params) {
  return run_on_cpu(params, cpu::sparse_linear_grad_x);
}

rlcc_status rlcc_sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params* params) {
  return run_on_cpu(params, cpu::sparse_linear_grad_values);
}

rlcc_status rlcc_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params* params) {
  return run_on_cpu(params, cpu::sparse_linear_grad_comp);
}

rlcc_status rlcc_head_moments(const rlcc_head_moments_params* params) {
  return run_on_cpu(params, cpu::head_moments);
}

rlcc_status rlcc_linear_cross_entropy(const rlcc_linear_cross_entropy_params* params) {
  return run_on_cpu(params, cpu::linear_cross_entropy);
}

rlcc_status rlcc_linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params* params) {
  return run_on_cpu(params, cpu::linear_cross_entropy_backward);
}

rlcc_status rlcc_head_contrast(const rlcc_head_contrast_params* params) {
  return run_on_cpu(params, cpu::head_contrast);
}

rlcc_status rlcc_sparse_linear_reference(const rlcc_sparse_linear_params* params) {
  return run_reference(params, reference::sparse_linear);
}

rlcc_status rlcc_dense_linear_reference(const rlcc_dense_linear_params* params) {
  return run_reference(params, reference::dense_linear);
}

rlcc_status rlcc_sparse_linear_grad_x_reference(const rlcc_sparse_linear_grad_x_params* params) {
  return run_reference(params, reference::sparse_linear_grad_x);
}

rlcc_status rlcc_sparse_linear_grad_values_reference(const rlcc_sparse_linear_grad_values_params* params) {
  return run_reference(params, reference::sparse_linear_grad_values);
}

rlcc_status rlcc_sparse_linear_grad_comp_reference(const rlcc_sparse_linear_grad_comp_params* params) {
  return run_reference(params, reference::sparse_linear_grad_comp);
}

rlcc_status rlcc_head_moments_reference(const rlcc_head_moments_params* params) {
  return run_reference(params, reference::head_moments);
}

rlcc_status rlcc_linear_cross_entropy_reference(const rlcc_linear_cross_entropy_params* params) {
  return run_reference(params, reference::linear_cross_entropy);
}

rlcc_status rlcc_linear_cross_entropy_backward_reference(
    const rlcc_linear_cross_entropy_backward_params* params) {
  return run_reference(params, reference::linear_cross_entropy_backward);
}

rlcc_status rlcc_head_contrast_reference(const rlcc_head_contrast_params* params) {
  return run_reference(params, reference::head_contrast);
}

}  // extern "C"
