// Every wrapper of csrc/cuda/device/ alone, on whatever device there is: registers in, registers out. No
// expectations live here: benchmarks/on_device/instructions.py derives them from the definitions in the
// wrappers' comments.
//
// The product's library has no use for these kernels, so they are a library of their own: compiled by nvcc for
// the day a GPU is at hand (the emulator never executes inline PTX: a wrong operand shows on a device only, and
// a wrong layout would make every product wrong, so this runs first), and by the host compiler for the
// emulator, to test the expectations.
#include <cstring>

#include "cuda/device.cuh"

namespace restorelcc::cuda {
namespace {

// One lane's part: `in` and `out` are its own words (16-byte aligned), `shared` is its warp's.
struct Lane {
  const uint32_t* in;
  uint32_t* out;
  unsigned char* shared;
  unsigned index;
  int argument;

  __device__ unsigned char* own_16_bytes() const { return shared + index * 16; }
};

constexpr int kSharedBytes = 32 * 16;

template <int kCount>
__device__ __forceinline__ void copy_words(uint32_t* to, const uint32_t* from) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = from[i];
}

// ---- Conversions: a word in, a word out.
#define RLCC_CONVERSION(name, expression)          \
  struct name##_test {                             \
    static constexpr int kIn = 4, kOut = 4;        \
    static __device__ void run(const Lane& lane) { \
      for (int i = 0; i < 4; ++i) {                \
        const uint32_t word = lane.in[i];          \
        lane.out[i] = (expression);                \
      }                                            \
    }                                              \
  };
RLCC_CONVERSION(float_of_bf16, __float_as_uint(float_of_bf16(static_cast<uint16_t>(word))))
RLCC_CONVERSION(float_of_bf16_low, __float_as_uint(float_of_bf16_low(word)))
RLCC_CONVERSION(float_of_bf16_high, __float_as_uint(float_of_bf16_high(word)))
RLCC_CONVERSION(float_of_f16, __float_as_uint(float_of_f16(static_cast<uint16_t>(word))))
RLCC_CONVERSION(float_of_f16_low, __float_as_uint(float_of_f16_low(word)))
RLCC_CONVERSION(float_of_f16_high, __float_as_uint(float_of_f16_high(word)))
RLCC_CONVERSION(bf16_of_float, bf16_of_float(__uint_as_float(word)))
RLCC_CONVERSION(f16_of_float, f16_of_float(__uint_as_float(word)))
RLCC_CONVERSION(exp2_approximate, __float_as_uint(ptx::exp2_approximate(__uint_as_float(word))))
#undef RLCC_CONVERSION

// Two floats in, one register out.
#define RLCC_PAIR_CONVERSION(name)                                                        \
  struct name##_test {                                                                    \
    static constexpr int kIn = 4, kOut = 4;                                               \
    static __device__ void run(const Lane& lane) {                                        \
      for (int i = 0; i < 4; i += 2) {                                                    \
        lane.out[i] = name(__uint_as_float(lane.in[i]), __uint_as_float(lane.in[i + 1])); \
        lane.out[i + 1] = 0;                                                              \
      }                                                                                   \
    }                                                                                     \
  };
RLCC_PAIR_CONVERSION(bf16x2_of_floats)
RLCC_PAIR_CONVERSION(f16x2_of_floats)
#undef RLCC_PAIR_CONVERSION

// ---- 16 bytes of global memory.
#define RLCC_LOAD(name)                               \
  struct name##_test {                                \
    static constexpr int kIn = 4, kOut = 4;           \
    static __device__ void run(const Lane& lane) {    \
      const uint4 v = ptx::name(lane.in);             \
      const uint32_t words[4] = {v.x, v.y, v.z, v.w}; \
      copy_words<4>(lane.out, words);                 \
    }                                                 \
  };
RLCC_LOAD(load_stream_16)
RLCC_LOAD(load_cached_16)
#undef RLCC_LOAD
struct store_stream_16_test {
  static constexpr int kIn = 4, kOut = 4;
  static __device__ void run(const Lane& lane) {
    ptx::store_stream_16(lane.out, make_uint4(lane.in[0], lane.in[1], lane.in[2], lane.in[3]));
  }
};

