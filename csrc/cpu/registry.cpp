#include "cpu/registry.h"

#include <cstring>

namespace restorelcc::cpu {
namespace {

struct Entry {
  const char* family;  // "<op>_<shape>"
  const char* op;
  const char* name;
  const char* values;
  const char* isa;
  const void* kernel;
};

constexpr Entry kEntries[] = {
#define RLCC_ENTRY(op, values, shape, isa) \
  {#op "_" #shape, #op, #op "_" #values "_" #shape "__" #isa, #values, #isa, &op##_##values##_##shape##__##isa},
    RLCC_KERNELS(RLCC_ENTRY)
#undef RLCC_ENTRY
};
constexpr int64_t kEntryCount = sizeof(kEntries) / sizeof(kEntries[0]);

struct Infos {
  rlcc_kernel_info rows[kEntryCount];

  Infos() {
    for (int64_t i = 0; i < kEntryCount; ++i) {
      int32_t available = 0;
      for (int isa = 0; isa < kIsaCount; ++isa) {
        if (std::strcmp(isa_name(static_cast<Isa>(isa)), kEntries[i].isa) == 0) {
          available = isa_available(static_cast<Isa>(isa)) ? 1 : 0;
        }
      }
      rows[i] = {kEntries[i].op, kEntries[i].name, kEntries[i].isa, available};
    }
  }
};

rlcc_dtype dtype_of(const char* values) {
  if (std::strcmp(values, "f32") == 0) return RLCC_F32;
  if (std::strcmp(values, "bf16") == 0) return RLCC_BF16;
  return std::strcmp(values, "f16") == 0 ? RLCC_F16 : RLCC_I8;
}

// Every (op, shape) is listed for every dtype that its validation lets through and the lowest instruction set,
// and an instruction set without a kernel of its own has that of the next one below, so the search cannot fail.
template <class Kernel>
struct Table {
  const Kernel* kernels[4][kIsaCount] = {};

  explicit Table(const char* family) {
    for (const Entry& entry : kEntries) {
      if (std::strcmp(entry.family, family) != 0) continue;
      const rlcc_dtype values = dtype_of(entry.values);
      for (int isa = 0; isa < kIsaCount; ++isa) {
        if (std::strcmp(isa_name(static_cast<Isa>(isa)), entry.isa) == 0) {
          kernels[values][isa] = static_cast<const Kernel*>(entry.kernel);
        }
      }
    }
    for (auto& of_values : kernels) {
      for (int isa = 1; isa < kIsaCount; ++isa) {
        if (of_values[isa] == nullptr) of_values[isa] = of_values[isa - 1];
      }
    }
  }
  const Kernel& at(rlcc_dtype values, Isa isa) const { return *kernels[values][static_cast<int>(isa)]; }
};

}  // namespace

const sparse_linear_decode_kernel& sparse_linear_decode(rlcc_dtype values, Isa isa) {
  static const Table<sparse_linear_decode_kernel> table("sparse_linear_decode");
  return table.at(values, isa);
}

const panel_kernel& sparse_linear_panel(rlcc_dtype values, Isa isa) {
  static const Table<panel_kernel> table("sparse_linear_panel");
  return table.at(values, isa);
}

const sparse_linear_spmm_kernel& sparse_linear_spmm(rlcc_dtype values, Isa isa) {
  static const Table<sparse_linear_spmm_kernel> table("sparse_linear_spmm");
  return table.at(values, isa);
}

const sparse_linear_grad_values_sddmm_kernel& sparse_linear_grad_values_sddmm(rlcc_dtype values, Isa isa) {
  static const Table<sparse_linear_grad_values_sddmm_kernel> table("sparse_linear_grad_values_sddmm");
  return table.at(values, isa);
}

const dense_linear_decode_kernel& dense_linear_decode(rlcc_dtype values, Isa isa) {
  static const Table<dense_linear_decode_kernel> table("dense_linear_decode");
  return table.at(values, isa);
}

const panel_kernel& dense_linear_panel(rlcc_dtype values, Isa isa) {
  static const Table<panel_kernel> table("dense_linear_panel");
  return table.at(values, isa);
}

const panel_kernel& sparse_linear_grad_x_panel(rlcc_dtype values, Isa isa) {
  static const Table<panel_kernel> table("sparse_linear_grad_x_panel");
  return table.at(values, isa);
}

const panel_kernel& sparse_linear_grad_values_panel(rlcc_dtype values, Isa isa) {
  static const Table<panel_kernel> table("sparse_linear_grad_values_panel");
  return table.at(values, isa);
}

const sparse_linear_grad_comp_block_kernel& sparse_linear_grad_comp_block(rlcc_dtype values, Isa isa) {
  static const Table<sparse_linear_grad_comp_block_kernel> table("sparse_linear_grad_comp_block");
  return table.at(values, isa);
}

const linear_cross_entropy_panel_kernel& linear_cross_entropy_panel(rlcc_dtype values, Isa isa) {
  static const Table<linear_cross_entropy_panel_kernel> table("linear_cross_entropy_panel");
  return table.at(values, isa);
}

const head_moments_block_kernel& head_moments_block(rlcc_dtype values, Isa isa) {
  static const Table<head_moments_block_kernel> table("head_moments_block");
  return table.at(values, isa);
}

const rlcc_kernel_info* kernel_infos(int64_t* count) {
  static const Infos infos;
  *count = kEntryCount;
  return infos.rows;
}

}  // namespace restorelcc::cpu
