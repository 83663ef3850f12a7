// The operands: one pruned weight in every dtype, copied as often as it takes to be cold at each call.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "restorelcc/restorelcc.h"
#include "shapes.h"

namespace restorelcc::bench {

int64_t bytes_of(rlcc_dtype dtype);
const char* name_of(rlcc_dtype dtype);  // "fp32", "bf16", "fp16", "int8"
// Of x, y and the gradients beside values of this dtype: the same, and bf16 beside int8.
rlcc_dtype activation_of(rlcc_dtype values);
double element(const void* data, rlcc_dtype dtype, int64_t index);
void set_element(void* data, rlcc_dtype dtype, int64_t index, float value);  // exact: see random_value

// xorshift64*: a bench makes hundreds of millions of numbers.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  uint64_t below(uint64_t limit) { return (next() >> 33) % limit; }

 private:
  uint64_t state_;
};

// +-(128..255) / 128 * 2^-(0..3): eight significant bits, so the same number in fp32, bf16 and fp16.
float random_value(Random& random);

// [rows, columns] of dtype, contiguous. x holds integers / 64 in [-127, 127] whose largest in every 128 columns
// is 127: what rounding it to 8 bits leaves unchanged, so that --refcheck of int8 is as tight as of the others.
std::vector<char> random_x(int64_t rows, int64_t columns, rlcc_dtype dtype, Random& random);

// Memory of `copies` equal items, one behind the other in one allocation, each at a multiple of 512 bytes.
class Arena {
 public:
  static inline bool huge_pages = false;  // asked for, of those made from now on
  Arena(int64_t item_bytes, int64_t at_least_bytes);
  int64_t copies() const { return copies_; }
  char* item(int64_t copy) const { return first_ + copy * stride_; }
  const char* begin() const { return first_; }
  int64_t bytes() const { return copies_ * stride_; }
  // Item 0 is filled; now all are.
  void replicate();

 private:
  int64_t item_bytes_, stride_, copies_;
  struct Free {
    void operator()(char* memory) const;
  };
  std::unique_ptr<char, Free> storage_;
  char* first_;
};

// W [N, K] in fp32, pruned.
std::vector<float> pruned_weight(const Shape& shape, const std::string& pattern, Random& random);

// The packed weight, `copies` times: every copy has mask, values, offsets and scales of its own.
class PackedCopies {
 public:
  PackedCopies(const std::vector<float>& weight, const Shape& shape, rlcc_dtype values, int64_t rotate_bytes);
  const rlcc_packed_weight& copy(int64_t index) const { return copies_[static_cast<size_t>(index)]; }
  int64_t count() const { return arena_->copies(); }
  const Arena& arena() const { return *arena_; }
  int64_t bytes() const { return bytes_; }  // that a product reads: mask, values, offsets, scales
  int64_t survivors() const { return survivors_; }

 private:
  std::unique_ptr<Arena> arena_;
  std::vector<rlcc_packed_weight> copies_;
  int64_t bytes_ = 0, survivors_ = 0;
};

// The dense weight with its zeros: fp32, bf16, or the int8 values of `packed` with the same scales.
class DenseCopies {
 public:
  DenseCopies(const std::vector<float>& weight, const PackedCopies& packed, int64_t rotate_bytes);
  const char* values(int64_t copy) const { return arena_->item(copy); }
  const uint16_t* scales(int64_t copy) const {
    return reinterpret_cast<const uint16_t*>(arena_->item(copy) + scales_at_);
  }
  int64_t count() const { return arena_->copies(); }
  int64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<Arena> arena_;
  int64_t scales_at_ = 0, bytes_ = 0;
};

}  // namespace restorelcc::bench
