// Where an op runs: on the CPU, or on one CUDA device. The same POD goes to the entry point of either.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>

#include "status_exception.h"
#include "torch_pool.h"

namespace restorelcc_ext {

using torch::stable::Tensor;

// The core's entry points of one op (restorelcc/restorelcc.h, restorelcc/cuda.h).
template <class Params>
struct EntryPoints {
  rlcc_status (*cpu)(const Params* params);
  rlcc_status (*cuda_workspace)(const Params* params, size_t* bytes);
  rlcc_status (*cuda)(const Params* params, void* workspace, size_t bytes, void* stream);
};

struct NamedTensor {
  const Tensor* tensor;
  const char* name;

  NamedTensor(const Tensor& given, const char* its_name) : tensor(&given), name(its_name) {}
  NamedTensor(const std::optional<Tensor>& given, const char* its_name)
      : tensor(given ? &*given : nullptr), name(its_name) {}
};

class Place {
 public:
  // The place of the first tensor, where all of them must be; std::invalid_argument for one that is elsewhere,
  // or on a device that the library has no kernels for. Absent tensors are anywhere.
  explicit Place(std::initializer_list<NamedTensor> tensors);

  // On CUDA queued on torch's current stream, with a workspace from torch's allocator, which hands it to nobody
  // else before the stream has passed the call.
  template <class Params>
  void run(Params params, const EntryPoints<Params>& entry) const {
    if (cuda_index_ < 0) {
      const TorchPool pool;
      params.parallel = pool.seam();
      pool.throw_unless_ok(entry.cpu(&params));
      return;
    }
    const torch::stable::accelerator::DeviceGuard guard(cuda_index_);
    size_t bytes = 0;
    throw_unless_ok(entry.cuda_workspace(&params, &bytes));
    std::optional<Tensor> workspace;
    if (bytes > 0) {
      workspace =
          torch::stable::new_empty(*first_, {static_cast<int64_t>(bytes)}, torch::headeronly::ScalarType::Byte);
    }
    const auto stream = torch::stable::accelerator::getCurrentStream(cuda_index_);
    throw_unless_ok(
        entry.cuda(&params, workspace ? workspace->data_ptr() : nullptr, bytes, stream.nativeHandle()));
  }

 private:
  const Tensor* first_;      // borrowed for the duration of the op
  int32_t cuda_index_ = -1;  // -1: the CPU
};

// For what has no CUDA kernel and needs none: packing, unpacking, checking.
void require_cpu(std::initializer_list<NamedTensor> tensors);

}  // namespace restorelcc_ext
