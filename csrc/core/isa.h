// Which instruction sets exist, which this CPU has, and which one is in use.
#pragma once

#include "core/status.h"

namespace restorelcc {

// Ordered: a larger one is better, and a CPU that has it has the smaller ones.
enum class Isa { kScalar = 0, kAvx2 = 1, kAvx512F = 2, kAvx512Vbmi2 = 3, kAvx512Bf16 = 4 };
constexpr int kIsaCount = 5;

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);
bool isa_available(Isa isa);  // compiled, and this CPU and operating system can run it

// The one in use. Fails with RLCC_UNSUPPORTED while RLCC_ISA asks for something this machine lacks,
// until force_isa() is called: a wrong wish is never replaced in silence.
Status current_isa(Isa* isa);
Status force_isa(const char* name);  // null or "": the best there is

// The instruction set that multiplies bf16 by bf16 fastest, one row or many: that which widens them to fp32
// where the CPU's dot product of bf16 pairs is slow. `isa` itself when it was asked for by name.
Isa isa_for_bf16_pairs(Isa isa);

}  // namespace restorelcc
