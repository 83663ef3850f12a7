// pack, unpack and packed_validate: check the tensors, call the core.
#include <torch/csrc/stable/ops.h>

#include "ops.h"
#include "place.h"
#include "restorelcc/restorelcc.h"
#include "tensor_view.h"

namespace restorelcc_ext {

std::tuple<Tensor, Tensor, Tensor, Tensor> pack(const Tensor& weight, bool int8) {
  require_cpu({{weight, "weight"}});
  const rlcc_dtype dtype = float_dtype(weight, "weight"), values_dtype = int8 ? RLCC_I8 : dtype;
  if (weight.dim() != 2) {
    refuse("weight has shape ", shape_text(weight.sizes()), "; it must be [N, K]");
  }
  const int64_t columns = weight.size(1);
  const Rows rows = rows_of(weight, columns, "weight");
  int64_t value_count = 0;
  throw_unless_ok(
      rlcc_pack_count(rows.data, rows.count, columns, rows.stride, dtype, values_dtype, &value_count));
  const int64_t words = columns / 64 + (columns % 64 != 0);
  Tensor mask = torch::stable::new_empty(weight, {rows.count, words}, ScalarType::Long);
  Tensor values =
      torch::stable::new_empty(weight, {value_count}, int8 ? ScalarType::Char : weight.scalar_type());
  Tensor row_offsets = torch::stable::new_empty(weight, {rows.count + 1}, ScalarType::Long);
  const std::vector<int64_t> scales_shape =
      int8 ? scales_shape_of(rows.count, columns) : std::vector<int64_t>{0};
  Tensor scales = torch::stable::new_empty(weight, scales_shape, ScalarType::BFloat16);
  throw_unless_ok(rlcc_pack(rows.data, rows.count, columns, rows.stride, dtype, values_dtype,
                            static_cast<uint64_t*>(mask.data_ptr()), values.data_ptr(), value_count,
                            static_cast<int64_t*>(row_offsets.data_ptr()),
                            int8 ? static_cast<uint16_t*>(scales.data_ptr()) : nullptr));
  return {mask, values, row_offsets, scales};
}

Tensor unpack(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
              const std::optional<Tensor>& scales, int64_t columns) {
  require_cpu({{mask, "mask"}, {values, "values"}, {row_offsets, "row_offsets"}, {scales, "scales"}});
  const rlcc_packed_weight packed = packed_weight(mask, values, row_offsets, scales, columns, false);
  Tensor weight = torch::stable::new_empty(values, {packed.rows, columns},
                                           packed.dtype == RLCC_I8 ? ScalarType::Float : values.scalar_type());
  throw_unless_ok(rlcc_unpack(&packed, weight.data_ptr(), columns));
  return weight;
}

void packed_validate(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                     const std::optional<Tensor>& scales, int64_t columns) {
  require_cpu({{mask, "mask"}, {values, "values"}, {row_offsets, "row_offsets"}, {scales, "scales"}});
  const rlcc_packed_weight packed = packed_weight(mask, values, row_offsets, scales, columns, false);
  throw_unless_ok(rlcc_packed_validate(&packed));
}

}  // namespace restorelcc_ext
