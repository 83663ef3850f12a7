// The CUDA cross entropies with a workspace that is made for one call, as the tests' cases call them.
#pragma once

#include <cstdint>
#include <vector>

#include "../cpp/check.h"
#include "restorelcc/cuda.h"

namespace restorelcc::test {

// Exactly as many bytes as were asked for, 16-byte aligned, NaN.
struct Workspace {
  std::vector<char> storage;
  size_t bytes;
  explicit Workspace(size_t count) : storage(count + 16, '\xff'), bytes(count) {}
  void* get() {
    const size_t past = reinterpret_cast<uintptr_t>(storage.data()) % 16;
    return storage.data() + (past == 0 ? 0 : 16 - past);
  }
};

template <class Params>
rlcc_status call_on_device(const Params* params, rlcc_status (*size)(const Params*, size_t*),
                           rlcc_status (*op)(const Params*, void*, size_t, void*)) {
  size_t bytes = 0;
  const rlcc_status status = size(params, &bytes);
  if (status != RLCC_OK) return status;
  Workspace workspace(bytes);
  return op(params, workspace.get(), bytes, nullptr);
}

inline rlcc_status loss_on_device(const rlcc_linear_cross_entropy_params* params) {
  return call_on_device(params, rlcc_cuda_linear_cross_entropy_workspace, rlcc_cuda_linear_cross_entropy);
}
inline rlcc_status gradient_on_device(const rlcc_linear_cross_entropy_backward_params* params) {
  return call_on_device(params, rlcc_cuda_linear_cross_entropy_backward_workspace,
                        rlcc_cuda_linear_cross_entropy_backward);
}
inline rlcc_status contrast_on_device(const rlcc_head_contrast_params* params) {
  return call_on_device(params, rlcc_cuda_head_contrast_workspace, rlcc_cuda_head_contrast);
}

}  // namespace restorelcc::test
