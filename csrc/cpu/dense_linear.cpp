#include <algorithm>

#include "core/aligned_bytes.h"
#include "core/parallel.h"
#include "cpu/ops.h"
#include "cpu/panel_runs.h"
#include "cpu/registry.h"

namespace restorelcc::cpu {
namespace {

// Outputs that a decode kernel multiplies side by side, at most: work is split at multiples of it.
constexpr int64_t kOutputsTogether = 4;

Output output_of(const rlcc_dense_linear_params& p) {
  Output output{};
  output.columns = p.rows;
  output.bias = p.bias;
  output.residual = p.residual;
  output.residual_stride = p.residual_stride;
  output.y = p.y;
  output.y_stride = p.y_stride;
  output.dtype = p.y_dtype;
  return output;
}

void run_decode(const dense_linear_decode_kernel& kernel, const rlcc_dense_linear_params& p) {
  const DenseDecodeJob job{{p.weight, p.weight_stride, nullptr, p.rows, p.columns},
                           p.x,
                           p.x_stride,
                           p.x_dtype,
                           p.x_rows,
                           output_of(p)};
  const AlignedBytes x(kernel.x_bytes(job));
  if (p.columns > 0) kernel.pack_x(job, x.get());  // else x may be null
  const int64_t work = kOutputsTogether * p.x_rows * p.columns;
  const int64_t grain = kMinimumChunk / std::max<int64_t>(work, 1);
  parallel_for(p.parallel, divide_up(p.rows, kOutputsTogether), grain, [&](int64_t begin, int64_t end) {
    kernel.run(job, x.get(), begin * kOutputsTogether, std::min(end * kOutputsTogether, p.rows));
  });
}

}  // namespace

void dense_linear(const rlcc_dense_linear_params& p, Isa isa) {
  if (p.x_rows == 0 || p.rows == 0) return;
  const dense_linear_decode_kernel& decode = dense_linear_decode(p.weight_dtype, isa);
  if (p.x_rows <= decode.max_rows) return run_decode(decode, p);
  PanelJob job{};
  job.a = p.x;
  job.a_stride = p.x_stride;
  job.a_depth_stride = 1;
  job.a_dtype = p.x_dtype;
  job.rows = p.x_rows;
  job.depth = p.columns;
  job.columns = p.rows;
  job.b = p.weight;
  job.b_stride = p.weight_stride;
  job.output = output_of(p);
  const bool pairs = p.weight_dtype == RLCC_BF16 && p.x_dtype == RLCC_BF16;
  run_panels(dense_linear_panel(p.weight_dtype, pairs ? isa_for_bf16_pairs(isa) : isa), job, p.parallel);
}

}  // namespace restorelcc::cpu
