#include "huge_pages.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "refusal.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace decode {

HugePages::HugePages(int64_t bytes) : size_(bytes) {
#if defined(__linux__)
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  const std::string enabled{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (enabled.find("[madvise]") != std::string::npos || enabled.find("[always]") != std::string::npos) {
    void* const found = mmap(nullptr, static_cast<size_t>(size_), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) throw std::runtime_error("there is no memory for the weights in huge pages");
    begin_ = static_cast<char*>(found);
    madvise(found, static_cast<size_t>(size_), MADV_HUGEPAGE);
    return;
  }
#endif
  refuse("--huge-pages needs Linux with transparent huge pages at madvise or always");
}

HugePages::~HugePages() {
#if defined(__linux__)
  munmap(begin_, static_cast<size_t>(size_));
#endif
}

void* HugePages::copy(const void* data, int64_t bytes) {
  const auto known = copies_.find({data, bytes});
  if (known != copies_.end()) return known->second;
  const int64_t end = used_ + (bytes + 63) / 64 * 64;
  if (end > size_) throw std::runtime_error("the weights do not fit into the huge pages reserved for them");
  void* const to = begin_ + used_;
  if (bytes > 0) std::memcpy(to, data, static_cast<size_t>(bytes));
  used_ = end;
  copies_[{data, bytes}] = to;
  return to;
}

}  // namespace decode
