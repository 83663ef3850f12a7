// What the CPU has and the operating system saves across context switches.
#pragma once

namespace restorelcc {

struct CpuFeatures {
  bool avx2 = false;    // AVX2 + FMA + F16C + BMI1 + BMI2 + POPCNT, ymm state saved
  bool avx512 = false;  // the above + AVX-512 F, BW, DQ, VL, VBMI2, zmm and mask state saved
};

const CpuFeatures& cpu_features();

}  // namespace restorelcc
