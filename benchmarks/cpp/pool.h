// The threads that every contender runs on, ours and the rivals': handed to the kernels as rlcc_parallel.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "restorelcc/restorelcc.h"

namespace restorelcc::bench {

// Workers spin between jobs, so that waking them is in nobody's time; so make it, measure, destroy it. A worker
// that comes late, because the machine runs something else, finds the job closed: nobody waits for it.
class Pool {
 public:
  explicit Pool(int32_t threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  const rlcc_parallel* parallel() const { return &parallel_; }
  int32_t threads() const { return parallel_.threads; }
  int64_t jobs_without_all() const { return jobs_without_all_; }  // that some worker missed
  void run(int64_t count, int64_t grain, rlcc_task task, void* context);

 private:
  void serve();
  void work();

  rlcc_parallel parallel_;
  rlcc_task task_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0, chunk_ = 1;
  int64_t jobs_without_all_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<size_t> entered_{0};  // workers that took part in the job
  std::atomic<uint64_t> gate_{0};   // number of the job << 16 | open << 15 | workers inside
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

// body(begin, end) over [0, count) on the pool.
template <class Body>
void run_on(Pool& pool, int64_t count, Body&& body) {
  pool.run(
      count, 1, [](void* opaque, int64_t begin, int64_t end) { (*static_cast<Body*>(opaque))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace restorelcc::bench
