// torch's own thread pool behind the core's rlcc_parallel seam: kernels called from torch never
// start threads of their own, and torch.set_num_threads() rules them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>

#include "restorelcc/params.h"
#include "status_exception.h"

namespace restorelcc_ext {

class TorchPool {
 public:
  TorchPool() : seam_{&TorchPool::run, this, static_cast<int32_t>(torch::stable::get_num_threads())} {}
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
    int64_t count, chunk;
    rlcc_task task;
    void* context;
    std::atomic<int64_t> next;
  };

  // Each thread takes the next of some chunks until none is left, as in the library's own pool. torch by itself
  // would give each one equal part, and all would wait for the slowest: on two cores of a shared machine a
  // tenth of the time.
  static void run(void* self, int64_t count, int64_t grain, rlcc_task task, void* context) {
    auto* pool = static_cast<TorchPool*>(self);
    const int64_t threads = pool->seam_.threads, chunks = kChunksPerThread * threads;
    const int64_t chunk = std::max((count + chunks - 1) / chunks, std::max<int64_t>(grain, 1));
    if (threads == 1 || chunk >= count) {
      if (count > 0) task(context, 0, count);
      return;
    }
    Work work{count, chunk, task, context, {0}};
    const auto serve = [](int64_t, int64_t, void* opaque) {
      auto* w = static_cast<Work*>(opaque);
      for (int64_t begin; (begin = w->next.fetch_add(w->chunk, std::memory_order_relaxed)) < w->count;) {
        w->task(w->context, begin, std::min(begin + w->chunk, w->count));
      }
    };
    const int64_t workers = std::min(threads, (count + chunk - 1) / chunk);
    if (torch_parallel_for(0, workers, 1, serve, &work) != 0) pool->failed_ = true;
  }

  static constexpr int64_t kChunksPerThread = 4;

  rlcc_parallel seam_;
  bool failed_ = false;
};

}  // namespace restorelcc_ext
