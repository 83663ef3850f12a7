// pack, unpack and packed_validate: check the tensors, call the core.
#include <torch/csrc/stable/ops.h>

#include "ops.h"
#include "restorelcc/restorelcc.h"
#include "status_exception.h"
#include "tensor_view.h"

namespace restorelcc_ext {

std::tuple<Tensor, Tensor, Tensor> pack(const Tensor& weight) {
  const rlcc_dtype dtype = float_dtype(weight, "weight");
  if (weight.dim() != 2) {
    refuse("weight has shape ", shape_text(sizes_of(weight)), "; it must be [N, K]");
  }
  const int64_t columns = weight.size(1);
  const Rows rows = rows_of(weight, columns, "weight");
  int64_t value_count = 0;
  throw_unless_ok(rlcc_pack_count(rows.data, rows.count, columns, rows.stride, dtype, &value_count));
  const int64_t words = columns / 64 + (columns % 64 != 0);
  Tensor mask = torch::stable::new_empty(weight, {rows.count, words}, ScalarType::Long);
  Tensor values = torch::stable::new_empty(weight, {value_count});
  Tensor row_offsets = torch::stable::new_empty(weight, {rows.count + 1}, ScalarType::Long);
  throw_unless_ok(rlcc_pack(rows.data, rows.count, columns, rows.stride, dtype,
                            static_cast<uint64_t*>(mask.data_ptr()), values.data_ptr(), value_count,
                            static_cast<int64_t*>(row_offsets.data_ptr())));
  return {mask, values, row_offsets};
}

Tensor unpack(const Tensor& mask, const Tensor& values, const Tensor& row_offsets, int64_t columns) {
  const rlcc_packed_weight packed = packed_weight(mask, values, row_offsets, columns, false);
  Tensor weight = torch::stable::new_empty(values, {packed.rows, columns});
  throw_unless_ok(rlcc_unpack(&packed, weight.data_ptr(), columns));
  return weight;
}

void packed_validate(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                     int64_t columns) {
  const rlcc_packed_weight packed = packed_weight(mask, values, row_offsets, columns, false);
  throw_unless_ok(rlcc_packed_validate(&packed));
}

}  // namespace restorelcc_ext
