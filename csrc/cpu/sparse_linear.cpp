#include <algorithm>
#include <cstring>

#include "core/aligned_bytes.h"
#include "core/parallel.h"
#include "cpu/ops.h"
#include "cpu/registry.h"
#include "sparse/layout.h"

namespace restorelcc::cpu {
namespace {

// Work worth waking a thread for, in multiply-adds (pruned ones count): some 10 us of one core.
constexpr int64_t kMinimumChunk = int64_t{1} << 17;

// Outputs that a decode kernel expands and multiplies side by side (kBlockOutputs): work is split at multiples
// of it, so that only the last block is smaller. The bits do not depend on it.
constexpr int64_t kOutputsTogether = 4;

// Rows of A packed at a time. Enough to make expanding W cheap (a third of a cycle a weight against M / 16
// cycles), few enough for the packed block and the panel's sums to stay in the outer caches.
constexpr int64_t kRowBlock = 516;  // a multiple of every tile_rows: 4, 6, 12

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

void run_decode(const sparse_linear_decode_kernel& kernel, const rlcc_sparse_linear_params& p,
                const Output& output) {
  const DecodeJob job{p.weight, p.x, p.x_stride, p.x_dtype, p.x_rows, output};
  const AlignedBytes x(kernel.x_bytes(job));
  kernel.pack_x(job, x.get());
  const int64_t output_work = p.x_rows * words_of(p.weight.columns) * kWordBits;
  const int64_t grain = kMinimumChunk / std::max<int64_t>(kOutputsTogether * output_work, 1);
  parallel_for(p.parallel, divide_up(p.weight.rows, kOutputsTogether), grain, [&](int64_t begin, int64_t end) {
    kernel.run(job, x.get(), begin * kOutputsTogether, std::min(end * kOutputsTogether, p.weight.rows));
  });
}

// The output of rows m and on. (The gradient of the values has no rows: its places are the mask's.)
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
    if (whole.b == nullptr) job.output = rows_from(whole.output, m);
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

// C[rows, columns] = A[rows, depth] B, element (m, k) of A at a[m a_stride + k a_depth_stride].
PanelJob panel_job(const rlcc_packed_weight& weight, const void* a, int64_t a_stride, int64_t a_depth_stride,
                   rlcc_dtype a_dtype, int64_t rows, int64_t depth, int64_t columns) {
  PanelJob job{};
  job.weight = weight;
  job.a = a;
  job.a_stride = a_stride;
  job.a_depth_stride = a_depth_stride;
  job.a_dtype = a_dtype;
  job.rows = rows;
  job.depth = depth;
  job.columns = columns;
  return job;
}

}  // namespace

void sparse_linear(const rlcc_sparse_linear_params& p, Isa isa) {
  if (p.x_rows == 0 || p.weight.rows == 0) return;
  const Output output{p.weight.rows,     p.comp_rows, p.comp_index, p.bias,   p.residual,
                      p.residual_stride, p.y,         p.y_stride,   p.x_dtype};
  const sparse_linear_decode_kernel& decode = sparse_linear_decode(p.weight.dtype, isa);
  const bool rounds_x = p.weight.dtype == RLCC_I8;  // the decode kernels of int8 values do
  if (p.x_rows <= decode.max_rows && !(rounds_x && p.exact_x != 0)) return run_decode(decode, p, output);
  PanelJob job = panel_job(p.weight, p.x, p.x_stride, 1, p.x_dtype, p.x_rows, p.weight.columns, p.weight.rows);
  job.output = output;
  run_panels(sparse_linear_panel(p.weight.dtype, isa), job, p.parallel);
}

void sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params& p, Isa isa) {
  if (p.y_rows == 0 || p.weight.columns == 0) return;
  PanelJob job =
      panel_job(p.weight, p.grad_y, p.grad_y_stride, 1, p.dtype, p.y_rows, p.weight.rows, p.weight.columns);
  job.output.columns = p.weight.columns;
  job.output.y = p.grad_x;
  job.output.y_stride = p.grad_x_stride;
  job.output.dtype = p.dtype;
  run_panels(sparse_linear_grad_x_panel(p.weight.dtype, isa), job, p.parallel);
}

void sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params& p, Isa isa) {
  if (p.weight.rows == 0 || p.weight.columns == 0) return;
  static const char kNothing = 0;  // marks the job where x is null because it has no rows
  PanelJob job =
      panel_job(p.weight, p.grad_y, 1, p.grad_y_stride, p.dtype, p.weight.rows, p.rows, p.weight.columns);
  job.output.y = p.grad_values;
  job.b = p.x != nullptr ? p.x : &kNothing;
  job.b_stride = p.x_stride;
  run_panels(sparse_linear_grad_values_panel(p.weight.dtype, isa), job, p.parallel);
}

void sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& p, Isa isa) {
  const int64_t sums = (p.groups > 0 ? 1 : 0) + (p.grad_bias != nullptr ? 1 : 0);  // that a number is added to
  if (p.columns == 0 || sums == 0) return;
  constexpr int64_t kBlock = 64;  // columns: whole cache lines of grad_y, and of the gradients
  const sparse_linear_grad_comp_block_kernel& kernel = sparse_linear_grad_comp_block(p.dtype, isa);
  const int64_t grain = std::max<int64_t>(kMinimumChunk / std::max<int64_t>(p.rows * sums * kBlock, 1), 1);
  parallel_for(p.parallel, divide_up(p.columns, kBlock), grain, [&](int64_t begin, int64_t end) {
    kernel.run(p, begin * kBlock, std::min(end * kBlock, p.columns));
  });
}

}  // namespace restorelcc::cpu
