// The kernels that kernels.def lists for one instruction set. The including file defines RLCC_ISA_NAME and, before this, a type
// Vector. Everything but the registered objects is local to the translation unit: an inline function
// shared by the linker could otherwise carry this instruction set's code to a CPU that lacks it. For the
// same reason no standard library function is instantiated here.
#include <cstdint>
#include <cstring>

#include "cpu/kernel_types.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"  // of kernels that this instruction set takes from the one below
// In this order: each uses what stands before it.
// clang-format off
#include "cpu/output.inl"
#include "cpu/decode.inl"
#include "cpu/decode_int8.inl"
#include "cpu/decode_loop.inl"
#include "cpu/panel_sources.inl"
#include "cpu/panel_pairs.inl"
#include "cpu/panels.inl"
#include "cpu/spmm.inl"
#include "cpu/dense_panels.inl"
#include "cpu/dense_linear.inl"
#include "cpu/cross_entropy.inl"
#include "cpu/moments.inl"
#include "cpu/grad_comp.inl"
#include "cpu/kernels.def"
// clang-format on
#pragma GCC diagnostic pop

namespace restorelcc::cpu {
namespace {
using value_f32 = float;
using value_bf16 = Bf16;
using value_f16 = F16;
using value_i8 = int8_t;
}  // namespace

#define RLCC_DEFINE(op, values, shape, isa)                            \
  extern const op##_##shape##_kernel op##_##values##_##shape##__##isa; \
  const op##_##shape##_kernel op##_##values##_##shape##__##isa = op##_##shape##_of<value_##values>;
#define RLCC_LIST_OF(isa) RLCC_KERNELS_##isa
#define RLCC_DEFINE_ALL(isa) RLCC_LIST_OF(isa)(RLCC_DEFINE)
RLCC_DEFINE_ALL(RLCC_ISA_NAME)
#undef RLCC_DEFINE_ALL
#undef RLCC_LIST_OF
#undef RLCC_DEFINE

}  // namespace restorelcc::cpu
