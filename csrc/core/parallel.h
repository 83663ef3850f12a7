// The parallel seam: params.parallel where the caller has a pool, the library's own otherwise.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/status.h"

namespace restorelcc {

Status set_num_threads(int32_t threads);
int32_t get_num_threads();

// How many threads run() may use at once.
int32_t parallel_threads(const rlcc_parallel* parallel);

// task(context, begin, end) over [0, count), each chunk at least `grain` items (the last may be
// smaller). Runs inline when one chunk is all there is, inside another task, or when the library's
// pool is busy with another caller.
void run_parallel(const rlcc_parallel* parallel, int64_t count, int64_t grain, rlcc_task task, void* context);

// body(begin, end), which may throw: the first exception is rethrown here.
template <class Body>
void parallel_for(const rlcc_parallel* parallel, int64_t count, int64_t grain, Body&& body) {
  struct Context {
    std::remove_reference_t<Body>* body;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } context{&body, {false}, nullptr};
  run_parallel(
      parallel, count, grain,
      [](void* opaque, int64_t begin, int64_t end) {
        auto* c = static_cast<Context*>(opaque);
        try {
          (*c->body)(begin, end);
        } catch (...) {
          if (!c->failed.exchange(true)) c->error = std::current_exception();
        }
      },
      &context);
  if (context.error) std::rethrow_exception(context.error);
}

// One scratch buffer per thread, allocated before any output is written, so that running out of
// memory leaves the outputs alone.
class ScratchSlots {
 public:
  static constexpr int64_t kAlignment = 64;

  ScratchSlots(int64_t slots, int64_t bytes_each);

  // A buffer for the duration of one task. Waits if the caller's pool runs more tasks at once than
  // it said it would.
  class Lease {
   public:
    explicit Lease(ScratchSlots& slots);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    char* bytes() const { return bytes_; }

   private:
    std::atomic<bool>* taken_ = nullptr;
    char* bytes_ = nullptr;
  };

 private:
  int64_t slots_;
  int64_t stride_;
  std::unique_ptr<char[]> storage_;
  char* first_;
  std::unique_ptr<std::atomic<bool>[]> taken_;
};

}  // namespace restorelcc
