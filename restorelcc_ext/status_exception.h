// The one place that turns a status of the core into a C++ exception. Python sees ValueError,
// MemoryError or RuntimeError (both pybind11 and torch's dispatcher translate the std types so).
#pragma once

#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "restorelcc/restorelcc.h"

namespace restorelcc_ext {

class OutOfMemory final : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

// Call at once after the entry point: the sentence belongs to this thread's latest call.
inline void throw_unless_ok(rlcc_status status) {
  if (status == RLCC_OK) return;
  const std::string message = rlcc_last_error();
  switch (status) {
    case RLCC_INVALID_ARGUMENT: throw std::invalid_argument(message);
    case RLCC_OUT_OF_MEMORY: throw OutOfMemory(message);
    default: throw std::runtime_error(message);
  }
}

}  // namespace restorelcc_ext
