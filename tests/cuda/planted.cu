// Kernels that the static gate must find fault with, and one that it must not. Compiled by test_static_gate.py.
#include <cstdint>

// Nothing wrong: 8 weights a turn, in eight fused multiply-adds.
__global__ void planted_sound(const float4* a, const float4* b, float* c, int n) {
  float sum[8] = {};
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 64) {
    const float4 x = a[i], y = a[i + 32], u = b[i], v = b[i + 32];
    sum[0] = fmaf(x.x, u.x, sum[0]);
    sum[1] = fmaf(x.y, u.y, sum[1]);
    sum[2] = fmaf(x.z, u.z, sum[2]);
    sum[3] = fmaf(x.w, u.w, sum[3]);
    sum[4] = fmaf(y.x, v.x, sum[4]);
    sum[5] = fmaf(y.y, v.y, sum[5]);
    sum[6] = fmaf(y.z, v.z, sum[6]);
    sum[7] = fmaf(y.w, v.w, sum[7]);
  }
  for (int i = 0; i < 8; ++i) c[threadIdx.x * 8 + i] = sum[i];
}

// More live values than the registers that 1024 threads leave: ptxas spills.
__global__ void __launch_bounds__(1024, 2) planted_spill(const float* a, float* c, int n) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = a[i * 1024 + threadIdx.x];
#pragma unroll 1
  for (int round = 0; round < n; ++round) {
#pragma unroll
    for (int i = 0; i < 64; ++i) v[i] = fmaf(v[i], v[(i + 17) % 64], v[(i + 31) % 64]);
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) c[i * 1024 + threadIdx.x] = v[i];
}

// An array that is indexed at run time lives in local memory.
__global__ void planted_local(const int* where, float* c, int n) {
  float v[32];
  for (int i = 0; i < 32; ++i) v[i] = c[i];
#pragma unroll 1
  for (int i = 0; i < n; ++i) v[where[i] & 31] += 1.0f;
  for (int i = 0; i < 32; ++i) c[i] = v[i];
}

// Sums whose order the device chooses.
__global__ void planted_atomic(const float* a, float* c) { atomicAdd(c, a[threadIdx.x]); }

// Reads element by element what should be read 16 bytes at a time, and no tensor core.
__global__ void planted_narrow(const float* a, float* c, int n) {
  __shared__ float sum[32];
  sum[threadIdx.x] = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 32) sum[threadIdx.x] = fmaf(a[i], a[i], sum[threadIdx.x]);
  c[threadIdx.x] = sum[threadIdx.x];
}
