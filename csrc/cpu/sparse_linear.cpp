#include <algorithm>
#include <cstring>
#include <memory>

#include "core/parallel.h"
#include "cpu/ops.h"
#include "cpu/registry.h"
#include "sparse/layout.h"

namespace restorelcc::cpu {
namespace {

// Work worth waking a thread for, in multiply-adds (pruned ones count): some 10 us of one core.
constexpr int64_t kMinimumChunk = int64_t{1} << 17;

// Rows of A packed at a time. Enough to make expanding W cheap (1 cycle a weight against M / 16), few
// enough for the packed block and the panel's sums to stay in the outer caches.
constexpr int64_t kRowBlock = 516;  // a multiple of every tile_rows: 4, 6, 12

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// x [M, K] -> [M, 64 words] fp32 with zeros behind column K.
void widen_rows(const rlcc_sparse_linear_params& p, float* widened, int64_t widened_stride) {
  const int64_t columns = p.weight.columns;
  if (columns == 0) return;  // x may be null
  for (int64_t m = 0; m < p.x_rows; ++m) {
    float* row = widened + m * widened_stride;
    if (p.x_dtype == RLCC_F32) {
      std::memcpy(row, static_cast<const float*>(p.x) + m * p.x_stride, static_cast<size_t>(columns) * 4);
    } else {
      const uint16_t* x = static_cast<const uint16_t*>(p.x) + m * p.x_stride;
      for (int64_t k = 0; k < columns; ++k) {
        const uint32_t bits = static_cast<uint32_t>(x[k]) << 16;
        std::memcpy(row + k, &bits, 4);
      }
    }
    std::fill(row + columns, row + widened_stride, 0.0f);
  }
}

void run_decode(const sparse_linear_decode_kernel& kernel, const rlcc_sparse_linear_params& p,
                const Output& output) {
  const int64_t stride = words_of(p.weight.columns) * kWordBits;
  const std::unique_ptr<float[]> x(new float[static_cast<size_t>(p.x_rows * stride)]);
  widen_rows(p, x.get(), stride);
  const DecodeJob job{p.weight, x.get(), stride, p.x_rows, output};
  const int64_t grain = kMinimumChunk / std::max<int64_t>(stride * p.x_rows, 1);
  parallel_for(p.parallel, p.weight.rows, grain,
               [&](int64_t begin, int64_t end) { kernel.run(job, begin, end); });
}

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
void run_panels(const panel_kernel& kernel, const PanelJob& whole, const rlcc_parallel* parallel) {
  const int64_t blocks = divide_up(whole.rows, kRowBlock);
  const int64_t tiles = divide_up(divide_up(whole.rows, blocks), kernel.tile_rows);
  const int64_t panels = divide_up(whole.columns, kernel.panel_columns);
  const int64_t threads = parallel_threads(parallel);
  // Panels first; where they are too few for the threads, the rows are split too (and W is expanded
  // once more per part).
  const int64_t wanted_items = threads == 1 ? 1 : 2 * threads;
  const int64_t parts = std::min(tiles, divide_up(wanted_items, panels));
  const int64_t tiles_per_part = divide_up(tiles, parts);

  const int64_t tile_floats = kernel.tile_rows * whole.depth;
  const std::unique_ptr<float[]> a_tiles(new float[static_cast<size_t>(tiles * tile_floats)]);
  ScratchSlots slots(threads, kernel.scratch_bytes(whole, tiles_per_part));
  const int64_t pack_grain = kMinimumChunk / std::max<int64_t>(tile_floats, 1);
  const int64_t item_work = tiles_per_part * tile_floats * kernel.panel_columns;
  const int64_t grain = kMinimumChunk / std::max<int64_t>(item_work, 1);

  const int64_t a_row_bytes = whole.a_stride * bytes_of(whole.a_dtype);
  for (int64_t m = 0; m < whole.rows; m += tiles * kernel.tile_rows) {
    PanelJob job = whole;
    job.a = static_cast<const char*>(whole.a) + m * a_row_bytes;
    job.rows = std::min(tiles * kernel.tile_rows, whole.rows - m);
    job.a_tiles = a_tiles.get();
    job.output = rows_from(whole.output, m);
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

}  // namespace

void sparse_linear(const rlcc_sparse_linear_params& p, Isa isa) {
  if (p.x_rows == 0 || p.weight.rows == 0) return;
  const Output output{p.weight.rows,     p.comp_rows, p.comp_index, p.bias,   p.residual,
                      p.residual_stride, p.y,         p.y_stride,   p.x_dtype};
  if (p.x_rows <= kDecodeMaxRows) return run_decode(sparse_linear_decode(p.weight.dtype, isa), p, output);
  const PanelJob job{p.weight,         p.x,           p.x_stride, p.x_dtype, p.x_rows,
                     p.weight.columns, p.weight.rows, nullptr,    output};
  run_panels(sparse_linear_panel(p.weight.dtype, isa), job, p.parallel);
}

void sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params& p, Isa isa) {
  if (p.y_rows == 0 || p.weight.columns == 0) return;
  const Output output{p.weight.columns, nullptr,         nullptr, nullptr, nullptr, 0,
                      p.grad_x,         p.grad_x_stride, p.dtype};
  const PanelJob job{p.weight,      p.grad_y,         p.grad_y_stride, p.dtype, p.y_rows,
                     p.weight.rows, p.weight.columns, nullptr,         output};
  run_panels(sparse_linear_grad_x_panel(p.weight.dtype, isa), job, p.parallel);
}

}  // namespace restorelcc::cpu
