// The current device, as far as choices depend on it.
#pragma once

#include "cuda/launch.h"
#include "cuda/plan.h"

namespace restorelcc::cuda {

// Neither waits for the device nor disturbs a capture.
LaunchError query_device(DeviceInfo* info);

}  // namespace restorelcc::cuda
