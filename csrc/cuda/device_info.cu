#include "cuda/device_info.h"

#include <cuda_runtime.h>

namespace restorelcc::cuda {

LaunchError query_device(DeviceInfo* info) {
  int device = 0, major_number = 0, minor_number = 0, shared_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](int* answer, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(answer, attribute, device);
  };
  ask(&major_number, cudaDevAttrComputeCapabilityMajor);
  ask(&minor_number, cudaDevAttrComputeCapabilityMinor);
  ask(&info->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error != cudaSuccess) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  info->capability = 10 * major_number + minor_number;
  info->shared_bytes_per_block = static_cast<size_t>(shared_bytes);
  return nullptr;
}

}  // namespace restorelcc::cuda
