// The library's own threads.
#pragma once

#include <cstdint>

#include "restorelcc/params.h"

namespace restorelcc {

// As run_parallel() without a caller's pool. The calling thread works too.
void pool_run(int64_t count, int64_t grain, rlcc_task task, void* context);

}  // namespace restorelcc
