// The library's own threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "restorelcc/params.h"

namespace restorelcc {

// Items a chunk. A few chunks per thread, so that a thread that is interrupted leaves its rest to the others;
// as many for each as for any other, so that undisturbed ones end together: three chunks on two threads would
// take as long as four. At least `grain` >= 1 items.
inline int64_t chunk_items(int64_t count, int64_t grain, int64_t threads) {
  constexpr int64_t kChunksEach = 4;
  const int64_t chunks = std::min(kChunksEach * threads, count / grain);
  if (chunks < threads) return grain;
  const int64_t even = chunks - chunks % threads;
  return count / even + (count % even != 0 ? 1 : 0);  // of any count: count + even may be too much
}

// As run_parallel() without a caller's pool. The calling thread works too.
void pool_run(int64_t count, int64_t grain, rlcc_task task, void* context);

}  // namespace restorelcc
