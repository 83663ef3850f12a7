// Whether a device can run this library's kernels: pure functions of what nvcc compiled for and of the device's
// compute capability, written 86 for 8.6.
#pragma once

#include "core/status.h"
#include "cuda/launch.h"

namespace restorelcc::cuda {

// Whether code for these architectures ("sm_80 sm_90 compute_90") runs on such a device: sm_Xy on X.z from y
// on, compute_Xy (PTX, which the driver compiles) on all from X.y on, sm_Xya and compute_Xya on X.y alone.
// Words that are neither count for nothing.
bool architectures_serve(const char* architectures, int capability);

// RLCC_UNSUPPORTED, and what to do, for a device older than 8.0 or one that the library has no code for.
Status check_device(const char* architectures, int capability);

// A launch as a status: RLCC_INTERNAL, but RLCC_UNSUPPORTED where the driver has not taken the library's code.
Status launch_status(const char* kernel, LaunchError error, const char* architectures, int capability);

}  // namespace restorelcc::cuda