// ---- cp.async: the first `argument` of a lane's 16 bytes, in pieces of the instruction's size.
#define RLCC_COPY(size)                                                                                      \
  struct cp_async_##size##_test {                                                                            \
    static constexpr int kIn = 4, kOut = 4;                                                                  \
    static __device__ void run(const Lane& lane) {                                                           \
      for (int at = 0; at < 16; at += size) {                                                                \
        const int left = lane.argument - at;                                                                 \
        ptx::cp_async_##size(lane.own_16_bytes() + at, reinterpret_cast<const unsigned char*>(lane.in) + at, \
                             left < 0      ? 0                                                               \
                             : left > size ? size                                                            \
                                           : left);                                                          \
      }                                                                                                      \
      ptx::cp_async_commit();                                                                                \
      ptx::cp_async_wait_group<0>();                                                                         \
      copy_words<4>(lane.out, reinterpret_cast<const uint32_t*>(lane.own_16_bytes()));                       \
    }                                                                                                        \
  };
RLCC_COPY(4)
RLCC_COPY(8)
RLCC_COPY(16)
#undef RLCC_COPY
// Two groups: the first has arrived when one is still allowed to be under way.
struct cp_async_groups_test {
  static constexpr int kIn = 4, kOut = 4;
  static __device__ void run(const Lane& lane) {
    unsigned char* const own = lane.own_16_bytes();
    ptx::cp_async_8(own, lane.in);
    ptx::cp_async_commit();
    ptx::cp_async_8(own + 8, lane.in + 2);
    ptx::cp_async_commit();
    ptx::cp_async_wait_group<1>();
    copy_words<2>(lane.out, reinterpret_cast<const uint32_t*>(own));
    ptx::cp_async_wait_group<0>();
    copy_words<2>(lane.out + 2, reinterpret_cast<const uint32_t*>(own + 8));
  }
};

// ---- ldmatrix: words 0..3 are the lane's row, word 4 says which lane's row it points at.
#define RLCC_LOAD_MATRICES(count, suffix)                                       \
  struct ldmatrix_x##count##suffix##_test {                                     \
    static constexpr int kIn = 8, kOut = 4;                                     \
    static __device__ void run(const Lane& lane) {                              \
      copy_words<4>(reinterpret_cast<uint32_t*>(lane.own_16_bytes()), lane.in); \
      __syncwarp();                                                             \
      uint32_t r[count];                                                        \
      ptx::ldmatrix_x##count##suffix(r, lane.shared + lane.in[4] * 16);         \
      copy_words<count>(lane.out, r);                                           \
    }                                                                           \
  };
RLCC_LOAD_MATRICES(1, )
RLCC_LOAD_MATRICES(2, )
RLCC_LOAD_MATRICES(4, )
RLCC_LOAD_MATRICES(1, _transposed)
RLCC_LOAD_MATRICES(2, _transposed)
RLCC_LOAD_MATRICES(4, _transposed)
#undef RLCC_LOAD_MATRICES

// ---- mma: a, b, c, and for mma.sp the metadata, as the lane holds them.
template <int kA, int kB>
struct Fragments {
  uint32_t a[kA], b[kB];
  float c[4];
  __device__ explicit Fragments(const uint32_t* in) {
    copy_words<kA>(a, in);
    copy_words<kB>(b, in + kA);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = __uint_as_float(in[kA + kB + i]);
  }
  __device__ void store(uint32_t* out) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = __float_as_uint(c[i]);
  }
};
#define RLCC_MULTIPLY(type)                                                    \
  struct mma_m16n8k16_##type##_test {                                          \
    static constexpr int kIn = 12, kOut = 4;                                   \
    static __device__ void run(const Lane& lane) {                             \
      Fragments<4, 2> f(lane.in);                                              \
      ptx::mma_m16n8k16_##type(f.c, f.a, f.b, f.c);                            \
      f.store(lane.out);                                                       \
    }                                                                          \
  };                                                                           \
  template <int kSelector>                                                     \
  struct mma_sp_m16n8k32_##type##_test {                                       \
    static constexpr int kIn = 16, kOut = 4;                                   \
    static __device__ void run(const Lane& lane) {                             \
      Fragments<4, 4> f(lane.in);                                              \
      ptx::mma_sp_m16n8k32_##type<kSelector>(f.c, f.a, f.b, f.c, lane.in[12]); \
      f.store(lane.out);                                                       \
    }                                                                          \
  };
