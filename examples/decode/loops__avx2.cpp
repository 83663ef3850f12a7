#define DECODE_LOOPS kLoopsAvx2
#define DECODE_ISA "avx2"
#include "loops.inl"
