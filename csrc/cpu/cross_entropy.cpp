#include "cpu/ops.h"
#include "ref/reference.h"

namespace restorelcc::cpu {

// The oracles serve every instruction set: right, and slow.
void linear_cross_entropy(const rlcc_linear_cross_entropy_params& p, Isa) { reference::linear_cross_entropy(p); }

void linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params& p, Isa) {
  reference::linear_cross_entropy_backward(p);
}

void head_contrast(const rlcc_head_contrast_params& p, Isa) { reference::head_contrast(p); }

}  // namespace restorelcc::cpu