RLCC_MULTIPLY(bf16)
RLCC_MULTIPLY(f16)
#undef RLCC_MULTIPLY

// A warp a block; in [blocks, 32, kIn], out [blocks, 32, kOut].
template <class Test>
__global__ void instruction(const uint32_t* in, uint32_t* out, int argument) {
  RLCC_SHARED(uint4, shared, kSharedBytes / 16);
  const unsigned lane = blockIdx.x * 32 + threadIdx.x;
  Test::run({in + lane * Test::kIn, out + lane * Test::kOut, reinterpret_cast<unsigned char*>(shared),
             threadIdx.x, argument});
}

template <class Test>
LaunchError run(const void* in, void* out, int blocks, int argument, void* stream) {
  return launch(instruction<Test>, static_cast<unsigned>(blocks), 32, 0, stream,
                static_cast<const uint32_t*>(in), static_cast<uint32_t*>(out), argument);
}

struct Entry {
  const char* name;
  int words_in, words_out;
  LaunchError (*run)(const void* in, void* out, int blocks, int argument, void* stream);
};
template <class Test>
constexpr Entry entry(const char* name) {
  return {name, Test::kIn, Test::kOut, run<Test>};
}
#define RLCC_ENTRY(name) entry<name##_test>(#name)
#define RLCC_SPARSE_ENTRY(name, selector) entry<name##_test<selector>>(#name "_" #selector)
const Entry kEntries[] = {
    RLCC_ENTRY(float_of_bf16),
    RLCC_ENTRY(float_of_bf16_low),
    RLCC_ENTRY(float_of_bf16_high),
    RLCC_ENTRY(float_of_f16),
    RLCC_ENTRY(float_of_f16_low),
    RLCC_ENTRY(float_of_f16_high),
    RLCC_ENTRY(bf16_of_float),
    RLCC_ENTRY(f16_of_float),
    RLCC_ENTRY(bf16x2_of_floats),
    RLCC_ENTRY(f16x2_of_floats),
    RLCC_ENTRY(exp2_approximate),
    RLCC_ENTRY(load_stream_16),
    RLCC_ENTRY(load_cached_16),
    RLCC_ENTRY(store_stream_16),
    RLCC_ENTRY(cp_async_4),
    RLCC_ENTRY(cp_async_8),
    RLCC_ENTRY(cp_async_16),
    RLCC_ENTRY(cp_async_groups),
    RLCC_ENTRY(ldmatrix_x1),
    RLCC_ENTRY(ldmatrix_x2),
    RLCC_ENTRY(ldmatrix_x4),
    RLCC_ENTRY(ldmatrix_x1_transposed),
    RLCC_ENTRY(ldmatrix_x2_transposed),
    RLCC_ENTRY(ldmatrix_x4_transposed),
    RLCC_ENTRY(mma_m16n8k16_bf16),
    RLCC_ENTRY(mma_m16n8k16_f16),
    RLCC_SPARSE_ENTRY(mma_sp_m16n8k32_bf16, 0),
    RLCC_SPARSE_ENTRY(mma_sp_m16n8k32_bf16, 1),
    RLCC_SPARSE_ENTRY(mma_sp_m16n8k32_f16, 0),
    RLCC_SPARSE_ENTRY(mma_sp_m16n8k32_f16, 1),
};

}  // namespace
}  // namespace restorelcc::cuda

#define RLCC_TEST_API extern "C" __attribute__((visibility("default")))

// The i-th instruction: its name (null behind the last one), and words per lane in and out.
RLCC_TEST_API const char* rlcc_test_instruction(int i, int* words_in, int* words_out) {
  using restorelcc::cuda::kEntries;
  if (i < 0 || i >= static_cast<int>(sizeof(kEntries) / sizeof(kEntries[0]))) return nullptr;
  *words_in = kEntries[i].words_in;
  *words_out = kEntries[i].words_out;
  return kEntries[i].name;
}

// in [blocks, 32, words_in], out [blocks, 32, words_out], 16-byte aligned device memory. Null, or why it was
// not queued.
RLCC_TEST_API const char* rlcc_test_run_instruction(int i, const void* in, void* out, int blocks, int argument,
                                                    void* stream) {
  return restorelcc::cuda::kEntries[i].run(in, out, blocks, argument, stream);
}
