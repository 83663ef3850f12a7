// One call with each of its allocations failing once, and with all after it: it says RLCC_OUT_OF_MEMORY, leaves
// its outputs as they were, loses nothing, and works the next time.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "allocations.h"
#include "check.h"

namespace restorelcc::test {

struct Call {
  std::string name;
  std::function<rlcc_status()> run;
  std::vector<std::pair<void*, size_t>> outputs;
  rlcc_status expected = RLCC_OK;
  std::function<void()> before = [] {};  // of each attempt, and after it
};

constexpr char kUntouched = 0x3b;  // of a float or double: small, and a number

inline void fill(const Call& call) {
  for (const auto& [data, bytes] : call.outputs) {
    if (bytes > 0) std::memset(data, kUntouched, bytes);
  }
}

inline std::string contents(const Call& call) {
  std::string all;
  for (const auto& [data, bytes] : call.outputs) all.append(static_cast<const char*>(data), bytes);
  return all;
}

struct Attempt {
  rlcc_status status = RLCC_INTERNAL;
  bool failed = false, said = false;
};

// In a thread of its own, whose last error goes with it. first_failure < 0: nothing fails.
inline Attempt attempt(const Call& call, long first_failure, bool all_after) {
  Attempt result;
  call.before();
  std::thread([&] {
    arm(first_failure, all_after);
    result.status = call.run();
    result.failed = disarm();
    result.said = *rlcc_last_error() != '\0';
  }).join();
  call.before();
  return result;
}

inline void run(const Call& call) {
  fill(call);
  CHECK(attempt(call, -1, false).status == call.expected) << call.name;
  const std::string good = contents(call);
  long failures = 0;
  for (const bool all_after : {false, true}) {
    for (long number = 0;; ++number) {
      fill(call);
      const std::string untouched = contents(call);
      const long live = live_allocations();
      const Attempt result = attempt(call, number, all_after);
      const long lost = live_allocations() - live;
      const std::string now = contents(call);
      CHECK(lost == 0) << call.name << " loses " << lost << " allocations where " << number << " fails";
      if (result.failed) {
        ++failures;
        CHECK(result.status == RLCC_OUT_OF_MEMORY)
            << call.name << ", allocation " << number << ": " << result.status;
        CHECK(result.said || call.name == "build_info")
            << call.name << " says nothing where allocation " << number << " fails";
        CHECK(now == untouched) << call.name << " writes, but allocation " << number << " failed";
      } else {
        CHECK(result.status == call.expected && now == good) << call.name;
        break;
      }
      if (number == 20'000) {
        CHECK(false) << call.name << " allocates without end";
        break;
      }
    }
  }
  fill(call);
  CHECK(attempt(call, -1, false).status == call.expected && contents(call) == good)
      << call.name << ", afterwards";
  std::printf("%s: %ld failures\n", call.name.c_str(), failures);
}

template <class Element>
std::pair<void*, size_t> output(std::vector<Element>& array) {
  return {array.data(), array.size() * sizeof(Element)};
}

}  // namespace restorelcc::test
