// Memory between pages that cannot be touched: one byte too far is a fault, whatever kind of load reads it.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "check.h"

namespace restorelcc::test {

// `bytes` bytes right before a page without access (kEnd), or right behind one (kBegin).
class Guarded {
 public:
  enum Side { kEnd, kBegin };

  Guarded(const void* contents, size_t bytes, Side side) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t inner = (bytes + page - 1) / page * page;
    mapped_ = inner + 2 * page;
    void* const found = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(found != MAP_FAILED);
    base_ = static_cast<char*>(found);
    CHECK(inner == 0 || mprotect(base_ + page, inner, PROT_READ | PROT_WRITE) == 0);
    data_ = side == kEnd ? base_ + page + inner - bytes : base_ + page;
    if (bytes > 0 && contents != nullptr) std::memcpy(data_, contents, bytes);
  }
  ~Guarded() { munmap(base_, mapped_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  char* base_ = nullptr;
  char* data_ = nullptr;
  size_t mapped_ = 0, bytes_ = 0;
};

}  // namespace restorelcc::test
