// torch's own thread pool behind the core's rlcc_parallel seam: kernels called from torch never
// start threads of their own, and torch.set_num_threads() rules them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <stdexcept>

#include "restorelcc/params.h"
#include "status_exception.h"

namespace restorelcc_ext {

class TorchPool {
 public:
  TorchPool()
      : seam_{&TorchPool::run, this, static_cast<int32_t>(torch::stable::get_num_threads())} {}
  TorchPool(const TorchPool&) = delete;
  TorchPool& operator=(const TorchPool&) = delete;

  const rlcc_parallel* seam() const { return &seam_; }

  // The core cannot see a pool that failed, so it is asked here, after the entry point returned.
  void throw_unless_ok(rlcc_status status) const {
    restorelcc_ext::throw_unless_ok(status);
    if (failed_) throw std::runtime_error("torch's thread pool failed; the result is not complete");
  }

 private:
  struct Work {
    rlcc_task task;
    void* context;
  };

  static void run(void* self, int64_t count, int64_t grain, rlcc_task task, void* context) {
    Work work{task, context};
    const auto forward = [](int64_t begin, int64_t end, void* opaque) {
      const auto* w = static_cast<const Work*>(opaque);
      w->task(w->context, begin, end);
    };
    if (torch_parallel_for(0, count, grain, forward, &work) != 0) {
      static_cast<TorchPool*>(self)->failed_ = true;
    }
  }

  rlcc_parallel seam_;
  bool failed_ = false;
};

}  // namespace restorelcc_ext
