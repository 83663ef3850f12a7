// Scratch that starts at a cache line.
#pragma once

#include <cstdint>
#include <memory>

namespace restorelcc {

// Starts at a multiple of 64 bytes. Not initialised.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t bytes) : storage_(new char[static_cast<size_t>(bytes) + 63]) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(storage_.get());
    first_ = storage_.get() + (63 - (address + 63) % 64);
  }
  char* get() const { return first_; }
  float* floats() const { return reinterpret_cast<float*>(first_); }

 private:
  std::unique_ptr<char[]> storage_;
  char* first_;
};

}  // namespace restorelcc
