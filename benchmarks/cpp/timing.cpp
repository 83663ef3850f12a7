#include "timing.h"

#if defined(__unix__)
#include <sys/resource.h>
#endif

#include <algorithm>
#include <chrono>

namespace restorelcc::bench {
namespace {

// A burst shorter than this measures the clock and the first call's cold x.
constexpr double kShortestBurst = 2e-3;

double quantile(const std::vector<double>& sorted, double share) {
  const double place = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (place - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

// How often the system took the processor from a thread of this process.
int64_t interruptions() {
#if defined(__unix__)
  rusage usage{};
  if (getrusage(RUSAGE_SELF, &usage) == 0) return usage.ru_nivcsw;
#endif
  return 0;
}

struct Runner {
  const Contender* contender;
  int64_t copy = 0;
  int32_t calls = 1, samples = kFewestSamples;
  const Pool* pool = nullptr;
  double spent = 0;  // seconds
  std::vector<double> times{}, interrupted{};

  bool done() const { return static_cast<int32_t>(times.size()) >= samples; }
  void sample() {
    const int64_t taken = interruptions(), missed = pool->jobs_without_all();
    const double time = burst(calls);
    spent += time * calls;
    const bool calm = interruptions() == taken && pool->jobs_without_all() == missed;
    (calm ? times : interrupted).push_back(time);
  }
  // What is missing comes from the interrupted ones, the first first: to take the fastest would be a choice.
  int32_t fill_up() {
    const size_t missing = static_cast<size_t>(samples) - times.size();
    times.insert(times.end(), interrupted.begin(), interrupted.begin() + static_cast<int64_t>(missing));
    return static_cast<int32_t>(missing);
  }

  double burst(int32_t count) {
    const auto start = std::chrono::steady_clock::now();
    for (int32_t i = 0; i < count; ++i) {
      contender->call(copy);
      copy = (copy + 1) % contender->copies;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / count;
  }
};

}  // namespace

std::vector<Times> time_interleaved(const std::vector<Contender>& contenders, const Pool& pool,
                                    const TimingPlan& plan) {
  std::vector<Runner> runners;
  for (const Contender& contender : contenders) {
    Runner runner{&contender};
    runner.pool = &pool;
    runner.burst(1);  // page faults, scratch
    const double once = runner.burst(1);
    runner.calls = static_cast<int32_t>(std::clamp(kShortestBurst / once, 1.0, 1000.0));
    const double wanted = plan.seconds / (once * runner.calls);
    runner.samples = static_cast<int32_t>(
        std::clamp<double>(wanted, kFewestSamples, std::max(plan.repeats, kFewestSamples)));
    runners.push_back(runner);
  }
  bool going = true;
  for (int32_t turn = 0; going; ++turn) {
    going = false;
    for (Runner& runner : runners) {
      if (runner.done() || (turn >= runner.samples && runner.spent > kMostTime * plan.seconds)) continue;
      runner.sample();
      going = true;
    }
  }
  std::vector<Times> all;
  for (Runner& runner : runners) {
    const int32_t interrupted = runner.fill_up();
    std::vector<double>& sorted = runner.times;
    std::sort(sorted.begin(), sorted.end());
    all.push_back({quantile(sorted, 0.5), quantile(sorted, 0.25), quantile(sorted, 0.75), sorted.front(),
                   sorted.back(), runner.samples, runner.calls, interrupted});
  }
  return all;
}

}  // namespace restorelcc::bench
