// A library that has no code for the device says so, and what to do; which devices its code serves; which
// errors of a launch mean the same.
#include <cstring>

#include "../cpp/check.h"
#include "cuda/architectures.h"
#include "machine.h"
#include "restorelcc/cuda.h"

using namespace restorelcc::cuda;

namespace {

void which_devices() {
  struct Case {
    const char* architectures;
    int capability;
    bool served;
  };
  constexpr Case kCases[] = {
      {"sm_80", 80, true},
      {"sm_80", 86, true},  // the same major number, from the minor one on
      {"sm_80", 89, true},
      {"sm_86", 80, false},
      {"sm_80", 90, false},
      {"sm_90", 80, false},
      {"sm_90", 89, false},
      {"sm_90 compute_90", 100, true},
      {"sm_90 compute_90", 120, true},
      {"sm_90 compute_90", 89, false},
      {"sm_80 sm_90 compute_90", 89, true},
      {"sm_100", 103, true},
      {"sm_100", 120, false},
      {"sm_90a compute_90a", 90, true},
      {"sm_90a compute_90a", 100, false},
      {"sm_80 sm_86 sm_89 sm_90 sm_100 compute_100", 80, true},
      {"sm_80 sm_86 sm_89 sm_90 sm_100 compute_100", 87, true},
      {"sm_80 sm_86 sm_89 sm_90 sm_100 compute_100", 121, true},
      {"sm_100f", 100, true},  // a family: the same major number, from the minor one on
      {"sm_100f", 103, true},
      {"sm_103f", 100, false},
      {"sm_100f", 110, false},
      {"compute_100f", 103, true},
      {"compute_100f", 110, false},
      {"compute_100f", 120, false},
      {"sm_120f compute_120f", 121, true},
      {"sm_120f compute_120", 130, true},
      {"sm_100x", 100, false},  // of no kind that is known here
      {"compute_", 80, false},
      {"sm_", 80, false},
      {"", 80, false},
      {"emulated", 80, false},
  };
  for (const Case& c : kCases) {
    const Architectures built(c.architectures);
    CHECK(built.serve(c.capability) == c.served) << c.architectures << " on " << c.capability;
    CHECK(check_device(built, c.capability).ok() == c.served);
  }
  CHECK(!check_device(Architectures("sm_75 compute_75"), 75).ok())
      << "older than the kernels' own instructions";
}

void sentences() {
  const restorelcc::Status narrowed = check_device(Architectures("sm_90 compute_90"), 86);
  CHECK(narrowed.code == RLCC_UNSUPPORTED);
  CHECK(narrowed.message ==
        "no usable CUDA device: the current one has compute capability 8.6, and this library was built for "
        "sm_90, "
        "compute_90; build it with -DRLCC_CUDA_ARCHITECTURES=86 (or a list that has it), or move the tensors "
        "to the "
        "CPU")
      << narrowed.message;
  const restorelcc::Status old = check_device(Architectures("sm_80"), 75);
  CHECK(old.code == RLCC_UNSUPPORTED);
  CHECK(old.message ==
        "no usable CUDA device: the current one has compute capability 7.5, and the kernels need 8.0 or later; "
        "choose "
        "another with CUDA_VISIBLE_DEVICES, or move the tensors to the CPU")
      << old.message;
}

// cudaErrorNoKernelImageForDevice and its like; device/launch.cuh holds the numbers against the names.
void errors_of_launches() {
  constexpr char kText[] = "what the runtime says";
  for (int code : {98, 209, 221, 222, 223}) CHECK(launch_error(code, kText) == kNoCode) << code;
  for (int code : {1, 2, 100, 208, 210, 218, 719}) CHECK(launch_error(code, kText) == kText) << code;
  CHECK(launch_status("op", nullptr, Architectures("sm_80"), 80).ok());
  CHECK(launch_status("op", kText, Architectures("sm_80"), 80).code == RLCC_INTERNAL);
  const restorelcc::Status status =
      launch_status("sparse_linear", kNoCode, Architectures("sm_80 compute_80"), 90);
  CHECK(status.code == RLCC_UNSUPPORTED);
  CHECK(status.message ==
        "launching sparse_linear failed: this library was built for sm_80, compute_80, of which the driver "
        "takes no "
        "code for the current device, of compute capability 9.0; update the driver, or build the library with "
        "-DRLCC_CUDA_ARCHITECTURES=90")
      << status.message;
}

// Every op, through the C entry points, on an emulated device that the emulated library was not built for.
void every_op_refuses() {
  simt::options().capability = 90;
  size_t bytes = 7;
  const auto refused = [&](rlcc_status status) {
    CHECK(status == RLCC_UNSUPPORTED) << status;
    CHECK(std::strstr(rlcc_last_error(), "compute capability 9.0, and this library was built for sm_80") !=
          nullptr)
        << rlcc_last_error();
    CHECK(bytes == 7) << "untouched";
  };
  alignas(16) const int64_t something[8] = {};
  alignas(16) double output[8] = {};
  rlcc_sparse_linear_params linear{};
  linear.weight = {1, 1, reinterpret_cast<const uint64_t*>(something), something, 32, something, 0, 1, nullptr};
  linear.x = something;
  linear.y = output;
  for (int64_t rows : {1, 20}) {
    linear.x_rows = rows;
    linear.x_stride = linear.y_stride = 1;
    refused(rlcc_cuda_sparse_linear_workspace(&linear, &bytes));
    refused(rlcc_cuda_sparse_linear(&linear, nullptr, 0, nullptr));
  }
  linear.x_dtype = RLCC_BF16;
  const rlcc_cuda_weight_2to4 sparse{0, 0, nullptr, nullptr, RLCC_BF16};
  refused(rlcc_cuda_sparse_linear_2to4_workspace(&linear, &sparse, &bytes));
  refused(rlcc_cuda_sparse_linear_2to4(&linear, &sparse, nullptr, 0, nullptr));
  rlcc_sparse_linear_grad_x_params grad_x{};
  grad_x.weight = linear.weight;
  refused(rlcc_cuda_sparse_linear_grad_x_workspace(&grad_x, &bytes));
  refused(rlcc_cuda_sparse_linear_grad_x(&grad_x, nullptr, 0, nullptr));
  rlcc_sparse_linear_grad_values_params grad_values{};
  grad_values.weight = linear.weight;
  grad_values.grad_values = output;
  alignas(16) unsigned char workspace[64];
  refused(rlcc_cuda_sparse_linear_grad_values(&grad_values, workspace, sizeof(workspace), nullptr));
  const rlcc_sparse_linear_grad_comp_params grad_comp{};
  refused(rlcc_cuda_sparse_linear_grad_comp_workspace(&grad_comp, &bytes));
  refused(rlcc_cuda_sparse_linear_grad_comp(&grad_comp, nullptr, 0, nullptr));
  rlcc_head_moments_params moments{};
  moments.z_dense = moments.z_pruned = something;
  moments.tokens = moments.heads = moments.head_dim = 1;
  moments.total = moments.gram = output;
  refused(rlcc_cuda_head_moments(&moments, nullptr, 0, nullptr));
  const rlcc_linear_cross_entropy_params loss{};
  refused(rlcc_cuda_linear_cross_entropy_workspace(&loss, &bytes));
  refused(rlcc_cuda_linear_cross_entropy(&loss, nullptr, 0, nullptr));
  const rlcc_linear_cross_entropy_backward_params gradient{};
  refused(rlcc_cuda_linear_cross_entropy_backward_workspace(&gradient, &bytes));
  refused(rlcc_cuda_linear_cross_entropy_backward(&gradient, nullptr, 0, nullptr));
  rlcc_head_contrast_params contrast{};
  contrast.segment_count = 1;
  refused(rlcc_cuda_head_contrast_workspace(&contrast, &bytes));
  refused(rlcc_cuda_head_contrast(&contrast, nullptr, 0, nullptr));
  CHECK(output[0] == 0);
  simt::options().capability = 86;  // which code for sm_80 serves
  CHECK(rlcc_cuda_sparse_linear_workspace(&linear, &bytes) == RLCC_OK) << rlcc_last_error();
  simt::options() = simt::Options{};
}

}  // namespace

int main() {
  which_devices();
  sentences();
  errors_of_launches();
  every_op_refuses();
  return restorelcc::test::report("architectures");
}
