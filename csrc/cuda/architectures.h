// Whether a device can run this library's kernels: functions of what nvcc compiled for and of the device's
// compute capability, written 86 for 8.6.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/launch.h"

namespace restorelcc::cuda {

// What nvcc compiled for: "sm_80 sm_90 compute_90", read once. Never changes; any number of threads may ask at
// once.
class Architectures {
 public:
  // Words that name no architecture count for nothing.
  explicit Architectures(const char* words);

  // Whether the code runs on such a device:
  //   sm_Xy                on X.z from y on
  //   compute_Xy           (PTX, which the driver compiles) on all from X.y on
  //   sm_Xyf, compute_Xyf  (of a family) on X.z from y on
  //   sm_Xya, compute_Xya  (of one architecture) on X.y alone
  bool serve(int capability) const;

  // "sm_80, sm_90, compute_90", as given
  const std::string& listed() const { return listed_; }

 private:
  struct Code {
    int first, last;  // capabilities
  };
  std::vector<Code> codes_;
  std::string listed_;
};

// Those of this library.
const Architectures& built_architectures();

// RLCC_UNSUPPORTED, and what to do, for a device older than 8.0 or one that the library has no code for.
Status check_device(const Architectures& architectures, int capability);

// A launch as a status: RLCC_INTERNAL, but RLCC_UNSUPPORTED where the driver has not taken the library's code.
Status launch_status(const char* kernel, LaunchError error, const Architectures& architectures, int capability);

}  // namespace restorelcc::cuda
