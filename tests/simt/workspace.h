// 16-byte aligned scratch of exactly so many bytes, all of it NaN; and when few cases are enough.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace restorelcc::test {

class Workspace {
 public:
  explicit Workspace(size_t bytes) : bytes_(bytes), data_(std::aligned_alloc(16, (bytes + 15) / 16 * 16)) {
    if (bytes > 0) std::memset(data_, 0xff, bytes);
  }
  ~Workspace() { std::free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* get() { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

// ThreadSanitizer finds a race whatever the values and the order, and takes ten times as long.
inline bool looks_for_races() { return std::strstr(RLCC_SANITIZERS, "thread") != nullptr; }

}  // namespace restorelcc::test
