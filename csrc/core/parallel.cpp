#include "core/parallel.h"

#include <algorithm>
#include <mutex>
#include <thread>

#include "core/thread_pool.h"

namespace restorelcc {

int32_t parallel_threads(const rlcc_parallel* parallel) {
  return parallel != nullptr ? std::max<int32_t>(parallel->threads, 1) : get_num_threads();
}

void run_parallel(const rlcc_parallel* parallel, int64_t count, int64_t grain, rlcc_task task, void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (count <= grain || parallel_threads(parallel) == 1) {
    task(context, 0, count);
  } else if (parallel != nullptr) {
    parallel->run(parallel->self, count, grain, task, context);
  } else {
    pool_run(count, grain, task, context);
  }
}

ScratchSlots::ScratchSlots(int64_t slots, int64_t bytes_each)
    : slots_(slots),
      stride_((bytes_each + kAlignment - 1) / kAlignment * kAlignment),
      storage_(new char[static_cast<size_t>(slots * stride_ + kAlignment)]),
      taken_(new std::atomic<bool>[static_cast<size_t>(slots)]) {
  const auto address = reinterpret_cast<uintptr_t>(storage_.get());
  first_ = storage_.get() + (kAlignment - address % kAlignment) % kAlignment;
  for (int64_t i = 0; i < slots_; ++i) taken_[static_cast<size_t>(i)].store(false, std::memory_order_relaxed);
}

ScratchSlots::Lease::Lease(ScratchSlots& slots) {
  while (true) {
    for (int64_t i = 0; i < slots.slots_; ++i) {
      std::atomic<bool>& taken = slots.taken_[static_cast<size_t>(i)];
      if (taken.load(std::memory_order_relaxed) || taken.exchange(true, std::memory_order_acquire)) continue;
      taken_ = &taken;
      bytes_ = slots.first_ + i * slots.stride_;
      return;
    }
    std::this_thread::yield();
  }
}

ScratchSlots::Lease::~Lease() { taken_->store(false, std::memory_order_release); }

}  // namespace restorelcc
