// Loops over the library's own threads.
#pragma once

#include <cstdint>

#include "refusal.h"

namespace decode {

// body(begin, end) over [0, count), split over threads where an item's `work`, in multiplications, makes it
// worth it. The body must not throw.
template <class Body>
void over(int64_t count, int64_t work, const Body& body) {
  constexpr int64_t kWorkOfATask = int64_t{1} << 16;  // some microseconds of one core
  const int64_t grain = 1 + kWorkOfATask / (work < 1 ? 1 : work);
  const rlcc_task task = [](void* context, int64_t begin, int64_t end) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  check(rlcc_parallel_for(nullptr, count, grain, task, const_cast<Body*>(&body)));
}

}  // namespace decode
