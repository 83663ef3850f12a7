// The fragment layouts that the emulator models, and that kernels are written to, against CuTe's traits (mma,
// ldmatrix) and CUTLASS's order of metadata (mma.sp). Together with test_ptx_wrappers.py, which compares the
// operands of the wrappers with those of CuTe's own, this ties what nvcc compiles to what the emulator runs.
#include <cstring>
#include <random>

#include "check_launch.h"
#include "cuda/device.cuh"
#include "cute_layouts.h"

using namespace restorelcc;
using namespace restorelcc::cuda;
using namespace restorelcc::test;

namespace {

// One warp multiplies fragments that the host has laid out: a [32][4], b [32][2], c [32][4] registers.
template <bool kBf16>
__global__ void multiply(const uint32_t* a, const uint32_t* b, float* c) {
  const unsigned lane = threadIdx.x;
  uint32_t fa[4], fb[2];
  float sums[4] = {};
  for (unsigned i = 0; i < 4; ++i) fa[i] = a[lane * 4 + i];
  for (unsigned i = 0; i < 2; ++i) fb[i] = b[lane * 2 + i];
  if (kBf16) {
    ptx::mma_m16n8k16_bf16(sums, fa, fb, sums);
  } else {
    ptx::mma_m16n8k16_f16(sums, fa, fb, sums);
  }
  for (unsigned i = 0; i < 4; ++i) c[lane * 4 + i] = sums[i];
}

template <bool kBf16, int kSelector>
__global__ void multiply_sparse(const uint32_t* a, const uint32_t* b, const uint32_t* metadata, float* c) {
  const unsigned lane = threadIdx.x;
  uint32_t fa[4], fb[4];
  float sums[4] = {};
  for (unsigned i = 0; i < 4; ++i) fa[i] = a[lane * 4 + i];
  for (unsigned i = 0; i < 4; ++i) fb[i] = b[lane * 4 + i];
  if (kBf16) {
    ptx::mma_sp_m16n8k32_bf16<kSelector>(sums, fa, fb, sums, metadata[lane]);
  } else {
    ptx::mma_sp_m16n8k32_f16<kSelector>(sums, fa, fb, sums, metadata[lane]);
  }
  for (unsigned i = 0; i < 4; ++i) c[lane * 4 + i] = sums[i];
}

// rows [32][8 words], a row's 16 bytes in the first four; lane l points at row[l].
template <int kCount, bool kTransposed>
__global__ void load(const uint32_t* rows, const int* row, uint32_t* out) {
  RLCC_SHARED(uint4, shared, 32 * 2);
  const unsigned lane = threadIdx.x;
  uint32_t* const words = reinterpret_cast<uint32_t*>(shared);
  for (unsigned i = lane; i < 32 * 8; i += 32) words[i] = rows[i];
  __syncthreads();
  uint32_t r[kCount];
  const void* const from = words + row[lane] * 8;
  if constexpr (kCount == 1) kTransposed ? ptx::ldmatrix_x1_transposed(r, from) : ptx::ldmatrix_x1(r, from);
  if constexpr (kCount == 2) kTransposed ? ptx::ldmatrix_x2_transposed(r, from) : ptx::ldmatrix_x2(r, from);
  if constexpr (kCount == 4) kTransposed ? ptx::ldmatrix_x4_transposed(r, from) : ptx::ldmatrix_x4(r, from);
  for (unsigned i = 0; i < kCount; ++i) out[lane * kCount + i] = r[i];
}

uint16_t half_bits(bool bf16, float value) { return bf16 ? bf16_of_float(value) : f16_of_float(value); }

template <bool kBf16>
void dense(const MultiplyLayout& layout) {
  std::mt19937 random(61);
  float a[16][16], b[16][8];
  for (auto& row : a) {
    for (float& v : row) v = static_cast<float>(static_cast<int>(random() % 31) - 15);
  }
  for (auto& row : b) {
    for (float& v : row) v = static_cast<float>(static_cast<int>(random() % 31) - 15);
  }
  uint16_t fa[32][8], fb[32][4];
  uint32_t ra[128], rb[64];
  float c[32][4];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i)
      fa[lane][i] = half_bits(kBf16, a[layout.a[lane][i] % 16][layout.a[lane][i] / 16]);
    for (int i = 0; i < 4; ++i) fb[lane][i] = half_bits(kBf16, b[layout.b[lane][i] / 8][layout.b[lane][i] % 8]);
  }
  std::memcpy(ra, fa, sizeof(ra));
  std::memcpy(rb, fb, sizeof(rb));
  CHECK_LAUNCHED(launch(multiply<kBf16>, 1, 32, 0, nullptr, ra, rb, &c[0][0]));
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int m = layout.c[lane][i] % 16, n = layout.c[lane][i] / 16;
      float expected = 0;
      for (int k = 0; k < 16; ++k) expected += a[m][k] * b[k][n];
      CHECK(c[lane][i] == expected) << (kBf16 ? "bf16" : "f16") << " lane " << lane << " element " << i;
    }
  }
}

