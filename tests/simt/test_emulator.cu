// The emulator does what the device does: each built-in against its definition, under every schedule.
#include <cmath>
#include <random>
#include <vector>

#include "check_launch.h"
#include "cuda/device.cuh"

using namespace restorelcc;
using namespace restorelcc::cuda;
using namespace restorelcc::test;

namespace {

__global__ void block_sum(const float* x, int count, float* out) {
  RLCC_SHARED(float, partial, 8);
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += 256) sum += x[i];
  for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < 8 ? partial[threadIdx.x] : 0.0f;
    for (int bits = 4; bits > 0; bits /= 2)
      sum += __shfl_down_sync(0xffffffffu, sum, static_cast<unsigned>(bits));
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

__global__ void warp_words(unsigned* out) {
  const unsigned lane = threadIdx.x;
  unsigned* own = out + lane * 8;
  own[0] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  own[1] = static_cast<unsigned>(__any_sync(0xffffffffu, lane == 7)) * 2 +
           static_cast<unsigned>(__all_sync(0xffffffffu, lane < 31));
  own[2] = __shfl_up_sync(0xffffffffu, lane, 1);
  own[3] = __shfl_sync(0xffffffffu, lane, 3, 8);
  own[4] = __match_any_sync(0xffffffffu, lane / 4);
  own[5] = lane % 2 == 0 ? __shfl_xor_sync(0x55555555u, lane, 2) : __shfl_xor_sync(0xaaaaaaaau, lane, 4);
  own[6] = __byte_perm(0x83828180u, 0x07060504u, 0x40f2u);
  own[7] = __funnelshift_r(0x12345678u, 0x9abcdef0u, 8);
}

// Neighbours exchange through shared memory, within the warp.
__global__ void reverse_in_warp(int* out) {
  RLCC_SHARED(int, place, 32);
  for (int round = 0; round < 20; ++round) {
    place[threadIdx.x] = static_cast<int>(threadIdx.x) + round;
    __syncwarp();
    out[threadIdx.x] = place[31 - threadIdx.x];
    __syncwarp();
  }
}

__global__ void copies(const unsigned char* in, unsigned char* out, int bytes) {
  RLCC_DYNAMIC_SHARED(unsigned char, staged);
  const int at = static_cast<int>(threadIdx.x) * 16;
  ptx::cp_async_16(staged + at, in + at, bytes);
  ptx::cp_async_commit();
  ptx::cp_async_8(staged + 512 + at, in + at);
  ptx::cp_async_4(staged + 512 + at + 8, in + at + 8);
  ptx::cp_async_4(staged + 512 + at + 12, in + at + 12, 0);
  ptx::cp_async_commit();
  ptx::cp_async_wait_group<1>();
  for (int i = 0; i < 16; ++i) out[at + i] = staged[at + i];
  ptx::cp_async_wait_group<0>();
  for (int i = 0; i < 16; ++i) out[512 + at + i] = staged[512 + at + i];
}

// c[16, 8] = a[16, 16] bt[8, 16]ᵀ by ldmatrix and mma; transposed_b: b[16, 8] instead.
template <bool kTransposedB>
__global__ void multiply(const uint16_t* a, const uint16_t* b, float* c) {
  RLCC_SHARED(uint16_t, tiles, 16 * 16 + 16 * 8);
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) tiles[i] = a[i];
  for (unsigned i = lane; i < 128; i += 32) tiles[256 + i] = b[i];
  __syncthreads();
  uint32_t fa[4], fb[2];
  ptx::ldmatrix_x4(fa, tiles + lane % 16 * 16 + lane / 16 * 8);
  if (kTransposedB) {
    ptx::ldmatrix_x2_transposed(fb, tiles + 256 + lane % 16 * 8);
  } else {
    ptx::ldmatrix_x2(fb, tiles + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  }
  float sums[4] = {1, 1, 1, 1};
  ptx::mma_m16n8k16_bf16(sums, fa, fb, sums);
  for (unsigned i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

// c[16, 8] = a b, a[16, 32] at two of four given as values[16, 16] and metadata[16, 2], bt[8, 32].
template <int kSelector>
__global__ void multiply_sparse(const uint16_t* values, const uint16_t* metadata, const uint16_t* bt,
                                float* c) {
  const unsigned lane = threadIdx.x, g = lane / 4, t = lane % 4;
  const auto pair = [](const uint16_t* p) {
    return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 16;
  };
  uint32_t a[4], b[4];
  for (unsigned i = 0; i < 4; ++i) {
    a[i] = pair(values + (g + i % 2 * 8) * 16 + t * 2 + i / 2 * 8);
    b[i] = pair(bt + g * 32 + t * 2 + i * 8);
  }
  // Only the lanes that the selector names have metadata to give.
  uint32_t e = 0x12345678u;
  if (t / 2 == kSelector)
    e = metadata[g * 2 + t % 2] | static_cast<uint32_t>(metadata[(g + 8) * 2 + t % 2]) << 16;
  float sums[4] = {};
  ptx::mma_sp_m16n8k32_f16<kSelector>(sums, a, b, sums, e);
  for (unsigned i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i];
}

__global__ void count_threads(int* total, float* sum) {
  atomicAdd(total, 1);
  atomicAdd(sum, 0.5f);
  atomicMax(total + 1, static_cast<int>(blockIdx.y * 100 + threadIdx.y));
}

__global__ void powers(const float* x, float* out) { out[threadIdx.x] = ptx::exp2_approximate(x[threadIdx.x]); }

void powers_of_two() {
  const float x[] = {0, -1, 10, -126, -127, -INFINITY, INFINITY, NAN},
              expected[] = {1, 0.5f, 1024, 0x1p-126f, 0, 0, INFINITY};
  float out[8];
  CHECK_LAUNCHED(launch(powers, 1, 8, 0, nullptr, x, out));
  for (int i = 0; i < 7; ++i) CHECK(out[i] == expected[i]) << x[i] << ": " << out[i];
  CHECK(std::isnan(out[7]));
}

void sums() {
  std::vector<float> x(1000);
  float total = 0;
  for (size_t i = 0; i < x.size(); ++i) total += x[i] = static_cast<float>(i % 7);
  under_every_schedule(3, [&](const std::string& name) {
    float out[3] = {};
    CHECK_LAUNCHED(launch(block_sum, 3, 256, 0, nullptr, x.data(), 1000, out));
    CHECK(out[0] == total && out[1] == total && out[2] == total) << name;
  });
}

void words() {
  under_every_schedule(3, [&](const std::string& name) {
    std::vector<unsigned> out(32 * 8);
    CHECK_LAUNCHED(launch(warp_words, 1, 32, 0, nullptr, out.data()));
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned* own = out.data() + lane * 8;
      CHECK(own[0] == 0x49249249u) << name;
      CHECK(own[1] == 2) << name;
      CHECK(own[2] == (lane == 0 ? 0 : lane - 1)) << name;
      CHECK(own[3] == lane / 8 * 8 + 3) << name;
      CHECK(own[4] == 0xfu << (lane / 4 * 4)) << name;
      CHECK(own[5] == (lane % 2 == 0 ? lane ^ 2 : lane ^ 4)) << name;
      CHECK(own[6] == 0x04800082u) << name;
      CHECK(own[7] == 0xf0123456u) << name;
    }
    std::vector<int> reversed(32);
    CHECK_LAUNCHED(launch(reverse_in_warp, 1, 32, 0, nullptr, reversed.data()));
    for (int lane = 0; lane < 32; ++lane) CHECK(reversed[static_cast<size_t>(lane)] == 31 - lane + 19) << name;
  });
}

void asynchronous_copies() {
  alignas(16) unsigned char in[512];
  for (size_t i = 0; i < 512; ++i) in[i] = static_cast<unsigned char>(i * 7 + 1);
  under_every_schedule(1, [&](const std::string& name) {
    for (int bytes : {0, 5, 16}) {
      std::vector<unsigned char> out(1024);
      CHECK_LAUNCHED(launch(copies, 1, 32, 1024, nullptr, in, out.data(), bytes));
      for (size_t i = 0; i < 512; ++i) {
        CHECK(out[i] == (static_cast<int>(i % 16) < bytes ? in[i] : 0)) << name;
        CHECK(out[512 + i] == (i % 16 < 12 ? in[i] : 0)) << name;
      }
    }
  });
}

void matrices() {
  std::mt19937 random(3);
  float a[16][32] = {}, b[32][8], expected;
  uint16_t a16[256], bt16[128], b16[128], values[256], metadata[32] = {}, bt_long[256];
  const auto integer = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
  for (auto& row : b) {
    for (float& v : row) v = integer();
  }
  float c[128];
  for (int i = 0; i < 256; ++i) a16[i] = bf16_of_float(a[i / 16][i % 16] = integer());
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 8; ++n) bt16[n * 16 + k] = b16[k * 8 + n] = bf16_of_float(b[k][n]);
  }
  const auto check = [&](int depth, float start, const char* what) {
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        expected = start;
        for (int k = 0; k < depth; ++k) expected += a[m][k] * b[k][n];
        CHECK(c[m * 8 + n] == expected) << what << " " << m << ", " << n;
      }
    }
  };
  CHECK_LAUNCHED(launch(multiply<false>, 1, 32, 0, nullptr, a16, bt16, c));
  check(16, 1, "mma");
  CHECK_LAUNCHED(launch(multiply<true>, 1, 32, 0, nullptr, a16, b16, c));
  check(16, 1, "mma, ldmatrix transposed");

  constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  for (auto& row : a) {
    for (float& v : row) v = 0;
  }
  for (int m = 0; m < 16; ++m) {
    for (int four = 0; four < 8; ++four) {
      const auto& pair = kPairs[random() % 6];
      for (int h = 0; h < 2; ++h) {
        values[m * 16 + four * 2 + h] = f16_of_float(a[m][four * 4 + pair[h]] = integer());
        metadata[m * 2 + four / 4] =
            static_cast<uint16_t>(metadata[m * 2 + four / 4] | pair[h] << (four % 4 * 4 + h * 2));
      }
    }
  }
  for (int k = 0; k < 32; ++k) {
    for (int n = 0; n < 8; ++n) bt_long[n * 32 + k] = f16_of_float(b[k][n]);
  }
  CHECK_LAUNCHED(launch(multiply_sparse<0>, 1, 32, 0, nullptr, values, metadata, bt_long, c));
  check(32, 0, "mma.sp, selector 0");
  CHECK_LAUNCHED(launch(multiply_sparse<1>, 1, 32, 0, nullptr, values, metadata, bt_long, c));
  check(32, 0, "mma.sp, selector 1");
}

