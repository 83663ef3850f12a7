// The kernels for AVX-512 with VBMI2 (Ice Lake). Compiled with flags of its own.
#define RLCC_ISA_NAME avx512vbmi2
#define RLCC_EXPAND_NARROW  // vpexpandb, vpexpandw
#include "cpu/vector_avx512.h"
// Vector must be known first.
#include "cpu/kernels.inl"
