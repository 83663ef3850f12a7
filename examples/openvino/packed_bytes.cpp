#include "packed_bytes.h"

#include <cstring>
#include <new>

#include "refusal.h"

namespace restorelcc_openvino {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 31;  // so that no product below leaves int64

size_t element_bytes(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 4 : dtype == RLCC_I8 ? 1 : 2; }

void expect(const char* name, Bytes found, int64_t wanted, const WeightShape& shape) {
  if (found.size == static_cast<size_t>(wanted)) return;
  refuse(name, " has ", found.size, " bytes, must have ", wanted, " for a weight of ", shape.rows, " rows, ",
         shape.columns, " columns and ", shape.values, " values");
}

}  // namespace

rlcc_dtype checked_dtype(const WeightShape& shape) {
  if (shape.rows < 0 || shape.rows >= kMostRows || shape.columns < 0 || shape.columns >= kMostRows) {
    refuse("a weight of ", shape.rows, " rows and ", shape.columns, " columns; both must be in [0, ", kMostRows,
           ")");
  }
  if (shape.values == "fp32") return RLCC_F32;
  if (shape.values == "bf16") return RLCC_BF16;
  if (shape.values == "fp16") return RLCC_F16;
  if (shape.values == "int8") return RLCC_I8;
  refuse("values are \"", shape.values, "\", must be fp32, bf16, fp16 or int8");
}

PackedBytes::PackedBytes(const WeightShape& shape, const Parts& parts) {
  weight_.dtype = checked_dtype(shape);
  const int64_t words = (shape.columns + 63) / 64;
  const int64_t groups =
      weight_.dtype == RLCC_I8 ? (shape.columns + RLCC_SCALE_COLUMNS - 1) / RLCC_SCALE_COLUMNS : 0;
  expect("mask", parts.mask, shape.rows * words * 8, shape);
  expect("row_offsets", parts.row_offsets, (shape.rows + 1) * 8, shape);
  expect("scales", parts.scales, shape.rows * groups * 2, shape);
  if (parts.bias.data != nullptr) expect("bias", parts.bias, shape.rows * 4, shape);
  const size_t element = element_bytes(weight_.dtype);
  if (parts.values.size % element != 0) {
    refuse("values has ", parts.values.size, " bytes, no multiple of the ", element, " of a ", shape.values,
           " value");
  }
  weight_.rows = shape.rows;
  weight_.columns = shape.columns;
  weight_.value_count = static_cast<int64_t>(parts.values.size / element);
  weight_.mask = static_cast<const uint64_t*>(aligned(parts.mask, 8));
  weight_.values = aligned(parts.values, RLCC_VALUE_ALIGNMENT_BYTES);
  weight_.row_offsets = static_cast<const int64_t*>(aligned(parts.row_offsets, 8));
  if (weight_.dtype == RLCC_I8) weight_.scales = static_cast<const uint16_t*>(aligned(parts.scales, 2));
  bias_ = static_cast<const float*>(aligned(parts.bias, 4));
  const rlcc_status status = rlcc_packed_validate(&weight_);
  if (status != RLCC_OK) refuse(rlcc_last_error());
  weight_.trusted = 1;
}

void PackedBytes::Freed::operator()(void* memory) const {
  ::operator delete(memory, std::align_val_t{RLCC_VALUE_PADDING_BYTES});
}

const void* PackedBytes::aligned(Bytes bytes, size_t alignment) {
  if (reinterpret_cast<uintptr_t>(bytes.data) % alignment == 0) return bytes.data;
  copies_.emplace_back(::operator new(bytes.size, std::align_val_t{RLCC_VALUE_PADDING_BYTES}));
  return std::memcpy(copies_.back().get(), bytes.data, bytes.size);
}

}  // namespace restorelcc_openvino