// mma.sp against a result that hardware gave: the test "sparse tensor core" of LLVM's MLIR (CUDA/TensorCore/
// sm80/transform-mma-sync, run on an A100): a compressed [i, j] = i + j + 1 at columns 0 and 2 of each four.
void sparse_as_on_hardware() {
  uint16_t values[256], metadata[32], bt[256];
  float c[128];
  for (int i = 0; i < 256; ++i) values[i] = f16_of_float(static_cast<float>(i / 16 + i % 16 + 1));
  for (uint16_t& e : metadata) e = 0x8888;
  for (int i = 0; i < 256; ++i) bt[i] = f16_of_float(static_cast<float>(i / 32 - i % 32));
  CHECK_LAUNCHED(launch(multiply_sparse<0>, 1, 32, 0, nullptr, values, metadata, bt, c));
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      float expected = 0;
      for (int j = 0; j < 16; ++j) expected += static_cast<float>((m + j + 1) * (n - 2 * j));
      CHECK(c[m * 8 + n] == expected) << m << ", " << n;
    }
  }
}

void grids() {
  under_every_schedule(1, [&](const std::string& name) {
    int total[2] = {};
    float sum = 0;
    CHECK_LAUNCHED(launch(count_threads, dim3(3, 4, 2), dim3(5, 6), 0, nullptr, total, &sum));
    CHECK(total[0] == 720 && total[1] == 305 && sum == 360) << name;
  });
  int total[2] = {};
  float sum = 0;
  CHECK_FAULT(launch(count_threads, 1, 1025, 0, nullptr, total, &sum), "1024 threads");
  CHECK_FAULT(launch(count_threads, dim3(1, 0), 32, 0, nullptr, total, &sum), "empty");
  CHECK_FAULT(launch(count_threads, 1, 32, 300 << 10, nullptr, total, &sum), "shared memory");
  CHECK(total[0] == 0);
}

}  // namespace

int main() {
  powers_of_two();
  sums();
  words();
  asynchronous_copies();
  matrices();
  sparse_as_on_hardware();
  grids();
  return report("emulator");
}
