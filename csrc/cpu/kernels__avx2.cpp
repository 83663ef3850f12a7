// The kernels for AVX2, FMA, BMI2. Compiled with flags of its own.
#define RLCC_ISA_NAME avx2
#include "cpu/vector_avx2.h"
// Vector must be known first.
#include "cpu/kernels.inl"
