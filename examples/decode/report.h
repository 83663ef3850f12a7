// What a run took: times and memory, as JSON or as two lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace decode {

// Of this process, in bytes, as Linux counts them; -1 where the system does not say.
struct Memory {
  int64_t resident = -1;   // VmRSS
  int64_t file = -1;       // RssFile: of the mapped model and the program
  int64_t anonymous = -1;  // RssAnon: the rest
  int64_t peak = -1;       // VmHWM
};
Memory memory_now();

// Seconds that the threads of this process were ready to run and had no processor; -1 where the system does not
// say.
double waited_seconds();

// Seconds since this process was started, to a hundredth; -1 where the system does not say.
double seconds_since_start();

struct Report {
  std::vector<int64_t> ids;  // new tokens
  int64_t prompt_tokens = 0;
  double load_seconds = 0;  // opening the model and allocating, before the first token of the prompt is fed
  double first_token_seconds = -1;     // from there until the first new token is known; -1: there is none
  double start_to_first_seconds = -1;  // from the start of the process
  std::vector<double> token_seconds;   // of each further new token
  double waited_seconds = -1;  // while those were made: above a hundredth of their time, others disturbed it
  int64_t cache_bytes = 0, buffer_bytes = 0;
  Memory memory;
  int32_t threads = 0;
  std::string isa, loops, activations, cache;

  double tokens_per_second() const;  // of the further tokens; -1 without any
  // The share-quantile of token_seconds, nearest rank; -1 without any.
  double quantile(double share) const;
  std::string json() const;
  std::string lines() const;
};

}  // namespace decode
