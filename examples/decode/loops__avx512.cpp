#define DECODE_LOOPS kLoopsAvx512
#define DECODE_ISA "avx512"
#include "loops.inl"
