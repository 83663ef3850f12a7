// The command line of rlcc_bench.
#pragma once

#include <cstdint>
#include <regex>
#include <string>
#include <vector>

namespace restorelcc::bench {

struct Options {
  std::string shapes;                // the file of layer shapes
  std::vector<std::string> filters;  // regular expressions; a case must match all
  std::string json;                  // file to write; empty: none
  int64_t rotate_mb = 256;           // distinct weight memory behind each contender, at least
  double seconds = 0.4;              // measured time of one contender, about
  int32_t repeats = 25;              // samples at most; 5 at least
  bool refcheck = false, quick = false, list = false, help = false, all = false, dense = true;
  bool huge_pages = false;

  bool selects(const std::string& case_name) const;

  std::vector<std::regex> compiled;
};

extern const char kUsage[];

// False: *error says in one sentence what is wrong with the arguments.
bool parse_options(int argc, char** argv, Options* options, std::string* error);

}  // namespace restorelcc::bench
