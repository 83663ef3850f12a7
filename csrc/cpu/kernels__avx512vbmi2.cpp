// The kernels for AVX-512 F, BW, DQ, VL, VBMI2. Compiled with flags of its own.
#define RLCC_ISA_NAME avx512
#include "cpu/vector_avx512.h"
// Vector must be known first.
#include "cpu/kernels.inl"
