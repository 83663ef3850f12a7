// What the CPU has and the operating system saves across context switches.
#pragma once

namespace restorelcc {

struct CpuFeatures {
  bool avx2 = false;           // AVX2 + FMA + F16C + BMI1 + BMI2 + POPCNT, ymm state saved
  bool avx512f = false;        // the above + AVX-512 F, BW, DQ, VL (Skylake-X), zmm and mask state saved
  bool avx512vbmi2 = false;    // the above + VBMI2 (Ice Lake, Zen 4)
  bool avx512bf16 = false;     // the above + VNNI, BF16 (Zen 4, Sapphire Rapids)
  bool slow_bf16_dot = false;  // vdpbf16ps does fewer multiply-adds a cycle than a FMA of fp32 (Intel)
};

const CpuFeatures& cpu_features();

}  // namespace restorelcc
