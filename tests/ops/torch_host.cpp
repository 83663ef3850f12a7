// A C++ program with torch and without Python: loads librestorelcc_torch.so and calls its ops through the
// dispatcher. test_torch_host.py compiles and runs it. Prints y = x Wᵀ + bias for a small W with zeros.
#include <dlfcn.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdio>
#include <optional>

namespace stable = torch::stable;
using torch::headeronly::ScalarType;

namespace {

stable::Tensor view_of(float* data, std::array<int64_t, 2> sizes) {
  const stable::Device cpu(torch::headeronly::DeviceType::CPU, 0);
  return stable::from_blob(data, sizes, std::array<int64_t, 2>{sizes[1], 1}, cpu, ScalarType::Float);
}

template <size_t N>
void call(const char* op, std::array<StableIValue, N>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack.data(), TORCH_ABI_VERSION));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  if (dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  using stable::detail::from;
  using stable::detail::to;
  float weight[] = {1, 0, 2, 0, 3, 0}, input[] = {1, 10, 100};
  std::array<StableIValue, 4> packing{from(view_of(weight, {2, 3})),
                                      from(false)};  // its results take their places
  call("restorelcc::pack", packing);
  const std::optional<stable::Tensor> none;
  std::array<StableIValue, 12> product{from(view_of(input, {1, 3})),
                                       packing[0],
                                       packing[1],
                                       packing[2],
                                       from(none),
                                       from(int64_t{3}),
                                       from(none),
                                       from(none),
                                       from(none),
                                       from(none),
                                       from(false),
                                       from(false)};
  call("restorelcc::sparse_linear", product);
  const stable::Tensor y = to<stable::Tensor>(product[0]);
  const float* values = static_cast<const float*>(y.data_ptr());
  std::printf("%g %g\n", values[0], values[1]);
  return 0;
}
