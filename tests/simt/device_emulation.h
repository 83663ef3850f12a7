// The CUDA that csrc/cuda/device.cuh promises to kernels, on the emulated machine. Needs no CUDA header. What
// is not here does not compile, which is the intention: README.md says how to add to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/element.h"
#include "cuda/launch.h"
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

// Defaults of wrappers: the line that calls them.
#define SIMT_CALLER const char *simt_file = __builtin_FILE(), int simt_line = __builtin_LINE()
#define SIMT_SITE (::simt::Site{simt_file, simt_line})

#define RLCC_SHARED(T, name, count) \
  T* const name = static_cast<T*>(::simt::shared_array({__FILE__, __LINE__}, sizeof(T) * (count)))
#define RLCC_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::simt::dynamic_shared())

// ---- types
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
#define SIMT_VECTOR_TYPE(T, name)                            \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };         \
  struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; };   \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR_TYPE(int, int)
SIMT_VECTOR_TYPE(unsigned, uint)
SIMT_VECTOR_TYPE(float, float)
#undef SIMT_VECTOR_TYPE
struct alignas(16) double2 {
  double x, y;
};

#define threadIdx (::simt::position.thread)
#define blockIdx (::simt::position.block)
#define blockDim (::simt::position.threads)
#define gridDim (::simt::position.blocks)
constexpr int warpSize = 32;

// ---- barriers and warps
inline void __syncthreads(SIMT_CALLER) { simt::sync_block(SIMT_SITE); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_CALLER) { simt::sync_warp(SIMT_SITE, mask); }
inline unsigned __ballot_sync(unsigned mask, int vote, SIMT_CALLER) {
  return simt::ballot(SIMT_SITE, mask, vote != 0);
}
inline int __any_sync(unsigned mask, int vote, SIMT_CALLER) {
  return simt::ballot(SIMT_SITE, mask, vote != 0) != 0;
}
inline int __all_sync(unsigned mask, int vote, SIMT_CALLER) {
  return simt::ballot(SIMT_SITE, mask, vote == 0) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, SIMT_CALLER) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return simt::match_any(SIMT_SITE, mask, bits);
}

