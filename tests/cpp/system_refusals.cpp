#include "system_refusals.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>

namespace restorelcc::test {
namespace {

std::atomic<int> g_allowed{-1}, g_refused{0};
std::atomic<bool> g_no_mappings{false};

// The function of this name that would have been called without the one below.
template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

void allow_threads(int more) {
  g_refused = 0;
  g_allowed = more;
}

int refused_threads() { return g_refused; }

void refuse_mappings(bool refuse) { g_no_mappings = refuse; }

}  // namespace restorelcc::test

using namespace restorelcc::test;

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                              void* argument) {
  static auto* const create = next<decltype(pthread_create)>("pthread_create");
  if (g_allowed >= 0 && g_allowed.fetch_sub(1) <= 0) {
    g_allowed = 0;
    ++g_refused;
    return EAGAIN;
  }
  return create(thread, attributes, start, argument);
}

extern "C" void* mmap(void* at, size_t bytes, int protection, int flags, int file, off_t offset) {
  static auto* const map = next<decltype(mmap)>("mmap");
  if (g_no_mappings && file >= 0) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return map(at, bytes, protection, flags, file, offset);
}
