// What is wrong with the model or the call, as one sentence; main() prints it and ends with status 2.
#pragma once

#include <sstream>
#include <stdexcept>

#include "restorelcc/restorelcc.h"

namespace decode {

class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// refuse("the model has ", count, " words")
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Refusal(sentence.str());
}

// The library's own sentence where it refused, another exception where it failed.
inline void check(rlcc_status status) {
  if (status == RLCC_OK) return;
  if (status == RLCC_INVALID_ARGUMENT || status == RLCC_UNSUPPORTED) throw Refusal(rlcc_last_error());
  throw std::runtime_error(rlcc_last_error());
}

}  // namespace decode
