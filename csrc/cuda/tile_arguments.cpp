#include "cuda/tile_arguments.h"

#include "cuda/plan.h"
#include "sparse/layout.h"

namespace restorelcc::cuda {
namespace {

int copy_bytes_of(const void* data, int64_t rows, int64_t stride) {
  const uintptr_t bits =
      reinterpret_cast<uintptr_t>(data) | (rows > 1 ? static_cast<uintptr_t>(stride) * 2 : 0);
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 2;
}

Output output(void* y, int64_t stride, int64_t rows, int64_t columns, rlcc_dtype dtype, float* partials) {
  Output o{};
  o.y = y;
  o.stride = stride;
  o.dtype = dtype;
  o.rows = static_cast<int>(rows);
  o.columns = static_cast<int>(columns);
  o.wide = copy_bytes_of(y, rows, stride) == 16;
  o.partials = partials;
  return o;
}

}  // namespace

Operand operand_of(const void* data, int64_t rows, int64_t columns, int64_t stride, rlcc_dtype dtype) {
  // Of one row the stride may be anything; addresses of rows behind it are formed, not read, and must be as
  // aligned.
  if (rows <= 1) stride = 0;
  return {data, stride, static_cast<int>(rows), static_cast<int>(columns), copy_bytes_of(data, rows, stride),
          dtype};
}

Weight weight_of(const rlcc_packed_weight& weight, const uint32_t* index) {
  Weight w{};
  w.mask = reinterpret_cast<const uint32_t*>(weight.mask);
  w.values = weight.values;
  w.row_offsets = weight.row_offsets;
  w.scales = weight.scales;
  w.words = 2 * words_of(weight.columns);
  w.scale_groups = scale_groups_of(weight.columns);
  w.rows = static_cast<int>(weight.rows);
  w.columns = static_cast<int>(weight.columns);
  w.wide_mask = w.words % 4 == 0 && reinterpret_cast<uintptr_t>(weight.mask) % 16 == 0;
  w.dtype = weight.dtype;
  w.index = index;
  return w;
}

Output output_of(const rlcc_sparse_linear_params& p, float* partials) {
  Output o = output(p.y, p.y_stride, p.x_rows, p.weight.rows, p.x_dtype, partials);
  o.residual = p.residual;
  o.residual_stride = p.residual_stride;
  o.wide = o.wide && (p.residual == nullptr || copy_bytes_of(p.residual, p.x_rows, p.residual_stride) == 16);
  o.comp_rows = p.comp_rows;
  o.comp_index = p.comp_index;
  o.groups = p.groups;
  o.bias = p.bias;
  return o;
}

Output output_of(const rlcc_sparse_linear_grad_x_params& p, float* partials) {
  return output(p.grad_x, p.grad_x_stride, p.y_rows, p.weight.columns, p.dtype, partials);
}

}  // namespace restorelcc::cuda
