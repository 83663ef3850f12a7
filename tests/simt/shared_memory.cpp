// Compiled without sanitizers, as machine.cpp.
#include "shared_memory.h"

#include <cstring>

#if defined(SIMT_SANITIZE_ADDRESS)
extern "C" {
void __asan_poison_memory_region(const volatile void* address, size_t size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#else
static void __asan_poison_memory_region(const volatile void*, size_t) {}
static void __asan_unpoison_memory_region(const volatile void*, size_t) {}
#endif

namespace simt {
namespace {

// Static rather than from the heap: a race detector takes an allocation for a write.
constexpr size_t kBytes = 512 << 10, kAlignment = 128, kRedzone = 128, kMostArrayBytes = 48 << 10;
constexpr int kMark = 0xa5;
alignas(1024) unsigned char g_memory[kBytes];

// By hand: memset() would be seen by the sanitizers, even from here.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void fill(unsigned char* at, int byte,
                                                                        size_t count) {
  for (size_t i = 0; i < count; ++i) at[i] = static_cast<unsigned char>(byte);
}

size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

SharedMemory& shared_memory() {
  static SharedMemory the_memory;
  return the_memory;
}

void SharedMemory::start_launch(size_t dynamic_bytes) {
  regions_.clear();
  used_ = array_bytes_ = 0;
  __asan_poison_memory_region(g_memory, kBytes);
  fill(g_memory, kMark, kRedzone);
  used_ = kRedzone;
  add(dynamic_bytes, "", 0);
}

unsigned char* SharedMemory::add(size_t bytes, const char* file, int line) {
  const size_t zone = round_up(bytes) - bytes + kRedzone;
  if (used_ + bytes + zone > kBytes) return nullptr;
  unsigned char* const begin = g_memory + used_;
  used_ += bytes + zone;
  regions_.push_back({begin, bytes, file, line});
  fill(begin, 0xff, bytes);
  fill(begin + bytes, kMark, zone);
  __asan_unpoison_memory_region(begin, bytes);
  return begin;
}

void SharedMemory::start_block() {
  for (const Region& region : regions_) fill(region.begin, 0xff, region.bytes);
}

void SharedMemory::end_launch() { __asan_unpoison_memory_region(g_memory, kBytes); }

bool SharedMemory::redzones_intact() const {
  const unsigned char* at = g_memory;
  for (const Region& region : regions_) {
    for (; at < region.begin; ++at) {
      if (*at != kMark) return false;
    }
    at = region.begin + region.bytes;
  }
  for (; at < g_memory + used_; ++at) {
    if (*at != kMark) return false;
  }
  return true;
}

void* SharedMemory::array(const char* file, int line, size_t bytes) {
  for (const Region& region : regions_) {
    if (region.line == line && (region.file == file || std::strcmp(region.file, file) == 0)) {
      return region.bytes == bytes ? region.begin : nullptr;
    }
  }
  array_bytes_ += bytes;
  return array_bytes_ <= kMostArrayBytes ? add(bytes, file, line) : nullptr;
}

bool SharedMemory::holds(const void* pointer, size_t bytes) const {
  const unsigned char* const begin = static_cast<const unsigned char*>(pointer);
  for (const Region& region : regions_) {
    if (begin >= region.begin && begin + bytes <= region.begin + region.bytes) return true;
  }
  return false;
}

}  // namespace simt
