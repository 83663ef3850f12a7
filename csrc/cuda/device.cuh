// The only include of a kernel file. Under nvcc each wrapper below is one PTX instruction; under a host
// compiler the same names come from an emulator that runs one fibre per CUDA thread, found by the include path
// (tests/simt), so that the very same kernel text is compiled for the GPU and run on a CPU. csrc itself knows
// no emulator.
//
// A kernel file uses, beside C++17 and the CUDA built-ins that the emulator's README lists:
//
//   RLCC_SHARED(T, name, count);        T name[count] in shared memory, of one block
//   RLCC_DYNAMIC_SHARED(T, name);       T* name: the dynamic shared memory of the launch, 16-byte aligned
//   launch(kernel, grid, block, dynamic_shared_bytes, stream, arguments...)     -> LaunchError (launch.h)
//   ptx::...                            the instructions of device/ptx.cuh
//   float_of_bf16(bits) and its like    16-bit floats are their bits (uint16_t) in memory
//
// Never plain __shared__ (the emulator could not see its bounds) and never <<<>>> (an unchecked launch).
#pragma once

#if defined(__CUDACC__)
#include "cuda/device/convert.cuh"
#include "cuda/device/launch.cuh"
#include "cuda/device/ptx.cuh"
#else
#include "device_emulation.h"
#endif
