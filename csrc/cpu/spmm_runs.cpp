#include "cpu/spmm_runs.h"

#include <algorithm>
#include <atomic>

#include "core/aligned_bytes.h"
#include "core/parallel.h"
#include "cpu/panel_runs.h"
#include "sparse/layout.h"

namespace restorelcc::cpu {
namespace {

constexpr int64_t kRowBlock = 512;  // rows that are transposed at a time, for the outer caches
// Of the outputs of an item: what is finished at a time, or, where that makes too few items, whole lines of y.
constexpr int64_t kOutputMultiple = 64, kLeastOutputs = 16;

int64_t round_up(int64_t a, int64_t multiple) { return divide_up(a, multiple) * multiple; }

// Blocks of rows, and tiles of a block, of equal size rather than full ones and a rest.
struct Cut {
  template <class Kernel>
  Cut(int64_t rows, const Kernel& kernel)
      : block_rows(divide_up(rows, divide_up(rows, kRowBlock))),
        tiles(divide_up(block_rows, kernel.most_tile_rows)),
        tile_rows(
            std::max(round_up(divide_up(block_rows, tiles), kernel.row_multiple), kernel.least_tile_rows)) {}

  int64_t block_rows;
  int64_t tiles;  // of a block, at most
  int64_t tile_rows;
};

// Rows [m, m + rows) of `whole`, with their tiles.
ColumnTiles rows_of(const ColumnTiles& whole, int64_t m, int64_t rows, int64_t tile_rows, float* tiles) {
  ColumnTiles part = whole;
  part.a = static_cast<const char*>(whole.a) + m * whole.a_stride * bytes_of(whole.a_dtype);
  part.rows = rows;
  part.tile_rows = tile_rows;
  part.tiles = tiles;
  return part;
}

template <class Kernel>
void pack_tiles(const Kernel& kernel, const ColumnTiles& a, const rlcc_parallel* parallel) {
  const int64_t grain = kMinimumChunk / (a.tile_rows * a.depth);
  parallel_for(parallel, divide_up(a.rows, a.tile_rows), grain,
               [&](int64_t begin, int64_t end) { kernel.pack(a, begin, end); });
}

bool is_finite(const sparse_linear_spmm_kernel& kernel, const ColumnTiles& a, const rlcc_parallel* parallel) {
  std::atomic<bool> finite{true};
  parallel_for(parallel, a.rows, kMinimumChunk / a.depth, [&](int64_t begin, int64_t end) {
    if (!kernel.finite(a, begin, end)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load(std::memory_order_relaxed);
}

}  // namespace

bool run_spmm(const sparse_linear_spmm_kernel& kernel, const SpmmJob& whole, const rlcc_parallel* parallel) {
  if (!is_finite(kernel, whole.x, parallel)) return false;
  const Cut cut(whole.x.rows, kernel);
  const int64_t outputs = whole.weight.rows, threads = parallel_threads(parallel);
  const int64_t tile_floats = cut.tile_rows * whole.x.depth;
  const AlignedBytes tiles(cut.tiles * tile_floats * 4);
  SpmmJob job = whole;
  job.x.tile_rows = cut.tile_rows;
  ScratchSlots slots(threads, kernel.scratch_bytes(job));
  // Outputs first; where they are too few for the threads, the rows are split too.
  const int64_t wanted_items = threads == 1 ? 1 : 2 * threads;
  const bool plenty = divide_up(outputs, kOutputMultiple) * cut.tiles >= wanted_items;
  const int64_t even = round_up(divide_up(outputs, wanted_items), plenty ? kOutputMultiple : kLeastOutputs);
  const int64_t item_outputs = std::min(even, kernel.most_outputs);
  const int64_t chunks = divide_up(outputs, item_outputs);
  const int64_t parts = std::min(cut.tiles, divide_up(wanted_items, chunks));
  const int64_t part_tiles = divide_up(cut.tiles, parts);
  const int64_t grain = kMinimumChunk / std::max<int64_t>(part_tiles * tile_floats * item_outputs, 1);

  for (int64_t m = 0; m < whole.x.rows; m += cut.block_rows) {
    const int64_t rows = std::min(cut.block_rows, whole.x.rows - m);
    job.x = rows_of(whole.x, m, rows, cut.tile_rows, tiles.floats());
    job.output = rows_from(whole.output, m);
    pack_tiles(kernel, job.x, parallel);
    const int64_t block_tiles = divide_up(rows, cut.tile_rows);
    parallel_for(parallel, chunks * divide_up(block_tiles, part_tiles), grain, [&](int64_t begin, int64_t end) {
      const ScratchSlots::Lease scratch(slots);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t first = item % chunks * item_outputs, tile = item / chunks * part_tiles;
        kernel.run(job, first, std::min(first + item_outputs, outputs), tile,
                   std::min(tile + part_tiles, block_tiles), scratch.bytes());
      }
    });
  }
  return true;
}

void run_sddmm(const sparse_linear_grad_values_sddmm_kernel& kernel, const SddmmJob& whole,
               const rlcc_parallel* parallel) {
  const Cut cut(whole.x.rows, kernel);
  const int64_t outputs = whole.weight.rows, threads = parallel_threads(parallel);
  const int64_t x_floats = cut.tiles * cut.tile_rows * whole.x.depth;
  const AlignedBytes x_tiles(x_floats * 4), grad_y_tiles(cut.tiles * cut.tile_rows * outputs * 4);
  ScratchSlots slots(threads, kernel.scratch_bytes());
  // Each chunk of rows of W reads all of x, so it is as large as the threads allow.
  const int64_t grain =
      std::max(kMinimumChunk / x_floats, std::min(kernel.some_rows, divide_up(outputs, threads)));
  for (int64_t m = 0; m < whole.x.rows; m += cut.block_rows) {
    const int64_t rows = std::min(cut.block_rows, whole.x.rows - m);
    SddmmJob job = whole;
    job.x = rows_of(whole.x, m, rows, cut.tile_rows, x_tiles.floats());
    job.grad_y = rows_of(whole.grad_y, m, rows, cut.tile_rows, grad_y_tiles.floats());
    job.accumulate = m > 0;
    pack_tiles(kernel, job.x, parallel);
    pack_tiles(kernel, job.grad_y, parallel);
    parallel_for(parallel, outputs, grain, [&](int64_t begin, int64_t end) {
      const ScratchSlots::Lease scratch(slots);
      kernel.run(job, begin, end, scratch.bytes());
    });
  }
}

}  // namespace restorelcc::cpu
