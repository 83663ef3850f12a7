// Zeroed memory that starts at a cache line.
#pragma once

#include <cstdint>
#include <vector>

#include "elements.h"

namespace decode {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes) : storage_(static_cast<size_t>(bytes) + 63), bytes_(bytes) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(storage_.data());
    shift_ = (64 - address % 64) % 64;
  }
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;
  Buffer(int64_t elements, rlcc_dtype dtype) : Buffer(elements * element_bytes(dtype)) {}

  char* bytes() { return storage_.data() + shift_; }
  float* floats() { return reinterpret_cast<float*>(bytes()); }
  int64_t size() const { return bytes_; }

 private:
  std::vector<char> storage_;  // moving it leaves the bytes where they are
  size_t shift_ = 0;
  int64_t bytes_ = 0;
};

}  // namespace decode
