#define DECODE_LOOPS kLoopsBaseline
#define DECODE_ISA "baseline"
#include "loops.inl"
