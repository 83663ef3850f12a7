// The kernels for AVX-512 with VBMI2, VNNI and BF16 (Zen 4, Sapphire Rapids). Compiled with flags of its own.
#define RLCC_ISA_NAME avx512bf16
#define RLCC_EXPAND_NARROW  // vpexpandb, vpexpandw
#define RLCC_DOT_BF16       // vdpbf16ps, and vpdpbusd with it
#include "cpu/vector_avx512.h"
// Vector must be known first.
#include "cpu/kernels.inl"
