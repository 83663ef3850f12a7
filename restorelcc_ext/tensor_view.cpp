#include "tensor_view.h"

#include <torch/csrc/stable/ops.h>

#include <cstring>

namespace restorelcc_ext {

std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

std::string shape_text(Shape sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i == 0 ? "" : ", ") << sizes[i];
  text << ']';
  return text.str();
}

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Double: return "float64";
    case ScalarType::Char: return "int8";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return toString(dtype);
  }
}

void require_dtype(const Tensor& tensor, ScalarType dtype, const char* name) {
  if (tensor.scalar_type() != dtype) {
    refuse(name, " has dtype ", dtype_name(tensor.scalar_type()), "; it must be ", dtype_name(dtype));
  }
}

void require_shape(const Tensor& tensor, Shape shape, const char* name) {
  const Shape found = tensor.sizes();
  if (!found.equals(shape)) {
    refuse(name, " has shape ", shape_text(found), "; it must be ", shape_text(shape));
  }
}

void require_contiguous(const Tensor& tensor, const char* name) {
  if (!tensor.is_contiguous()) refuse(name, " is not contiguous; pass .contiguous()");
}

rlcc_dtype float_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return RLCC_F32;
    case ScalarType::BFloat16: return RLCC_BF16;
    case ScalarType::Half: return RLCC_F16;
    default:
      refuse(name, " has dtype ", dtype_name(tensor.scalar_type()),
             "; it must be float32, bfloat16 or float16");
  }
}

namespace {

// The one stride that walks all rows of [..., columns], or -1 where there is none.
int64_t collapsed_row_stride(const Tensor& tensor, int64_t columns) {
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  const int64_t last = tensor.dim() - 1;
  if (columns > 1 && strides[last] != 1) return -1;
  int64_t row_stride = -1;  // of the innermost leading dimension that is longer than 1
  int64_t expected = -1;    // what the next dimension outwards must have
  for (int64_t d = last - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (row_stride == -1) {
      row_stride = strides[d];
    } else if (strides[d] != expected) {
      return -1;
    }
    expected = strides[d] * sizes[d];
  }
  if (row_stride == -1) return columns;  // at most one row
  return row_stride >= columns ? row_stride : -1;
}

}  // namespace

Rows rows_of(const Tensor& tensor, int64_t columns, const char* name) {
  if (tensor.dim() < 1 || tensor.size(tensor.dim() - 1) != columns) {
    refuse(name, " has shape ", shape_text(tensor.sizes()), "; its last dimension must be ", columns);
  }
  int64_t count = 1;
  for (int64_t d = 0; d + 1 < tensor.dim(); ++d) count *= tensor.size(d);
  const int64_t stride = count == 0 ? columns : collapsed_row_stride(tensor, columns);
  Tensor owner = stride == -1 ? torch::stable::contiguous(tensor) : tensor;
  return Rows{owner, owner.data_ptr(), count, stride == -1 ? columns : stride};
}

std::vector<int64_t> with_columns(std::vector<int64_t> row_shape, int64_t columns) {
  row_shape.back() = columns;
  return row_shape;
}

std::vector<int64_t> scales_shape_of(int64_t rows, int64_t columns) {
  return {rows, columns / RLCC_SCALE_COLUMNS + (columns % RLCC_SCALE_COLUMNS != 0)};
}

rlcc_packed_weight packed_weight(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                                 const std::optional<Tensor>& scales, int64_t columns, bool trusted) {
  require_dtype(mask, ScalarType::Long, "mask");
  require_dtype(row_offsets, ScalarType::Long, "row_offsets");
  rlcc_packed_weight packed{};
  packed.dtype = values.scalar_type() == ScalarType::Char ? RLCC_I8 : float_dtype(values, "values");
  if (columns < 0) refuse("columns is ", columns, "; it must be >= 0");
  if (mask.dim() != 2) refuse("mask has shape ", shape_text(mask.sizes()), "; it must be [N, words]");
  packed.rows = mask.size(0);
  packed.columns = columns;
  require_shape(mask, {packed.rows, columns / 64 + (columns % 64 != 0)}, "mask");
  require_shape(row_offsets, {packed.rows + 1}, "row_offsets");
  if (values.dim() != 1)
    refuse("values has shape ", shape_text(values.sizes()), "; it must be [", values.numel(), "]");
  require_contiguous(mask, "mask");
  require_contiguous(row_offsets, "row_offsets");
  require_contiguous(values, "values");
  if (scales) {
    require_dtype(*scales, ScalarType::BFloat16, "scales");
    require_shape(*scales, scales_shape_of(packed.rows, columns), "scales");
    require_contiguous(*scales, "scales");
    packed.scales = static_cast<const uint16_t*>(scales->data_ptr());
  }
  if (packed.dtype == RLCC_I8 && !scales) refuse("values are int8, which need their scales");
  if (packed.dtype != RLCC_I8 && scales) {
    refuse("scales are set, but values are ", dtype_name(values.scalar_type()),
           "; only int8 values have scales");
  }
  packed.mask = static_cast<const uint64_t*>(mask.data_ptr());
  packed.values = values.data_ptr();
  packed.value_count = values.numel();
  packed.row_offsets = static_cast<const int64_t*>(row_offsets.data_ptr());
  packed.trusted = trusted ? 1 : 0;
  return packed;
}

Tensor contiguous_of(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

Tensor as_float32(const Tensor& tensor, Shape shape, const char* name) {
  const rlcc_dtype dtype = float_dtype(tensor, name);
  require_shape(tensor, shape, name);
  return contiguous_of(dtype == RLCC_F32 ? tensor : torch::stable::to(tensor, ScalarType::Float));
}

namespace {

Tensor contiguous_row(const Tensor& tensor, int64_t count, const char* name) {
  const rlcc_dtype dtype = float_dtype(tensor, name);
  require_shape(tensor, {count}, name);
  const bool here =
      dtype == RLCC_F32 || (dtype == RLCC_BF16 && tensor.is_cpu());  // taken, or widened, as it is
  return contiguous_of(here ? tensor : torch::stable::to(tensor, ScalarType::Float));
}

}  // namespace

Float32Row::Float32Row(const Tensor& tensor, int64_t count, const char* name)
    : owner_(contiguous_row(tensor, count, name)) {
  if (owner_.scalar_type() != ScalarType::BFloat16) return;
  const auto* narrow = static_cast<const uint16_t*>(owner_.data_ptr());
  widened_.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(narrow[i]) << 16;
    std::memcpy(&widened_[i], &bits, sizeof bits);
  }
}

}  // namespace restorelcc_ext
