// What the ops on W share: how a product is cut for threads.
#pragma once

#include "cpu/kernel_types.h"

namespace restorelcc::cpu {

// Work worth waking a thread for, in multiply-adds (pruned ones count): some 10 us of one core.
constexpr int64_t kMinimumChunk = int64_t{1} << 17;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The output of rows m and on. (The gradient of the values has no rows: its places are the mask's.)
Output rows_from(Output output, int64_t m);

// C = A B for many rows: blocks of rows, panels, threads. a_tiles and most_rows of `whole` are set inside.
void run_panels(const panel_kernel& kernel, PanelJob whole, const rlcc_parallel* parallel);

}  // namespace restorelcc::cpu
