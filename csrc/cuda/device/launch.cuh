// Shared memory and launches under nvcc.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "cuda/launch.h"

// Aligned for 16-byte accesses, whatever T is.
#define RLCC_SHARED(T, name, count) __shared__ __align__(16) T name[count]
// One symbol for all kernels: extern shared arrays of one translation unit must agree in type.
#define RLCC_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char rlcc_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(rlcc_dynamic_shared)

namespace restorelcc::cuda {

// A block has 48 KiB of static and dynamic shared memory together without asking. Kernels with so much of the
// latter have few KiB of the former; asking costs a microsecond.
constexpr size_t kSharedBytesWithoutAsking = 32 * 1024;

// Asks for all that the kernel can get on this device: the same whoever asks, so that calls of several sizes,
// from several threads or in one graph, do not take it from each other.
inline cudaError_t allow_most_shared(const void* kernel) {
  int device = 0, most = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              most - static_cast<int>(attributes.sharedSizeBytes));
}

// The errors that launch.h tells from others by their numbers.
static_assert(launch_error(cudaErrorInvalidDeviceFunction, nullptr) == kNoCode);
static_assert(launch_error(cudaErrorNoKernelImageForDevice, nullptr) == kNoCode);
static_assert(launch_error(cudaErrorJitCompilerNotFound, nullptr) == kNoCode);
static_assert(launch_error(cudaErrorUnsupportedPtxVersion, nullptr) == kNoCode);
static_assert(launch_error(cudaErrorJitCompilationDisabled, nullptr) == kNoCode);

// Queues kernel<<<grid, block, dynamic_shared_bytes, stream>>>(arguments...) and says whether that went well.
// Nothing is allocated and nothing waits: a stream that is being captured into a graph takes it.
template <class... Parameters, class... Arguments>
[[nodiscard]] LaunchError launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t dynamic_shared_bytes, void* stream, Arguments... arguments) {
  cudaError_t error = cudaSuccess;
  if (dynamic_shared_bytes > kSharedBytesWithoutAsking) {
    error = allow_most_shared(reinterpret_cast<const void*>(kernel));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = dynamic_shared_bytes;
    config.stream = static_cast<cudaStream_t>(stream);
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // the caller is told here; do not leave it for the next one to find
  return launch_error(error, cudaGetErrorString(error));
}

}  // namespace restorelcc::cuda
