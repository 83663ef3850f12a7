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

// Rows of A packed at a time. Enough to make expanding W cheap (a third of a cycle a weight against M / 16
// cycles), few enough for the packed block and the panel's sums to stay in the outer caches.
constexpr int64_t kRowBlock = 516;  // a multiple of every tile_rows: 4, 6, 12

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns [first, first + count) of row m of x, in fp32.
void widen_columns(const rlcc_sparse_linear_params& p, int64_t m, int64_t first, int64_t count,
                   float* widened) {
  if (p.x_dtype == RLCC_F32) {
    std::memcpy(widened, static_cast<const float*>(p.x) + m * p.x_stride + first,
                static_cast<size_t>(count) * 4);
    return;
  }
  const uint16_t* x = static_cast<const uint16_t*>(p.x) + m * p.x_stride + first;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(x[i]) << 16;
    std::memcpy(widened + i, &bits, 4);
  }
}

// DecodeJob::x.
void widen_tiles(const rlcc_sparse_linear_params& p, int64_t lanes, float* tiles) {
  const int64_t columns = p.weight.columns, padded = words_of(columns) * kWordBits;
  for (int64_t tile = 0; tile < p.x_rows; tile += kDecodeTileRows) {
    const int64_t rows = std::min(kDecodeTileRows, p.x_rows - tile);
    for (int64_t first = 0; first < padded; first += lanes) {
      const int64_t count = std::clamp<int64_t>(columns - first, 0, lanes);
      for (int64_t r = 0; r < rows; ++r, tiles += lanes) {
        if (count > 0) widen_columns(p, tile + r, first, count, tiles);
        std::fill(tiles + count, tiles + lanes, 0.0f);
      }
    }
  }
}

void run_decode(const sparse_linear_decode_kernel& kernel, const rlcc_sparse_linear_params& p,
                const Output& output) {
  const int64_t row_floats = words_of(p.weight.columns) * kWordBits;
  const std::unique_ptr<float[]> x(new float[static_cast<size_t>(p.x_rows * row_floats)]);
  widen_tiles(p, kernel.lanes, x.get());
  const DecodeJob job{p.weight, x.get(), p.x_rows, output};
  const int64_t grain = kMinimumChunk / std::max<int64_t>(p.x_rows * row_floats, 1);
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
