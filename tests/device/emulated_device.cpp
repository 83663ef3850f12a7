// What a caller of the emulator's shared library may choose; C, for ctypes.
#include "machine.h"

#define RLCC_TEST_API extern "C" __attribute__((visibility("default")))

// order: 0 first in first out, 1 last in first out, 2 random, 3 random priorities (machine.h).
RLCC_TEST_API void rlcc_test_emulate(int order, unsigned long long seed, int eager_copies,
                                     int multiprocessors) {
  simt::Options& options = simt::options();
  options.order = static_cast<simt::Order>(order);
  options.seed = seed;
  options.eager_copies = eager_copies != 0;
  options.multiprocessors = multiprocessors;
}

// 86 for 8.6.
RLCC_TEST_API void rlcc_test_capability(int capability) { simt::options().capability = capability; }

// Called before each launch; null: nobody is.
RLCC_TEST_API void rlcc_test_watch(void (*watch)(void* stream)) { simt::options().watch = watch; }

struct rlcc_test_statistics {
  unsigned long long launches, copies, mma, mma_sp, ldmatrix;
};

// Since the last call.
RLCC_TEST_API void rlcc_test_take_statistics(rlcc_test_statistics* taken) {
  simt::Statistics& s = simt::statistics();
  *taken = {s.launches, s.copies, s.mma, s.mma_sp, s.ldmatrix};
  s = {};
}
