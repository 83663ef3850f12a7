// Interleaved samples: the contenders take turns (A B C A B C ...), so that a slow moment of the machine meets
// all.
#pragma once

#include <cstdint>
#include <vector>

#include "contender.h"

namespace restorelcc::bench {

// Seconds of one call.
struct Times {
  double median = 0, q1 = 0, q3 = 0, min = 0, max = 0;
  int32_t samples = 0, calls_each = 0;
  int32_t interrupted = 0;  // of the samples; more were thrown away and taken again
};

struct TimingPlan {
  double seconds;   // of one contender, about
  int32_t repeats;  // at most; kFewestSamples at least
};

constexpr int32_t kFewestSamples = 5;

// A burst in which another program had a processor that our threads wanted (one was interrupted, or came too
// late to take part) is thrown away and taken again, until the contender has had kMostTime times its time; what
// is missing then is filled with such bursts, and counted.
constexpr double kMostTime = 5;

// Each sample is a burst of calls, each on the next copy of the weight, never on the one before.
std::vector<Times> time_interleaved(const std::vector<Contender>& contenders, const Pool& pool,
                                    const TimingPlan& plan);

}  // namespace restorelcc::bench
