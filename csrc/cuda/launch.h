// What a launch answers. Plain C++: launchers are called from translation units that nvcc does not see.
#pragma once

namespace restorelcc::cuda {

// nullptr: the kernel was queued. Otherwise why not, in words; valid until the calling thread's next launch.
using LaunchError = const char*;

}  // namespace restorelcc::cuda

// Returns the error of `expression` (a LaunchError) from the enclosing function.
#define RLCC_RETURN_IF_NOT_LAUNCHED(expression)                                \
  do {                                                                         \
    const ::restorelcc::cuda::LaunchError rlcc_error_of_launch = (expression); \
    if (rlcc_error_of_launch != nullptr) return rlcc_error_of_launch;          \
  } while (0)
