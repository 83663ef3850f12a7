// The registry of the core, in which every kernel counts its calls. Takes the place of csrc/cpu/registry.cpp in
// the test that asks whether each kernel is reached.
#define sparse_linear_decode registered_sparse_linear_decode
#define sparse_linear_panel registered_sparse_linear_panel
#define sparse_linear_spmm registered_sparse_linear_spmm
#define sparse_linear_grad_values_sddmm registered_sparse_linear_grad_values_sddmm
#define dense_linear_decode registered_dense_linear_decode
#define dense_linear_panel registered_dense_linear_panel
#define sparse_linear_grad_x_panel registered_sparse_linear_grad_x_panel
#define sparse_linear_grad_values_panel registered_sparse_linear_grad_values_panel
#define sparse_linear_grad_comp_block registered_sparse_linear_grad_comp_block
#define linear_cross_entropy_panel registered_linear_cross_entropy_panel
#define head_moments_block registered_head_moments_block
#include "cpu/registry.cpp"
#undef sparse_linear_decode
#undef sparse_linear_panel
#undef sparse_linear_spmm
#undef sparse_linear_grad_values_sddmm
#undef dense_linear_decode
#undef dense_linear_panel
#undef sparse_linear_grad_x_panel
#undef sparse_linear_grad_values_panel
#undef sparse_linear_grad_comp_block
#undef linear_cross_entropy_panel
#undef head_moments_block

#include <atomic>

#include "counted_kernels.h"

namespace restorelcc::cpu {
namespace {

// A copy of kReal whose run() counts.
template <const auto& kReal, class Run>
struct Counted;
template <const auto& kReal, class... Arguments>
struct Counted<kReal, void (*)(Arguments...)> {
  static inline std::atomic<long> calls{0};
  static void run(Arguments... arguments) {
    calls.fetch_add(1, std::memory_order_relaxed);
    kReal.run(arguments...);
  }
};

template <const auto& kReal>
using CountedOf = Counted<kReal, decltype(kReal.run)>;

// The counting copy of the kernel that the registry found.
template <class Kernel>
struct Copies {
  Kernel copies[kEntryCount];
  const Kernel* reals[kEntryCount];
  int64_t count = 0;

  template <const auto& kReal>
  void add() {
    if constexpr (std::is_same_v<std::decay_t<decltype(kReal)>, Kernel>) {
      reals[count] = &kReal;
      copies[count] = kReal;
      copies[count++].run = &CountedOf<kReal>::run;
    }
  }
  Copies() {
#define RLCC_ADD(op, values, shape, isa) add<op##_##values##_##shape##__##isa>();
    RLCC_KERNELS(RLCC_ADD)
#undef RLCC_ADD
  }
};

template <class Kernel>
const Kernel& counted(const Kernel& real) {
  static const Copies<Kernel> copies;
  for (int64_t i = 0; i < copies.count; ++i) {
    if (copies.reals[i] == &real) return copies.copies[i];
  }
  return real;  // then it has no calls, and the test says so
}

}  // namespace

const sparse_linear_decode_kernel& sparse_linear_decode(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_decode(values, isa));
}
const panel_kernel& sparse_linear_panel(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_panel(values, isa));
}
const sparse_linear_spmm_kernel& sparse_linear_spmm(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_spmm(values, isa));
}
const sparse_linear_grad_values_sddmm_kernel& sparse_linear_grad_values_sddmm(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_grad_values_sddmm(values, isa));
}
const dense_linear_decode_kernel& dense_linear_decode(rlcc_dtype values, Isa isa) {
  return counted(registered_dense_linear_decode(values, isa));
}
const panel_kernel& dense_linear_panel(rlcc_dtype values, Isa isa) {
  return counted(registered_dense_linear_panel(values, isa));
}
const panel_kernel& sparse_linear_grad_x_panel(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_grad_x_panel(values, isa));
}
const panel_kernel& sparse_linear_grad_values_panel(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_grad_values_panel(values, isa));
}
const sparse_linear_grad_comp_block_kernel& sparse_linear_grad_comp_block(rlcc_dtype values, Isa isa) {
  return counted(registered_sparse_linear_grad_comp_block(values, isa));
}
const linear_cross_entropy_panel_kernel& linear_cross_entropy_panel(rlcc_dtype values, Isa isa) {
  return counted(registered_linear_cross_entropy_panel(values, isa));
}
const head_moments_block_kernel& head_moments_block(rlcc_dtype values, Isa isa) {
  return counted(registered_head_moments_block(values, isa));
}

}  // namespace restorelcc::cpu

namespace restorelcc::test {

std::map<std::string, long> kernel_calls() {
  std::map<std::string, long> calls;
#define RLCC_CALLS(op, values, shape, isa)      \
  calls[#op "_" #values "_" #shape "__" #isa] = \
      cpu::CountedOf<cpu::op##_##values##_##shape##__##isa>::calls.load();
  RLCC_KERNELS(RLCC_CALLS)
#undef RLCC_CALLS
  return calls;
}

}  // namespace restorelcc::test
