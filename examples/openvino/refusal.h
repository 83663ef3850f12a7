// What is wrong with a model or a call, as one sentence: OpenVINO hands it on to whoever builds, reads or runs
// the model.
#pragma once

#include <sstream>
#include <string>

#include "openvino/core/except.hpp"

namespace restorelcc_openvino {

class Refusal : public ov::Exception {
 public:
  explicit Refusal(const std::string& sentence) : ov::Exception(sentence) {}
};

// refuse("the model has ", count, " words")
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Refusal(sentence.str());
}

}  // namespace restorelcc_openvino