// CuTe has no traits of mma.sp m16n8k32 with 16-bit elements. The fragments are those of the PTX ISA ("Matrix
// fragments for sparse mma.m16n8k32 with .f16 and .bf16 types"), written out here:
//   a: kept value i of 8 is of row g (i of 0, 1, 4, 5) or g + 8, and stands in the group of four columns that
//   begins at
//      4 t (i < 4) or 4 t + 16: the first kept one of the group, then the second
//   b: value i of 8 is of column g and row 2 t + i % 2 + 8 (i / 2)                   c: as dense
// and the metadata is laid out by CUTLASS for 32 rows, of which selector 0 takes the first 16 and 1 the others.
template <bool kBf16, int kSelector>
void sparse() {
  constexpr int kPairs[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
  std::mt19937 random(62);
  const auto integer = [&] { return static_cast<float>(static_cast<int>(random() % 30) - 15) + 0.5f; };
  float a[32][32] = {}, b[32][8];
  uint16_t metadata[32][2] = {};
  for (auto& row : b) {
    for (float& v : row) v = integer();
  }
  for (int m = 0; m < 32; ++m) {
    for (int four = 0; four < 8; ++four) {
      const auto& pair = kPairs[random() % 6];
      for (int h = 0; h < 2; ++h) {
        a[m][four * 4 + pair[h]] = integer();
        metadata[m][four / 4] =
            static_cast<uint16_t>(metadata[m][four / 4] | pair[h] << (four % 4 * 4 + h * 2));
      }
    }
  }
  uint16_t fa[32][8], fb[32][8];
  uint32_t ra[128], rb[128], words[32];
  float c[32][4];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int m = kSelector * 16 + g + ((i & 2) != 0 ? 8 : 0), first = 4 * t + (i < 4 ? 0 : 16);
      int kept = i % 2;  // how many kept ones to pass over
      for (int k = first; k < first + 4; ++k) {
        if (a[m][k] != 0 && kept-- == 0) fa[lane][i] = half_bits(kBf16, a[m][k]);
      }
      fb[lane][i] = half_bits(kBf16, b[2 * t + i % 2 + i / 2 * 8][g]);
    }
  }
  std::memcpy(ra, fa, sizeof(ra));
  std::memcpy(rb, fb, sizeof(rb));
  cutlass_metadata_words(metadata, words);
  CHECK_LAUNCHED(launch(multiply_sparse<kBf16, kSelector>, 1, 32, 0, nullptr, ra, rb, words, &c[0][0]));
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int m = kSelector * 16 + lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
      float expected = 0;
      for (int k = 0; k < 32; ++k) expected += a[m][k] * b[k][n];
      CHECK(c[lane][i] == expected) << (kBf16 ? "bf16" : "f16") << " selector " << kSelector << " lane "
                                    << lane;
    }
  }
}

template <int kCount, bool kTransposed>
void load_matrices() {
  const LoadLayout layout = cute_load(kCount, kTransposed);
  std::mt19937 random(63);
  uint32_t rows[32][8], out[32][kCount];
  int row[32];
  for (auto& words : rows) {
    for (uint32_t& word : words) word = static_cast<uint32_t>(random());
  }
  // A lane's row lies anywhere; which row of the source it is, CuTe says.
  for (int lane = 0; lane < 32; ++lane) row[lane] = (lane * 13 + 5) % 32;
  int lane_of_row[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (layout.lane_row[lane] >= 0) lane_of_row[layout.lane_row[lane]] = lane;
  }
  CHECK_LAUNCHED(launch(load<kCount, kTransposed>, 1, 32, 0, nullptr, &rows[0][0], row, &out[0][0]));
  for (int lane = 0; lane < 32; ++lane) {
    for (int bit = 0; bit < 32 * kCount; ++bit) {
      const int from = layout.bit[lane][bit];
      const uint32_t* const source = rows[row[lane_of_row[from / 128]]];
      CHECK((out[lane][bit / 32] >> (bit % 32) & 1) == (source[from % 128 / 32] >> (from % 32) & 1))
          << "ldmatrix x" << kCount << (kTransposed ? " transposed" : "") << " lane " << lane << " bit " << bit;
    }
  }
}

}  // namespace

int main() {
  dense<true>(cute_multiply_bf16());
  dense<false>(cute_multiply_f16());
  sparse<true, 0>();
  sparse<true, 1>();
  sparse<false, 0>();
  sparse<false, 1>();
  load_matrices<1, false>();
  load_matrices<2, false>();
  load_matrices<4, false>();
  load_matrices<1, true>();
  load_matrices<2, true>();
  load_matrices<4, true>();
  return report("layouts against CuTe");
}
