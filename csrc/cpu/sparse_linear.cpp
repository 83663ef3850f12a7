#include <algorithm>
#include <cstring>

#include "core/aligned_bytes.h"
#include "core/parallel.h"
#include "cpu/ops.h"
#include "cpu/panel_runs.h"
#include "cpu/registry.h"
#include "cpu/spmm_runs.h"
#include "sparse/layout.h"

namespace restorelcc::cpu {
namespace {

// Outputs that a decode kernel expands and multiplies side by side (kBlockOutputs): work is split at multiples
// of it, so that only the last block is smaller. The bits do not depend on it.
constexpr int64_t kOutputsTogether = 4;

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

// From so many rows on, up to so large a share of survivors, skipping zeros beats the panels, which multiply
// them: measured with AVX2 (docs/performance.md), not with wider vectors.
constexpr int64_t kSkippingLeastRows = 24;
constexpr double kSkippingMostSurvivors = 0.62;

bool skipping_pays(const rlcc_packed_weight& weight, int64_t rows, Isa isa) {
  const double weights = static_cast<double>(weight.rows) * static_cast<double>(weight.columns);
  return isa <= Isa::kAvx2 && rows >= kSkippingLeastRows &&
         static_cast<double>(weight.value_count) <= kSkippingMostSurvivors * weights;
}

// A [rows, depth] by columns.
ColumnTiles column_tiles(const void* a, int64_t stride, rlcc_dtype dtype, int64_t rows, int64_t depth) {
  return {a, stride, dtype, rows, depth, 0, nullptr};
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
  // One row: a dot product of pairs is as slow there as in panels, and takes the port that expands besides.
  const bool pairs = p.weight.dtype == RLCC_BF16 && p.x_dtype == RLCC_BF16;
  const Isa decode_isa = pairs && p.x_rows == 1 ? isa_for_bf16_pairs(isa) : isa;
  const sparse_linear_decode_kernel& decode = sparse_linear_decode(p.weight.dtype, decode_isa);
  const bool rounds_x = p.weight.dtype == RLCC_I8;  // the decode kernels of int8 values do
  if (p.x_rows <= decode.max_rows && !(rounds_x && p.exact_x != 0)) return run_decode(decode, p, output);
  if (skipping_pays(p.weight, p.x_rows, isa)) {
    const ColumnTiles x = column_tiles(p.x, p.x_stride, p.x_dtype, p.x_rows, p.weight.columns);
    if (run_spmm(sparse_linear_spmm(p.weight.dtype, isa), {p.weight, x, output}, p.parallel)) return;
  }
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
  if (p.weight.dtype == RLCC_F32 && skipping_pays(p.weight, p.rows, isa)) {
    const ColumnTiles grad_y = column_tiles(p.grad_y, p.grad_y_stride, p.dtype, p.rows, p.weight.rows);
    const ColumnTiles x = column_tiles(p.x, p.x_stride, p.dtype, p.rows, p.weight.columns);
    return run_sddmm(sparse_linear_grad_values_sddmm(RLCC_F32, isa),
                     {p.weight, grad_y, x, static_cast<float*>(p.grad_values), false}, p.parallel);
  }
  PanelJob job =
      panel_job(p.weight, p.grad_y, 1, p.grad_y_stride, p.dtype, p.weight.rows, p.rows, p.weight.columns);
  job.output.y = p.grad_values;
  job.by_mask = true;
  job.b = p.x;
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
