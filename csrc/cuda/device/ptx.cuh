// Instructions that CUDA C++ has no name for, one wrapper each, sm_80 and later. No wrapper does anything
// beside its instruction: what the emulator puts in its place has to mean the same, and it cannot see inside
// the strings.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace restorelcc::cuda::ptx {

// An address in the shared window: 32 bits.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
template <class T>
__device__ __forceinline__ T* shared_pointer(uint32_t address) {
  return static_cast<T*>(__cvta_shared_to_generic(address));
}

// ---- cp.async: global to shared memory, behind the registers' back. Copies `bytes` (0 .. size) and fills the
// rest of the `size` bytes with zeros; both addresses are aligned to `size`. The 16-byte form bypasses L1.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, int bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_8(void* shared, const void* global, int bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most kNewest of this thread's groups are under way. Other threads see the data after a barrier.
template <int kNewest>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// ---- ldmatrix: 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8
// (16-byte aligned); r[i] receives elements (l / 4, 2 (l % 4)) and the one right of it of matrix i; transposed:
// of its transpose.
__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x1_transposed(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- mma: d[16, 8] = a[16, 16] b[16, 8] + c, fp32 sums. With g = lane / 4, t = lane % 4, a register holding
// two elements, the lower column (of b: row) in its low half:
//   a[0] (g, 2t)  a[1] (g + 8, 2t)  a[2] (g, 2t + 8)  a[3] (g + 8, 2t + 8)      b[0] (2t, g)  b[1] (2t + 8, g)
//   c[0] (g, 2t)  c[1] (g, 2t + 1)  c[2] (g + 8, 2t)  c[3] (g + 8, 2t + 1)
#define RLCC_PTX_MMA_M16N8K16(type)                                                                        \
  __device__ __forceinline__ void mma_m16n8k16_##type(float (&d)[4], const uint32_t (&a)[4],               \
                                                      const uint32_t (&b)[2], const float (&c)[4]) {       \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #type "." #type                                  \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                \
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                          \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), \
                   "f"(c[2]), "f"(c[3]));                                                                  \
  }
RLCC_PTX_MMA_M16N8K16(bf16)
RLCC_PTX_MMA_M16N8K16(f16)
#undef RLCC_PTX_MMA_M16N8K16

// ---- mma.sp: d[16, 8] = a[16, 32] b[32, 8] + c where a keeps two of every four columns. a holds the kept
// values as an [16, 16] matrix in the layout above; b has two more registers: b[2] (2t + 16, g), b[3] (2t + 24,
// g). `metadata` has two bits per kept value, its column within its four, ascending (ordered_metadata:
// unordered pairs are undefined): lanes t = 2 kSelector and 2 kSelector + 1 of each quad give those of columns
// 0..15 and 16..31, row g in the low and row g + 8 in the high 16 bits, the lowest columns in the lowest bits.
#define RLCC_PTX_MMA_SP_M16N8K32(type)                                                                         \
  template <int kSelector>                                                                                     \
  __device__ __forceinline__ void mma_sp_m16n8k32_##type(                                                      \
      float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], const float (&c)[4], uint32_t metadata) { \
    static_assert(kSelector == 0 || kSelector == 1, "two pairs of lanes in a quad");                           \
    asm volatile(                                                                                              \
        "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." #type "." #type                          \
        ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%12, %13, %14, %15}, %16, %17;"         \
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                                       \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "f"(c[0]),   \
          "f"(c[1]), "f"(c[2]), "f"(c[3]), "r"(metadata), "n"(kSelector));                                     \
  }
RLCC_PTX_MMA_SP_M16N8K32(bf16)
RLCC_PTX_MMA_SP_M16N8K32(f16)
#undef RLCC_PTX_MMA_SP_M16N8K32

// ---- 2^x, to 2 units of the last place; a result below 2^-126 is 0.
__device__ __forceinline__ float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- 16 bytes at a time (aligned to 16). `stream`: read once, so L1 is not told; `cached`: read by many
// blocks. Both take the read-only path: nothing may write there while the kernel runs.
__device__ __forceinline__ uint4 load_stream_16(const void* global) {
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(global));
  return v;
}
__device__ __forceinline__ uint4 load_cached_16(const void* global) {
  uint4 v;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(global));
  return v;
}
__device__ __forceinline__ void store_stream_16(void* global, uint4 v) {
  asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

}  // namespace restorelcc::cuda::ptx
