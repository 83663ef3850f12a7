// The portable kernels: no instruction set beyond what the compiler targets.
#define RLCC_ISA_NAME scalar
#include "cpu/vector_portable.h"
// Vector must be known first.
#include "cpu/kernels.inl"
