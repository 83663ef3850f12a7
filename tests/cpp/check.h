// CHECK(condition) << "context": counts, reports and goes on. CHECK_STATUS compares a status and shows
// the library's sentence.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

#include "restorelcc/restorelcc.h"

namespace restorelcc::test {

struct Tally {
  long checks = 0, failures = 0, skipped = 0;
};

inline Tally& tally() {
  static Tally the_tally;
  return the_tally;
}

class Check {
 public:
  Check(bool passed, const char* file, int line, const char* text) : passed_(passed) {
    ++tally().checks;
    if (!passed_) stream_ << file << ":" << line << ": " << text << " ";
  }
  ~Check() {
    if (passed_) return;
    if (++tally().failures <= 40) std::fprintf(stderr, "FAILED %s\n", stream_.str().c_str());
  }
  Check(const Check&) = delete;
  Check& operator=(const Check&) = delete;
  template <class Part>
  Check& operator<<(const Part& part) {
    if (!passed_) stream_ << part;
    return *this;
  }

 private:
  bool passed_;
  std::ostringstream stream_;
};

inline void skip(const std::string& what) {
  ++tally().skipped;
  std::printf("skipped: %s\n", what.c_str());
}

// The exit status of main().
inline int report(const char* name) {
  std::printf("%s: %ld checks, %ld failed, %ld skipped\n", name, tally().checks, tally().failures,
              tally().skipped);
  return tally().failures == 0 ? 0 : 1;
}

}  // namespace restorelcc::test

#define CHECK(condition) ::restorelcc::test::Check((condition), __FILE__, __LINE__, #condition)
#define CHECK_STATUS(call, expected)                                                           \
  do {                                                                                         \
    const rlcc_status rlcc_got = (call);                                                       \
    CHECK(rlcc_got == (expected)) << #call << " is " << rlcc_got << ": " << rlcc_last_error(); \
  } while (0)
