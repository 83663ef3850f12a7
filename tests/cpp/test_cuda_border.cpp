// The CUDA entry points where nothing can be launched: a build without kernels, or a machine without a device,
// loads, answers RLCC_UNSUPPORTED in words, and goes on. (With a device there is nothing to see here.)
#include <cstring>

#include "matrices.h"
#include "restorelcc/cuda.h"

using namespace restorelcc::test;

int main() {
  std::mt19937 random(1);
  Packed w(random_weight(3, 70, RLCC_F32, random, half_with_full_and_empty_row(random)));
  std::vector<float> x(70), y(3, 7.0f);
  rlcc_sparse_linear_params params{};
  params.weight = w.weight;
  params.weight.trusted = 1;
  params.x = x.data();
  params.x_rows = 1;
  params.x_stride = 70;
  params.y = y.data();
  params.y_stride = 3;
  const bool built = std::strstr(rlcc_build_info(), "\"cuda_architectures\": [\"") != nullptr;
  CHECK(built == (std::strstr(rlcc_build_info(), "\"backends\": [\"cpu\", \"cuda\"]") != nullptr));
  if (built) {
    CHECK_STATUS(rlcc_cuda_sparse_linear(nullptr, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    rlcc_sparse_linear_params untrusted = params;
    untrusted.weight.trusted = 0;
    CHECK_STATUS(rlcc_cuda_sparse_linear(&untrusted, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_cuda_head_moments(nullptr, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
  }
  size_t bytes = 0;
  if (rlcc_cuda_sparse_linear_workspace(&params, &bytes) == RLCC_OK) {
    skip("there is a device");
    return report("cuda_border");
  }
  CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(&params, &bytes), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_sparse_linear(&params, nullptr, 0, nullptr), RLCC_UNSUPPORTED);
  const char* const said = rlcc_last_error();
  CHECK(std::strstr(said, built ? "no usable CUDA device" : "no CUDA kernels") != nullptr) << said;
  const rlcc_sparse_linear_grad_comp_params sums{};
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp_workspace(&sums, &bytes), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp(&sums, nullptr, 0, nullptr), RLCC_UNSUPPORTED);
  // Of no rows, which takes nothing but a device.
  const rlcc_linear_cross_entropy_params loss{};
  const rlcc_linear_cross_entropy_backward_params gradient{};
  rlcc_head_contrast_params contrast{};
  contrast.segment_count = 1;
  CHECK_STATUS(rlcc_cuda_linear_cross_entropy_workspace(&loss, &bytes), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_linear_cross_entropy(&loss, nullptr, 0, nullptr), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_linear_cross_entropy_backward_workspace(&gradient, &bytes), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_linear_cross_entropy_backward(&gradient, nullptr, 0, nullptr), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_head_contrast_workspace(&contrast, &bytes), RLCC_UNSUPPORTED);
  CHECK_STATUS(rlcc_cuda_head_contrast(&contrast, nullptr, 0, nullptr), RLCC_UNSUPPORTED);
  CHECK(y[0] == 7.0f);
  double total = 1, gram = 2;
  rlcc_head_moments_params moments{};
  moments.z_dense = moments.z_pruned = x.data();
  moments.tokens = moments.heads = moments.head_dim = 1;
  moments.total = &total;
  moments.gram = &gram;
  CHECK_STATUS(rlcc_cuda_head_moments(&moments, nullptr, 0, nullptr), RLCC_UNSUPPORTED);
  CHECK(total == 1 && gram == 2);
  CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);
  CHECK(y[0] == 0.0f);
  return report("cuda_border");
}
