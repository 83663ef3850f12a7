// What the entry points of csrc/cuda share: the device asked, a launch reported; and the ops that are not in
// api.cpp.
#pragma once

#include <cstddef>

#include "core/status.h"
#include "cuda/architectures.h"
#include "cuda/device_info.h"

namespace restorelcc::cuda {

// RLCC_UNSUPPORTED where there is no device, or none that this library has code for.
inline Status current_device(DeviceInfo* device) {
  const LaunchError error = query_device(device);
  if (error != nullptr) return failure(RLCC_UNSUPPORTED, "no usable CUDA device: ", error);
  return check_device(built_architectures(), device->capability);
}

inline Status launched(const char* kernel, LaunchError error) {
  if (error == nullptr) return {};
  DeviceInfo device{};
  query_device(&device);  // it was there before the launch
  return launch_status(kernel, error, built_architectures(), device.capability);
}

// sparse_linear of more than kDecodeMostRowsOfX rows (validated).
Status sparse_linear_tiles_workspace(const rlcc_sparse_linear_params& params, const DeviceInfo& device,
                                     size_t* bytes);
Status sparse_linear_tiles(const rlcc_sparse_linear_params& params, const DeviceInfo& device, void* workspace,
                           size_t workspace_bytes, void* stream);

}  // namespace restorelcc::cuda
