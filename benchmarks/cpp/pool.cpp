#include "pool.h"

#include <algorithm>

namespace restorelcc::bench {
namespace {

constexpr int kJobShift = 16;
constexpr uint64_t kOpen = 1u << 15, kInside = kOpen - 1;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

Pool::Pool(int32_t threads) {
  parallel_ = {[](void* self, int64_t count, int64_t grain, rlcc_task task, void* context) {
                 static_cast<Pool*>(self)->run(count, grain, task, context);
               },
               this, threads};
  for (int32_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
}

Pool::~Pool() {
  stopping_.store(true);
  for (std::thread& worker : workers_) worker.join();
}

// Four chunks a thread, as the library's own pool cuts them.
void Pool::run(int64_t count, int64_t grain, rlcc_task task, void* context) {
  if (count <= 0) return;
  const int64_t chunks = workers_.empty() ? 1 : 4 * threads();
  const int64_t chunk = std::max(std::max<int64_t>(grain, 1), (count + chunks - 1) / chunks);
  if (chunk >= count) return task(context, 0, count);
  task_ = task;
  context_ = context;
  count_ = count;
  chunk_ = chunk;
  next_.store(0, std::memory_order_relaxed);
  entered_.store(0, std::memory_order_relaxed);
  gate_.store((((gate_.load() >> kJobShift) + 1) << kJobShift) | kOpen);
  work();
  gate_.fetch_and(~kOpen);
  while ((gate_.load() & kInside) != 0) pause();
  if (entered_.load(std::memory_order_relaxed) != workers_.size()) ++jobs_without_all_;
}

void Pool::work() {
  while (true) {
    const int64_t begin = next_.fetch_add(chunk_, std::memory_order_relaxed);
    if (begin >= count_) return;
    task_(context_, begin, std::min(begin + chunk_, count_));
  }
}

void Pool::serve() {
  uint64_t served = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    uint64_t gate = gate_.load();
    if ((gate & kOpen) == 0 || (gate >> kJobShift) == served) {
      pause();
    } else if (gate_.compare_exchange_weak(gate, gate + 1)) {
      served = gate >> kJobShift;
      entered_.fetch_add(1, std::memory_order_relaxed);
      work();
      gate_.fetch_sub(1);
    }
  }
}

}  // namespace restorelcc::bench
