// What was measured, for people and as JSON.
#pragma once

#include <string>
#include <vector>

#include "options.h"
#include "timing.h"

namespace restorelcc::bench {

// A dense rival that reaches less of the bandwidth than this is not a fair one: no ratio is quoted against it.
constexpr double kFairShare = 0.9;

struct Result {
  std::string name, pattern, op, dtype;
  Shape shape;
  int64_t rows;
  int32_t threads;
  int64_t bytes, flops, copies;
  Times seconds;
  bool checked;
  double bandwidth;     // bytes a second of the streaming sum in the same turns
  double dense_ratio;   // seconds of our dense product / seconds of this; 0: there is none
  double dense_share;   // of the bandwidth, of that dense product
  int32_t interrupted;  // disturbed samples, of this, of the dense product and of the streaming sum

  double rate() const { return static_cast<double>(bytes) / seconds.median; }
  double share() const { return rate() / bandwidth; }
  // Of a ratio: the rival is fair, and nothing was disturbed.
  bool quotable() const { return dense_ratio > 0 && dense_share >= kFairShare && interrupted == 0; }
};

void print_header();
void print(const Result& result);
std::string cpu_name();
bool write_json(const std::string& path, const Options& options, const std::vector<Result>& results);

}  // namespace restorelcc::bench
