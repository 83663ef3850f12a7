// The CUDA entry points of a build without nvcc.
#include "core/build_info.h"
#include "core/status.h"
#include "restorelcc/cuda.h"

namespace restorelcc {

const char* cuda_architectures() { return ""; }

namespace {

rlcc_status refuse() {
  return guarded([] {
    return failure(
        RLCC_UNSUPPORTED,
        "this build of restorelcc has no CUDA kernels; build it where nvcc is found (-DRLCC_CUDA=ON says "
        "what is missing), or move the tensors to the CPU");
  });
}

}  // namespace
}  // namespace restorelcc

extern "C" {

rlcc_status rlcc_cuda_sparse_linear_workspace(const rlcc_sparse_linear_params*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear(const rlcc_sparse_linear_params*, void*, size_t, void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_head_moments_workspace(const rlcc_head_moments_params*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_head_moments(const rlcc_head_moments_params*, void*, size_t, void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_grad_x_workspace(const rlcc_sparse_linear_grad_x_params*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params*, void*, size_t, void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_grad_values_workspace(const rlcc_sparse_linear_grad_values_params*,
                                                          size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params*, void*, size_t,
                                                void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_grad_comp_workspace(const rlcc_sparse_linear_grad_comp_params*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params*, void*, size_t,
                                              void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_2to4_workspace(const rlcc_sparse_linear_params*,
                                                   const rlcc_cuda_weight_2to4*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_sparse_linear_2to4(const rlcc_sparse_linear_params*, const rlcc_cuda_weight_2to4*, void*,
                                         size_t, void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_linear_cross_entropy_workspace(const rlcc_linear_cross_entropy_params*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_linear_cross_entropy(const rlcc_linear_cross_entropy_params*, void*, size_t, void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_linear_cross_entropy_backward_workspace(const rlcc_linear_cross_entropy_backward_params*,
                                                              size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params*, void*,
                                                    size_t, void*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_head_contrast_workspace(const rlcc_head_contrast_params*, size_t*) {
  return restorelcc::refuse();
}

rlcc_status rlcc_cuda_head_contrast(const rlcc_head_contrast_params*, void*, size_t, void*) {
  return restorelcc::refuse();
}

}  // extern "C"
