// CHECK(condition) << "context": counts, reports and goes on. CHECK_STATUS compares a status and shows
// the library's sentence.
#pragma once

#include <atomic>
#include <cstdio>
#include <sstream>
#include <string>

#include "restorelcc/restorelcc.h"

namespace restorelcc::test {

struct Tally {
  std::atomic<long> checks{0}, failures{0}, skipped{0};
};

inline Tally& tally() {
  static Tally the_tally;
  return the_tally;
}

inline bool passes(bool condition) {
  tally().checks.fetch_add(1, std::memory_order_relaxed);
  return condition;
}

// Made only where a check fails: the checks of every element are many millions.
class Failure {
 public:
  Failure(const char* file, int line, const char* text) {
    stream_ << file << ":" << line << ": " << text << " ";
  }
  ~Failure() {
    if (++tally().failures <= 40) std::fprintf(stderr, "FAILED %s\n", stream_.str().c_str());
  }
  Failure(const Failure&) = delete;
  Failure& operator=(const Failure&) = delete;
  template <class Part>
  Failure& operator<<(const Part& part) {
    stream_ << part;
    return *this;
  }

 private:
  std::ostringstream stream_;
};

inline void skip(const std::string& what) {
  ++tally().skipped;
  std::printf("skipped: %s\n", what.c_str());
}

// The exit status of main().
inline int report(const char* name) {
  std::printf("%s: %ld checks, %ld failed, %ld skipped\n", name, tally().checks.load(), tally().failures.load(),
              tally().skipped.load());
  return tally().failures == 0 ? 0 : 1;
}

}  // namespace restorelcc::test

// The switch keeps a following `else` from belonging to this `if`.
#define CHECK(condition)                         \
  switch (0)                                     \
  case 0:                                        \
  default:                                       \
    if (::restorelcc::test::passes(condition)) { \
    } else                                       \
      ::restorelcc::test::Failure(__FILE__, __LINE__, #condition)
#define CHECK_STATUS(call, expected)                                                           \
  do {                                                                                         \
    const rlcc_status rlcc_got = (call);                                                       \
    CHECK(rlcc_got == (expected)) << #call << " is " << rlcc_got << ": " << rlcc_last_error(); \
  } while (0)
