// From torch::stable::Tensor to the PODs of the core: dtype, rank and stride checks, each with a sentence (of
// devices: place.h). What the core checks itself (ranges, the packed format) is not checked twice.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/HeaderOnlyArrayRef.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "restorelcc/params.h"

namespace restorelcc_ext {

using torch::headeronly::ScalarType;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;  // borrowed: no allocation for what is only compared
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::invalid_argument(sentence.str());
}

std::vector<int64_t> sizes_of(const Tensor& tensor);
std::string shape_text(Shape sizes);       // "[2, 3]"
const char* dtype_name(ScalarType dtype);  // "float32", as torch's users write it

void require_dtype(const Tensor& tensor, ScalarType dtype, const char* name);
void require_shape(const Tensor& tensor, Shape shape, const char* name);
void require_contiguous(const Tensor& tensor, const char* name);

// float32, bfloat16 or float16; anything else is refused.
rlcc_dtype float_dtype(const Tensor& tensor, const char* name);

// [..., columns] seen as rows of unit column stride: the tensor itself where its leading
// dimensions collapse to one stride >= columns, else a contiguous copy. `owner` keeps it alive.
struct Rows {
  Tensor owner;
  void* data;
  int64_t count;   // product of the leading dimensions
  int64_t stride;  // elements
};
Rows rows_of(const Tensor& tensor, int64_t columns, const char* name);

// `row_shape` with its last dimension replaced.
std::vector<int64_t> with_columns(std::vector<int64_t> row_shape, int64_t columns);

// Borrows the tensors: they must outlive the result.
rlcc_packed_weight packed_weight(const Tensor& mask, const Tensor& values, const Tensor& row_offsets,
                                 const std::optional<Tensor>& scales, int64_t columns, bool trusted);
std::vector<int64_t> scales_shape_of(int64_t rows, int64_t columns);

// One row [count] as float32: the tensor's own memory, or what a narrower type was widened to.
class Float32Row {
 public:
  Float32Row(const Tensor& tensor, int64_t count, const char* name);
  const float* data() const {
    return widened_.empty() ? static_cast<const float*>(owner_.data_ptr()) : widened_.data();
  }

 private:
  Tensor owner_;
  std::vector<float>
      widened_;  // of bfloat16 on the CPU: torch's own conversion takes 6 us, as long as a small product
};

// The tensor where it is contiguous, which is asked without torch's dispatcher (1 us, a tenth of a small
// product).
Tensor contiguous_of(const Tensor& tensor);

// A narrower floating point type widened to float32, contiguous, of this shape.
Tensor as_float32(const Tensor& tensor, Shape shape, const char* name);

}  // namespace restorelcc_ext
