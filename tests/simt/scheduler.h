// Which of the threads that can go on does so next.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "machine.h"

namespace simt {

constexpr unsigned kMostThreads = 1024;  // of a block; each is ready at most once

class Scheduler {
 public:
  // All memory at once: what a kernel's thread allocates is its own in the eyes of a race detector.
  Scheduler() {
    ready_.reserve(kMostThreads);
    for (auto& warp : ready_in_warp_) warp.reserve(32);
  }
  void start_launch(Order order, uint64_t seed) {
    order_ = order;
    random_ = seed * 0x9e3779b97f4a7c15ull | 1;
    for (unsigned& priority : priority_) priority = static_cast<unsigned>(random());
  }
  void start_block() {
    ready_.clear();
    head_ = 0;
    for (auto& warp : ready_in_warp_) warp.clear();
    ready_warps_ = 0;
    count_ = 0;
  }
  bool empty() const { return count_ == 0; }

  void push(unsigned thread) {
    ++count_;
    if (order_ == Order::kFifo) {
      ring_[(head_ + count_ - 1) % kMostThreads] = thread;
      return;
    }
    if (order_ != Order::kPriority) return ready_.push_back(thread);
    ready_in_warp_[thread / 32].push_back(thread);
    ready_warps_ |= 1u << (thread / 32);
  }

  unsigned pop() {
    --count_;
    switch (order_) {
      case Order::kFifo: return next_in_line();
      case Order::kRandom: return any_of(ready_);
      case Order::kLifo: return last_of(ready_);
      case Order::kPriority: break;
    }
    if (random() % 256 == 0) priority_[random() % 32] = static_cast<unsigned>(random());
    unsigned best = 32;
    for (unsigned warps = ready_warps_; warps != 0; warps &= warps - 1) {
      const unsigned warp = static_cast<unsigned>(__builtin_ctz(warps));
      if (best == 32 || priority_[warp] > priority_[best]) best = warp;
    }
    const unsigned thread = any_of(ready_in_warp_[best]);
    if (ready_in_warp_[best].empty()) ready_warps_ &= ~(1u << best);
    return thread;
  }

  // Whether the lane that completes a collective lets the others go first.
  bool last_arrival_yields() { return order_ == Order::kRandom && random() % 2 == 0; }

 private:
  uint64_t random() {  // xorshift
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }
  unsigned next_in_line() {
    const unsigned thread = ring_[head_];
    head_ = (head_ + 1) % kMostThreads;
    return thread;
  }
  static unsigned last_of(std::vector<unsigned>& threads) {
    const unsigned thread = threads.back();
    threads.pop_back();
    return thread;
  }
  unsigned any_of(std::vector<unsigned>& threads) {
    std::swap(threads[random() % threads.size()], threads.back());
    return last_of(threads);
  }

  Order order_ = Order::kFifo;
  uint64_t random_ = 1;
  unsigned ring_[kMostThreads];
  std::vector<unsigned> ready_;
  size_t head_ = 0, count_ = 0;
  std::vector<unsigned> ready_in_warp_[32];
  unsigned ready_warps_ = 0, priority_[32] = {};
};

}  // namespace simt
