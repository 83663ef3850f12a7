#include <algorithm>

#include "core/parallel.h"
#include "cpu/ops.h"
#include "cpu/registry.h"

namespace restorelcc::cpu {

void head_moments(const rlcc_head_moments_params& p, Isa isa) {
  if (p.tokens == 0 || p.heads == 0 || p.head_dim == 0) return;
  const head_moments_block_kernel& kernel = head_moments_block(p.dtype, isa);
  const int64_t threads = parallel_threads(p.parallel);
  // One item per head; where heads are too few for the threads, bands of rows of the Gram matrix (each
  // band widens the differences once more). An element's additions are the same in any band.
  const int64_t row_groups = (p.head_dim + kernel.row_multiple - 1) / kernel.row_multiple;
  const int64_t wanted_bands = threads == 1 ? 1 : (4 * threads + p.heads - 1) / p.heads;
  const int64_t bands = std::min(row_groups, wanted_bands);
  const int64_t band_rows = (row_groups + bands - 1) / bands * kernel.row_multiple;

  ScratchSlots slots(threads, kernel.scratch_bytes(p.head_dim));
  parallel_for(p.parallel, p.heads * bands, 1, [&](int64_t begin, int64_t end) {
    const ScratchSlots::Lease scratch(slots);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item % bands * band_rows;
      if (row >= p.head_dim) continue;
      kernel.run(p, item / bands, row, std::min(row + band_rows, p.head_dim), scratch.bytes());
    }
  });
}

}  // namespace restorelcc::cpu
