// Copies of weights in pages of 2 MiB, for a model of which every token reads all.
//
// A mapped file has pages of 4 KiB, and each of them costs a walk through the page tables, under a hypervisor
// through two of them. What that is worth differs between machines: docs/performance.md.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

namespace decode {

class HugePages {
 public:
  // Room for that many bytes, which are taken when they are written. Throws Refusal where the system gives no
  // huge pages to who asks for them.
  explicit HugePages(int64_t bytes);
  ~HugePages();
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // The same bytes, 64-byte aligned; the same place for the same bytes. Throws std::runtime_error without
  // room.
  void* copy(const void* data, int64_t bytes);

 private:
  char* begin_ = nullptr;
  int64_t size_, used_ = 0;
  std::map<std::pair<const void*, int64_t>, void*> copies_;  // of (place, bytes)
};

}  // namespace decode
