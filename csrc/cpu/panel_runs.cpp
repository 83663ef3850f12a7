#include "cpu/panel_runs.h"

#include <algorithm>

#include "core/aligned_bytes.h"
#include "core/parallel.h"
#include "sparse/layout.h"

namespace restorelcc::cpu {
namespace {

// Rows of A packed at a time. Enough to make expanding W cheap (a third of a cycle a weight against M / 16
// cycles), few enough for the packed block and the panel's sums to stay in the outer caches.
constexpr int64_t kRowBlock = 516;  // a multiple of every tile_rows: 4, 6, 12

}  // namespace

Output rows_from(Output output, int64_t m) {
  const int64_t bytes = bytes_of(output.dtype);
  if (output.comp_index != nullptr) output.comp_index += m;
  if (output.residual != nullptr) {
    output.residual = static_cast<const char*>(output.residual) + m * output.residual_stride * bytes;
  }
  output.y = static_cast<char*>(output.y) + m * output.y_stride * bytes;
  return output;
}

// Runs `whole` block of rows by block of rows; a_tiles of `whole` is set here.
void run_panels(const panel_kernel& kernel, PanelJob whole, const rlcc_parallel* parallel) {
  const int64_t blocks = divide_up(whole.rows, kRowBlock);
  const int64_t tiles = divide_up(divide_up(whole.rows, blocks), kernel.tile_rows);
  const int64_t panels = divide_up(whole.columns, kernel.panel_columns);
  whole.most_rows = std::min(tiles * kernel.tile_rows, whole.rows);
  const int64_t threads = parallel_threads(parallel);
  // Panels first; where they are too few for the threads, the rows are split too (and W is expanded
  // once more per part).
  const int64_t wanted_items = threads == 1 ? 1 : 2 * threads;
  const int64_t parts = std::min(tiles, divide_up(wanted_items, panels));
  const int64_t tiles_per_part = divide_up(tiles, parts);

  const int64_t tile_floats = kernel.tile_rows * whole.depth;
  const AlignedBytes a_tiles(tiles * kernel.tile_bytes(whole));
  ScratchSlots slots(threads, kernel.scratch_bytes(whole, tiles_per_part));
  const int64_t pack_grain = kMinimumChunk / std::max<int64_t>(tile_floats, 1);
  const int64_t item_work = tiles_per_part * tile_floats * kernel.panel_columns;
  // No fewer panels than a run expands side by side, as long as each thread gets some.
  const int64_t at_once = std::min(kernel.panels_at_once(whole), divide_up(panels, threads));
  const int64_t grain = std::max(at_once, kMinimumChunk / std::max<int64_t>(item_work, 1));

  const int64_t a_row_bytes = whole.a_stride * bytes_of(whole.a_dtype);
  for (int64_t m = 0; m < whole.rows; m += tiles * kernel.tile_rows) {
    PanelJob job = whole;
    if (whole.depth > 0) job.a = static_cast<const char*>(whole.a) + m * a_row_bytes;  // else A may be null
    job.rows = std::min(tiles * kernel.tile_rows, whole.rows - m);
    job.a_tiles = a_tiles.get();
    job.first_row = m;
    if (!whole.by_mask) job.output = rows_from(whole.output, m);
    const int64_t job_tiles = divide_up(job.rows, kernel.tile_rows);
    if (job.depth > 0) {  // else A may be null
      parallel_for(parallel, job_tiles, pack_grain,
                   [&](int64_t begin, int64_t end) { kernel.pack(job, begin, end); });
    }
    parallel_for(parallel, panels * divide_up(job_tiles, tiles_per_part), grain,
                 [&](int64_t begin, int64_t end) {
                   const ScratchSlots::Lease scratch(slots);
                   while (begin < end) {  // items run along the panels of one part, then the next part
                     const int64_t part = begin / panels, panel = begin % panels;
                     const int64_t panel_end = std::min(panels, panel + end - begin);
                     const int64_t tile = part * tiles_per_part;
                     kernel.run(job, panel, panel_end, tile, std::min(tile + tiles_per_part, job_tiles),
                                scratch.bytes());
                     begin += panel_end - panel;
                   }
                 });
  }
}

}  // namespace restorelcc::cpu
