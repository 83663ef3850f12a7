// A packed weight (docs/format.md) and its bias out of byte arrays of known lengths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "restorelcc/restorelcc.h"

namespace restorelcc_openvino {

// Bytes in memory, little-endian as on disk, at any address.
struct Bytes {
  const void* data = nullptr;
  size_t size = 0;
};

// What the operation's attributes say of W [N, K].
struct WeightShape {
  int64_t rows = 0;     // N
  int64_t columns = 0;  // K
  std::string values;   // "fp32", "bf16", "fp16" or "int8"
};

// Throws Refusal where sizes are out of [0, 2^31) or the type is none of the four.
rlcc_dtype checked_dtype(const WeightShape& shape);

// The arrays of a weight. scales: of int8 values, else empty; bias: may be null.
struct Parts {
  Bytes mask, values, row_offsets, scales, bias;
};

// A weight whose every index has been checked, once. It never changes afterwards: any number of threads may use
// it. What is not aligned as the kernels need it is copied; all else stays where it is and is borrowed from the
// caller.
class PackedBytes {
 public:
  // Throws Refusal: a length that is not what the shape asks for, or rlcc_packed_validate()'s own sentence.
  PackedBytes(const WeightShape& shape, const Parts& parts);
  PackedBytes(const PackedBytes&) = delete;
  PackedBytes& operator=(const PackedBytes&) = delete;

  const rlcc_packed_weight& weight() const { return weight_; }
  const float* bias() const { return bias_; }  // [N]; may be null

 private:
  struct Freed {
    void operator()(void* memory) const;
  };
  const void* aligned(Bytes bytes, size_t alignment);

  std::vector<std::unique_ptr<void, Freed>> copies_;
  rlcc_packed_weight weight_{};
  const float* bias_ = nullptr;
};

}  // namespace restorelcc_openvino
