// Runs a test under every warp order and both kinds of cp.async; launches that must fail.
#pragma once

#include <cstring>
#include <string>

#include "../cpp/check.h"
#include "machine.h"

namespace restorelcc::test {

// A race detector costs 50 times the time, and finds a race whatever the numbers and the schedule: few cases
// do.
#if defined(__SANITIZE_THREAD__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif

constexpr const char* kOrderNames[] = {"fifo", "lifo", "random", "priority"};

// body(name) under all four orders (random ones with `seeds` seeds), with lazy and eager copies.
template <class Body>
void under_every_schedule(int seeds, const Body& body) {
  for (int order = 0; order < 4; ++order) {
    const bool seeded = order >= 2;
    for (int seed = 1; seed <= (seeded ? seeds : 1); ++seed) {
      for (const bool eager : {false, true}) {
        simt::options().order = static_cast<simt::Order>(order);
        simt::options().seed = static_cast<uint64_t>(seed);
        simt::options().eager_copies = eager;
        body(std::string(kOrderNames[order]) + (seeded ? " " + std::to_string(seed) : "") +
             (eager ? " eager" : " lazy"));
      }
    }
  }
  simt::options() = simt::Options{};
}

}  // namespace restorelcc::test

#define CHECK_LAUNCHED(expression)                                                         \
  do {                                                                                     \
    const char* const rlcc_error = (expression);                                           \
    CHECK(rlcc_error == nullptr) << #expression << ": " << (rlcc_error ? rlcc_error : ""); \
  } while (0)
// The launch fails, and says `words`.
#define CHECK_FAULT(expression, words)                                                                    \
  do {                                                                                                    \
    const char* const rlcc_error = (expression);                                                          \
    CHECK(rlcc_error != nullptr && std::strstr(rlcc_error, words) != nullptr)                             \
        << #expression << " says " << (rlcc_error ? rlcc_error : "nothing") << ", not '" << words << "'"; \
  } while (0)
