// The dense rivals against the portable one: a rival that computes something else is no rival. Whole numbers,
// so that every order of the additions gives the same sum.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "dense.h"

namespace restorelcc::bench {
namespace {

constexpr int64_t kOutputs = 7, kInputs = 384;  // four rows at once, and three one by one

uint16_t bf16_of(int integer) {
  const auto value = static_cast<float>(integer);
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

struct Data {
  std::vector<int8_t> w, x;
  std::vector<uint16_t> w_bf16, x_bf16, scales;
  std::vector<float> w_fp32, x_fp32, ordered_x, x_scales;
};

Data make() {
  Data d;
  const auto number = [](int64_t i) { return static_cast<int>((i * 7919 + 13) % 255) - 127; };
  for (int64_t i = 0; i < kOutputs * kInputs; ++i) d.w.push_back(static_cast<int8_t>(number(i)));
  for (int64_t i = 0; i < kInputs; ++i) d.x.push_back(static_cast<int8_t>(number(3 * i + 1) / 16));
  d.w[5] = d.w[6] = -127, d.x[5] = d.x[6] = 127;  // the largest pair sums
  for (int8_t w : d.w) d.w_bf16.push_back(bf16_of(w)), d.w_fp32.push_back(w);
  for (int8_t x : d.x) d.x_bf16.push_back(bf16_of(x)), d.x_fp32.push_back(x);
  d.ordered_x.resize(kInputs);
  order_x(d.x_bf16.data(), kInputs, d.ordered_x.data());
  for (int64_t g = 0; g < kOutputs * kInputs / kScaleColumns; ++g) d.scales.push_back(bf16_of(1 << (g % 3)));
  for (int64_t g = 0; g < kInputs / kScaleColumns; ++g) d.x_scales.push_back(g % 2 == 0 ? 1.0f : 0.5f);
  return d;
}

struct Results {
  std::vector<float> fp32, bf16, int8;
  uint64_t read;
  bool operator==(const Results& other) const {
    return fp32 == other.fp32 && bf16 == other.bf16 && int8 == other.int8 && read == other.read;
  }
};

Results run(const DenseKernels& kernels, const Data& d) {
  Results r{std::vector<float>(kOutputs), std::vector<float>(kOutputs), std::vector<float>(kOutputs), 0};
  kernels.fp32(d.w_fp32.data(), d.x_fp32.data(), r.fp32.data(), kInputs, 0, kOutputs);
  kernels.bf16(d.w_bf16.data(), d.x_bf16.data(), d.ordered_x.data(), r.bf16.data(), kInputs, 0, kOutputs);
  kernels.int8(d.w.data(), d.scales.data(), d.x.data(), d.x_scales.data(), r.int8.data(), kInputs, 0, kOutputs);
  alignas(64) char memory[2048];
  for (size_t i = 0; i < sizeof(memory); ++i) memory[i] = static_cast<char>(i * 31);
  r.read = kernels.read(memory, sizeof(memory));
  return r;
}

}  // namespace
}  // namespace restorelcc::bench

int main() {
  using namespace restorelcc::bench;
  const Data data = make();
  const Results expected = run(kDensePortable, data);
#if defined(RLCC_EMULATE_AVX512)
  const DenseKernels& tested = kDenseAvx512;
#else
  const DenseKernels& tested = dense_kernels();
#endif
  const bool same = run(tested, data) == expected && expected.fp32 == expected.bf16;
  std::printf("dense %s: %s\n", tested.isa, same ? "as the portable one" : "FAILED");
  return same ? 0 : 1;
}
