// What a launch answers. Plain C++: launchers are called from translation units that nvcc does not see.
#pragma once

namespace restorelcc::cuda {

// nullptr: the kernel was queued. Otherwise why not, in words; valid until the calling thread's next launch.
using LaunchError = const char*;

// Told from all other errors by its address: there is no code for the device, neither the machine's nor such as
// its driver compiles.
inline constexpr char kNoCode[] = "no code for the device";

// What a runtime error (cudaError_t, not cudaSuccess) is as a LaunchError, `text` being what the runtime says
// of it.
constexpr LaunchError launch_error(int code, const char* text) {
  constexpr int kMeaningNoCode[] = {98, 209, 221, 222, 223};  // named in device/launch.cuh
  for (int one : kMeaningNoCode) {
    if (code == one) return kNoCode;
  }
  return text;
}

}  // namespace restorelcc::cuda

// Returns the error of `expression` (a LaunchError) from the enclosing function.
#define RLCC_RETURN_IF_NOT_LAUNCHED(expression)                                \
  do {                                                                         \
    const ::restorelcc::cuda::LaunchError rlcc_error_of_launch = (expression); \
    if (rlcc_error_of_launch != nullptr) return rlcc_error_of_launch;          \
  } while (0)
