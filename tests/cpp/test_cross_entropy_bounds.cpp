// The cross entropies at the edge of their memory, on every instruction set.
#include "check.h"

#if defined(__unix__) || defined(__APPLE__)

#include "cross_entropy_bounds.h"

using namespace restorelcc::test;

int main() {
  catch_faults();
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    guarded_shapes(isa, {rlcc_linear_cross_entropy, rlcc_linear_cross_entropy_backward, rlcc_head_contrast});
  }
  return report("cross_entropy_bounds");
}

#else

int main() {
  restorelcc::test::skip("pages without access need mmap and mprotect, which this system lacks");
  return restorelcc::test::report("cross_entropy_bounds");
}

#endif
