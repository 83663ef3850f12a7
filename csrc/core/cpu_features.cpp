#include "core/cpu_features.h"

#if RLCC_X86_KERNELS
#include <cpuid.h>
#endif

namespace restorelcc {
namespace {

#if RLCC_X86_KERNELS

constexpr bool bit(unsigned word, int index) { return ((word >> index) & 1u) != 0; }

// XCR0: which register files the operating system saves. The raw instruction, because the intrinsic
// would need -mxsave for this whole file.
unsigned saved_register_files() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

CpuFeatures detect() {
  CpuFeatures found;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool fma = bit(c, 12), popcnt = bit(c, 23), osxsave = bit(c, 27), f16c = bit(c, 29);
  if (!osxsave) return found;
  const unsigned saved = saved_register_files();
  constexpr unsigned kYmm = 0x06;  // xmm, ymm
  constexpr unsigned kZmm = 0xe6;  // xmm, ymm, mask registers, zmm0-15 upper halves, zmm16-31

  unsigned a7 = 0, b7 = 0, c7 = 0, d7 = 0;
  if (!__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return found;
  const bool bmi1 = bit(b7, 3), avx2 = bit(b7, 5), bmi2 = bit(b7, 8);
  found.avx2 = avx2 && fma && f16c && bmi1 && bmi2 && popcnt && (saved & kYmm) == kYmm;

  const bool f = bit(b7, 16), dq = bit(b7, 17), bw = bit(b7, 30), vl = bit(b7, 31);
  const bool vbmi2 = bit(c7, 6), vnni = bit(c7, 11);
  unsigned a71 = 0, b71 = 0, c71 = 0, d71 = 0;
  const bool bf16 = a7 >= 1 && __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71) && bit(a71, 5);
  found.avx512f = found.avx2 && f && dq && bw && vl && (saved & kZmm) == kZmm;
  found.avx512vbmi2 = found.avx512f && vbmi2;
  found.avx512bf16 = found.avx512vbmi2 && vnni && bf16;
  // By maker: Zen 4 starts one vdpbf16ps a cycle, as many as FMAs on 512 bits. Sapphire Rapids takes 0.70 ns
  // each, a FMA 0.17 (measured).
  __get_cpuid(0, &a, &b, &c, &d);
  found.slow_bf16_dot = b == signature_INTEL_ebx;
#if defined(RLCC_EMULATE_AVX512)
  found.avx512f = found.avx512vbmi2 = found.avx512bf16 = true;  // the tests' build, whose kernels are emulated
#endif
  return found;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace restorelcc
