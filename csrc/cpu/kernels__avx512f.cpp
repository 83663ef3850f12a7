// The kernels for AVX-512 F, BW, DQ, VL (Skylake-X). Compiled with flags of its own.
#define RLCC_ISA_NAME avx512f
#include "cpu/vector_avx512.h"
// Vector must be known first.
#include "cpu/kernels.inl"
