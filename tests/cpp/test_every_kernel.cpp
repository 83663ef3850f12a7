// Every kernel of the registry that this CPU has is reached through the C ABI, computes what the reference
// does, and is the one that ran: calls are counted inside (counted_kernels.cpp), not inferred from the
// dispatch.
#include <cstring>
#include <map>

#include "counted_kernels.h"
#include "cross_entropy_cases.h"
#include "dense_linear_cases.h"
#include "grad_comp_cases.h"
#include "sparse_linear_cases.h"

using namespace restorelcc::test;

namespace {

rlcc_dtype dtype_of(const std::string& kernel) {
  if (kernel.find("_f32_") != std::string::npos) return RLCC_F32;
  if (kernel.find("_bf16_") != std::string::npos) return RLCC_BF16;
  return kernel.find("_f16_") != std::string::npos ? RLCC_F16 : RLCC_I8;
}

bool decodes(const std::string& kernel) { return kernel.find("_decode__") != std::string::npos; }

bool skips_zeros(const std::string& kernel) {
  return kernel.find("_spmm__") != std::string::npos || kernel.find("_sddmm__") != std::string::npos;
}

void head_moments(rlcc_dtype dtype, const std::string& name, std::mt19937& random) {
  constexpr int64_t kTokens = 37, kHeads = 2, kDim = 19;
  Matrix dense(kTokens, kHeads * kDim, dtype), pruned(dense);
  fill_normal(dense, random);
  fill_normal(pruned, random);
  std::vector<double> total(kHeads * kDim), gram(kHeads * kDim * kDim), total64(total), gram64(gram);
  rlcc_head_moments_params params{};
  params.z_dense = dense.data();
  params.z_pruned = pruned.data();
  params.tokens = kTokens;
  params.heads = kHeads;
  params.head_dim = kDim;
  params.dense_token_stride = params.pruned_token_stride = kHeads * kDim;
  params.dense_head_stride = params.pruned_head_stride = kDim;
  params.dtype = dtype;
  params.total = total.data();
  params.gram = gram.data();
  CHECK_STATUS(rlcc_head_moments(&params), RLCC_OK);
  params.total = total64.data();
  params.gram = gram64.data();
  CHECK_STATUS(rlcc_head_moments_reference(&params), RLCC_OK);
  for (size_t i = 0; i < gram.size(); ++i) {
    CHECK(std::fabs(gram[i] - gram64[i]) <= 1e-9 * (1 + std::fabs(gram64[i]))) << name << " at " << i;
  }
}

// One call that only this kernel can serve.
void run_kernel(const std::string& op, const std::string& name, std::mt19937& random) {
  const rlcc_dtype values = dtype_of(name);
  if (op == "head_moments") return head_moments(values, name, random);
  if (op == "sparse_linear_grad_comp") return GradCompCase({37, 70, 3, true, true}, values, random).run(name);
  if (op == "linear_cross_entropy") return LossCase({17, 67, 64}, values, random, true).run(name);
  if (op == "dense_linear") {
    return DenseCase(decodes(name) ? 1 : 40, 19, 200, {values, RLCC_F32, RLCC_F32}, random, true, false)
        .run(name);
  }
  const Packed w(random_weight(19, 200, dense_dtype(values), random, half_with_full_and_empty_row(random)),
                 values);
  const int64_t rows = decodes(name) ? 1 : skips_zeros(name) ? 70 : 20;  // panels: too few to skip zeros
  if (op == "sparse_linear") {
    LinearCase(w, rows, RLCC_F32, random, 0, true, false).run(w, name);
  } else if (op == "sparse_linear_grad_x") {
    GradXCase(w, rows, RLCC_F32, random).run(w, name);
  } else if (op == "sparse_linear_grad_values") {
    GradValuesCase(w, rows, RLCC_F32, random).run(w, name);
  } else {
    CHECK(false) << "no call is known for the kernel " << name;
  }
}

}  // namespace

int main() {
  std::mt19937 random(51);
  const rlcc_kernel_info* kernels = nullptr;
  int64_t count = 0;
  CHECK_STATUS(rlcc_kernels(&kernels, &count), RLCC_OK);
  CHECK(count == static_cast<int64_t>(kernel_calls().size()));
  int64_t reached = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (kernels[i].available == 0) {
      skip(std::string(kernels[i].name) + ": this CPU lacks its instructions");
      continue;
    }
    CHECK_STATUS(rlcc_force_isa(kernels[i].isa), RLCC_OK);
    const std::map<std::string, long> before = kernel_calls();
    run_kernel(kernels[i].op, kernels[i].name, random);
    std::map<std::string, long> after = kernel_calls();
    for (const auto& [name, calls] : before) {
      if (name == kernels[i].name) {
        reached += after[name] > calls ? 1 : 0;
        CHECK(after[name] > calls) << name << " did not run";
      } else {
        CHECK(after[name] == calls) << name << " ran in place of " << kernels[i].name;
      }
    }
  }
  std::printf("every_kernel: %lld of %lld kernels ran\n", static_cast<long long>(reached),
              static_cast<long long>(count));
  return report("every_kernel");
}
