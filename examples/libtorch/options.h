// The command line.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace logits {

extern const char* const kUsage;

// What is wrong with the call or the package, as one sentence; main() prints it and ends with status 2.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string package;
  std::vector<int64_t> prompt;  // token ids >= 0
  int64_t tokens = 32;          // new ones
  int threads = 0;              // 0: torch's own choice
  std::string logits_file;      // "": new tokens instead
  bool help = false;
};

// Throws Refusal for what is not understood.
Options parse_options(int count, const char* const* words);

// A whole number from least to most. Throws Refusal, which calls it `of`.
int64_t whole_number(const std::string& text, const std::string& of, int64_t least, int64_t most);

}  // namespace logits