namespace simt {
// A lane outside of the segment of `width` lanes, or past its end, is answered by the caller's own value.
template <class T>
T shuffle_value(Site site, unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "what a shuffle can move");
  const int lane = static_cast<int>(position.lane), first = lane & ~(width - 1);
  if (source < first || source >= first + width) source = lane;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(site, mask, bits, static_cast<unsigned>(source));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace simt
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_CALLER) {
  const int first = static_cast<int>(simt::position.lane) & ~(width - 1);
  return simt::shuffle_value(SIMT_SITE, mask, value, first + (source & (width - 1)), width);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_CALLER) {
  return simt::shuffle_value(SIMT_SITE, mask, value, static_cast<int>(simt::position.lane) ^ bits, width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_CALLER) {
  return simt::shuffle_value(SIMT_SITE, mask, value, static_cast<int>(simt::position.lane - lanes), width);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, SIMT_CALLER) {
  return simt::shuffle_value(SIMT_SITE, mask, value, static_cast<int>(simt::position.lane + lanes), width);
}

// ---- atomics: relaxed, as on the device
template <class T, class Change>
inline T simt_atomic(T* place, Change change) {
  T old, changed;
  __atomic_load(place, &old, __ATOMIC_RELAXED);
  do {
    changed = change(old);
  } while (!__atomic_compare_exchange(place, &old, &changed, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
#define SIMT_ATOMICS(T)                                                     \
  inline T atomicAdd(T* place, T value) {                                   \
    return simt_atomic(place, [=](T old) { return old + value; });          \
  }                                                                         \
  inline T atomicMax(T* place, T value) {                                   \
    return simt_atomic(place, [=](T old) { return std::max(old, value); }); \
  }                                                                         \
  inline T atomicMin(T* place, T value) {                                   \
    return simt_atomic(place, [=](T old) { return std::min(old, value); }); \
  }
SIMT_ATOMICS(int)
SIMT_ATOMICS(unsigned)
SIMT_ATOMICS(unsigned long long)
#undef SIMT_ATOMICS
inline float atomicAdd(float* place, float value) {
  return simt_atomic(place, [=](float old) { return old + value; });
}
inline double atomicAdd(double* place, double value) {
  return simt_atomic(place, [=](double old) { return old + value; });
}

// ---- arithmetic
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v != 0 ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __clzll(long long v) { return v != 0 ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64; }
inline unsigned __brev(unsigned v) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (v >> i & 1u) << (31 - i);
  return reversed;
}
// Bytes of {low, high}; bit 3 of a selector's nibble replicates the byte's sign.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7))) & 255;
    if ((nibble & 8) != 0) byte = (byte & 128) != 0 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __float_as_uint(float v) { return restorelcc::bits_of_float(v); }
inline float __uint_as_float(unsigned v) { return restorelcc::float_of_bits(v); }
inline int __float_as_int(float v) { return static_cast<int>(restorelcc::bits_of_float(v)); }
inline float __int_as_float(int v) { return restorelcc::float_of_bits(static_cast<uint32_t>(v)); }
inline float __expf(float v) { return std::exp(v); }  // better than the device's
inline float __logf(float v) { return std::log(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
// Each a rounding of its own: never contracted.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
#define SIMT_MIN_MAX(T)                             \
  inline T min(T a, T b) { return std::min(a, b); } \
  inline T max(T a, T b) { return std::max(a, b); }
SIMT_MIN_MAX(int)
SIMT_MIN_MAX(unsigned)
SIMT_MIN_MAX(long)
SIMT_MIN_MAX(long long)
#undef SIMT_MIN_MAX

// ---- memory
template <class T>
inline T __ldg(const T* place) {
  return *place;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace restorelcc::cuda {

// 16-bit floats, as device/convert.cuh. NaN: any (the device's is canonical).
using restorelcc::bf16_of_float;
using restorelcc::f16_of_float;
using restorelcc::float_of_bf16;
inline float float_of_bf16_low(uint32_t pair) { return float_of_bits(pair << 16); }
inline float float_of_bf16_high(uint32_t pair) { return float_of_bits(pair & 0xffff0000u); }
inline float float_of_f16(uint16_t bits) { return static_cast<float>(double_of_f16(bits)); }
inline float float_of_f16_low(uint32_t pair) { return float_of_f16(static_cast<uint16_t>(pair)); }
inline float float_of_f16_high(uint32_t pair) { return float_of_f16(static_cast<uint16_t>(pair >> 16)); }
inline uint32_t bf16x2_of_floats(float low, float high) {
  return bf16_of_float(low) | static_cast<uint32_t>(bf16_of_float(high)) << 16;
}
inline uint32_t f16x2_of_floats(float low, float high) {
  return f16_of_float(low) | static_cast<uint32_t>(f16_of_float(high)) << 16;
}

template <class... Parameters, class... Arguments>
[[nodiscard]] LaunchError launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t dynamic_shared_bytes, void* stream, Arguments... arguments) {
  if (simt::options().watch != nullptr) simt::options().watch(stream);
  // By value, as a launch passes them.
  return simt::run({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, dynamic_shared_bytes,
                   [=] { kernel(static_cast<Parameters>(arguments)...); });
}

// The instructions of device/ptx.cuh.
namespace ptx {

// The window: the low half of a host address, whose high half is that of the block's shared memory.
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer));
}
template <class T>
T* shared_pointer(uint32_t address) {
  unsigned char* const base = static_cast<unsigned char*>(simt::dynamic_shared());
  return reinterpret_cast<T*>(base + static_cast<int32_t>(address - shared_address(base)));
}

inline void cp_async_4(void* shared, const void* global, int bytes = 4, SIMT_CALLER) {
  simt::copy_async(SIMT_SITE, shared, global, 4, bytes);
}
inline void cp_async_8(void* shared, const void* global, int bytes = 8, SIMT_CALLER) {
  simt::copy_async(SIMT_SITE, shared, global, 8, bytes);
}
inline void cp_async_16(void* shared, const void* global, int bytes = 16, SIMT_CALLER) {
  simt::copy_async(SIMT_SITE, shared, global, 16, bytes);
}
inline void cp_async_commit() { simt::commit_copies(); }
template <int kNewest>
inline void cp_async_wait_group() {
  simt::wait_for_copies(kNewest);
}

#define SIMT_LDMATRIX(count)                                                                       \
  inline void ldmatrix_x##count(uint32_t (&r)[count], const void* row, SIMT_CALLER) {              \
    simt::load_matrices(SIMT_SITE, r, row, count, false);                                          \
  }                                                                                                \
  inline void ldmatrix_x##count##_transposed(uint32_t (&r)[count], const void* row, SIMT_CALLER) { \
    simt::load_matrices(SIMT_SITE, r, row, count, true);                                           \
  }
SIMT_LDMATRIX(1)
SIMT_LDMATRIX(2)
SIMT_LDMATRIX(4)
#undef SIMT_LDMATRIX

#define SIMT_MMA(type, half)                                                                        \
  inline void mma_m16n8k16_##type(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],    \
                                  const float (&c)[4], SIMT_CALLER) {                               \
    simt::multiply_m16n8k16(SIMT_SITE, simt::Half::half, d, a, b, c);                               \
  }                                                                                                 \
  template <int kSelector>                                                                          \
  inline void mma_sp_m16n8k32_##type(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], \
                                     const float (&c)[4], uint32_t metadata, SIMT_CALLER) {         \
    static_assert(kSelector == 0 || kSelector == 1, "two pairs of lanes in a quad");                \
    simt::multiply_sparse_m16n8k32(SIMT_SITE, simt::Half::half, d, a, b, c, metadata, kSelector);   \
  }
SIMT_MMA(bf16, kBf16)
SIMT_MMA(f16, kF16)
#undef SIMT_MMA

inline float exp2_approximate(float x) {  // better than the device's
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.0f : result;
}

inline uint4 load_stream_16(const void* global, SIMT_CALLER) {
  simt::check_load(SIMT_SITE, global, 16);
  return *static_cast<const uint4*>(global);
}
inline uint4 load_cached_16(const void* global, SIMT_CALLER) {
  simt::check_load(SIMT_SITE, global, 16);
  return *static_cast<const uint4*>(global);
}
inline void store_stream_16(void* global, uint4 v, SIMT_CALLER) {
  simt::check_store(SIMT_SITE, global, 16);
  *static_cast<uint4*>(global) = v;
}

}  // namespace ptx
}  // namespace restorelcc::cuda
