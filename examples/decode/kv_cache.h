// Keys and values of all layers and positions, allocated whole before the first token.
#pragma once

#include "buffer.h"
#include "loops.h"

namespace decode {

class KvCache {
 public:
  KvCache(int64_t layers, int64_t kv_heads, HeadShape shape, int64_t positions, rlcc_dtype dtype)
      : kv_heads_(kv_heads),
        shape_(shape),
        capacity_((positions + kBlock - 1) / kBlock * kBlock),
        dtype_(dtype) {
    keys_ = Buffer(layers * kv_heads * capacity_ * shape.dim, dtype);
    values_ = Buffer(layers * kv_heads * capacity_ * shape.padded_dim, dtype);
  }

  HeadCache head(int64_t layer, int64_t kv_head) {
    const int64_t index = layer * kv_heads_ + kv_head, bytes = capacity_ * element_bytes(dtype_);
    return {keys_.bytes() + index * bytes * shape_.dim, values_.bytes() + index * bytes * shape_.padded_dim};
  }
  HeadShape shape() const { return shape_; }
  rlcc_dtype dtype() const { return dtype_; }
  int64_t bytes() const { return keys_.size() + values_.size(); }

 private:
  int64_t kv_heads_;
  HeadShape shape_;
  int64_t capacity_;  // positions
  rlcc_dtype dtype_;
  Buffer keys_, values_;
};

}  // namespace decode
