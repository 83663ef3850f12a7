// The command line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llama.h"

namespace decode {

extern const char* const kUsage;

struct Options {
  std::string model;
  std::vector<int64_t> prompt;
  int64_t tokens = -1;  // new ones; -1: 32, or with logits_file 0
  int32_t threads = 0;  // 0: the library's own choice
  bool ignore_eos = false;
  std::string logits_file;  // "": none
  bool json = false;        // the report
  bool help = false;
  Settings settings;  // positions is set from prompt and tokens
};

// Throws Refusal with one sentence for what is not understood.
Options parse_options(int count, const char* const* words);

// Whole numbers with commas or white space between them. Throws Refusal, which names `from`.
std::vector<int64_t> parse_ids(const std::string& text, const std::string& from);

}  // namespace decode
