// A pool of sleeping threads, one job at a time.
//
// A job is published by storing its fields and then opening the gate, one 64-bit word:
//
//   bits 63..16 epoch (counts jobs) | bit 15 open | bits 14..0 workers inside
//
// A worker enters by incrementing the word while the gate is open for an epoch it has not served;
// the caller works too, closes the gate when the chunks are all taken, and waits only for the
// workers that are inside. A worker that wakes up late finds the gate closed and costs nothing:
// waiting for every worker to report would put the slowest wake-up on the path of each short op.
#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "core/parallel.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define RLCC_HAS_FORK 1
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace restorelcc {
namespace {

thread_local bool t_inside_task = false;

void relax_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  explicit Pool(int32_t threads) {
    try {
      for (int32_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (const std::system_error&) {
      // The system starts no more of them. Those that there are do the work, the caller at least.
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Pool() { stop(); }

  void run(int64_t count, int64_t grain, rlcc_task task, void* context) {
    std::unique_lock<std::mutex> sole(one_job_, std::try_to_lock);
    if (t_inside_task || !sole.owns_lock() || workers_.empty()) return task(context, 0, count);
    count_ = count;
    chunk_ = chunk_items(count, grain, static_cast<int64_t>(workers_.size()) + 1);
    chunks_ = count / chunk_ + (count % chunk_ != 0 ? 1 : 0);
    task_ = task;
    context_ = context;
    next_.store(0, std::memory_order_relaxed);
    const uint64_t epoch = (gate_.load(std::memory_order_relaxed) >> kEpochShift) + 1;
    gate_.store((epoch << kEpochShift) | kOpen, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      {
        std::lock_guard<std::mutex> lock(sleep_);
      }
      wake_.notify_all();
    }
    work();
    gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spins = 0; (gate_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
      if (spins < kSpins)
        relax_cpu();
      else
        std::this_thread::yield();
    }
  }

 private:
  static constexpr int kEpochShift = 16;
  static constexpr uint64_t kOpen = 1u << 15, kInside = kOpen - 1;
  // About 20 us: longer than the gap between two ops of one layer, shorter than anyone notices.
  static constexpr int kSpins = 1000;

  void work() {
    t_inside_task = true;
    while (true) {
      const int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks_) break;
      const int64_t begin = chunk * chunk_;
      task_(context_, begin, begin + std::min(chunk_, count_ - begin));
    }
    t_inside_task = false;
  }

  void serve() {
    uint64_t served = 0;
    int spins = 0;
    while (!stopping_.load(std::memory_order_relaxed)) {
      uint64_t gate = gate_.load(std::memory_order_acquire);
      if ((gate & kOpen) != 0 && (gate >> kEpochShift) != served) {
        if (!gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) continue;
        served = gate >> kEpochShift;
        work();
        gate_.fetch_sub(1, std::memory_order_acq_rel);
        spins = 0;
      } else if (++spins < kSpins) {
        relax_cpu();
      } else {
        sleep_until_called(served);
        spins = 0;
      }
    }
  }

  void sleep_until_called(uint64_t served) {
    std::unique_lock<std::mutex> lock(sleep_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] {
      const uint64_t gate = gate_.load(std::memory_order_seq_cst);
      return stopping_.load(std::memory_order_relaxed) ||
             ((gate & kOpen) != 0 && (gate >> kEpochShift) != served);
    });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(sleep_);
      stopping_.store(true, std::memory_order_relaxed);
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  std::mutex one_job_;                          // held by the caller whose job it is
  int64_t count_ = 0, chunk_ = 0, chunks_ = 0;  // items, items a chunk, chunks
  rlcc_task task_ = nullptr;
  void* context_ = nullptr;
  std::atomic<int64_t> next_{0};  // the first chunk that nobody took; counted in items it could leave int64
  std::atomic<uint64_t> gate_{0};

  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

int32_t cpus_of_this_process() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return static_cast<int32_t>(std::max(std::thread::hardware_concurrency(), 1u));
}

constexpr int32_t kMaxThreads = 4096;  // fits the gate's 15 bits

// The pool in use. Neither it nor its threads are torn down at exit: other static destructors may
// still call the library, and a process that ends takes its threads along. The library is linked
// with -z nodelete, so dlclose() does not pull the code from under the threads.
struct PoolHolder {
  std::mutex mutex;
  std::shared_ptr<Pool> pool;  // null until first use, and again in a child after fork()
  std::atomic<int32_t> threads{std::min(cpus_of_this_process(), kMaxThreads)};
};

// Made in place: asking for the number of threads needs no memory.
PoolHolder& holder() {
  alignas(PoolHolder) static unsigned char place[sizeof(PoolHolder)];
  static PoolHolder* const the_holder = [] {
    auto* made = new (place) PoolHolder;
#if RLCC_HAS_FORK
    // Threads do not survive fork(). The child forgets the parent's pool (its threads do not exist,
    // its locks may be held for ever: so it is leaked, not destroyed) and makes its own when needed.
    pthread_atfork(
        [] { holder().mutex.lock(); }, [] { holder().mutex.unlock(); },
        [] {
          alignas(std::shared_ptr<Pool>) static unsigned char forgotten[sizeof(std::shared_ptr<Pool>)];
          new (forgotten) std::shared_ptr<Pool>(std::move(holder().pool));
          holder().mutex.unlock();
          t_inside_task = false;
        });
#endif
    return made;
  }();
  return *the_holder;
}

std::shared_ptr<Pool> current_pool() {
  PoolHolder& h = holder();
  std::lock_guard<std::mutex> lock(h.mutex);
  if (h.pool == nullptr) h.pool = std::make_shared<Pool>(h.threads.load());
  return h.pool;
}

}  // namespace

void pool_run(int64_t count, int64_t grain, rlcc_task task, void* context) {
  if (t_inside_task) return task(context, 0, count);
  current_pool()->run(count, grain, task, context);
}

Status set_num_threads(int32_t threads) {
  if (threads < 1 || threads > kMaxThreads) {
    return invalid("threads is ", threads, ", must be between 1 and ", kMaxThreads);
  }
  std::shared_ptr<Pool> retired;  // its threads are joined here, or by the last caller still using it
  PoolHolder& h = holder();
  std::lock_guard<std::mutex> lock(h.mutex);
  if (threads == h.threads.load()) return {};
  h.threads.store(threads);
  retired = std::move(h.pool);
  return {};
}

int32_t get_num_threads() { return holder().threads.load(); }

}  // namespace restorelcc
