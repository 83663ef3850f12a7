// The registry lists what kernels.def lists; forcing an instruction set works, a wrong one is one sentence.
// With the argument "environment": RLCC_ISA is set to nonsense, and every op says so until a real one is
// forced.
#include <cstring>
#include <set>

#include "check.h"
#include "cpu/kernels.def"

namespace {

void registry() {
  std::set<std::string> expected;
#define RLCC_EXPECT(op, values, shape, isa) expected.insert(#op "_" #values "_" #shape "__" #isa);
  RLCC_KERNELS(RLCC_EXPECT)
#undef RLCC_EXPECT
  const rlcc_kernel_info* kernels = nullptr;
  int64_t count = 0;
  CHECK(rlcc_kernels(&kernels, &count) == RLCC_OK);
  CHECK(count == static_cast<int64_t>(expected.size()));
  for (int64_t i = 0; i < count; ++i) {
    const rlcc_kernel_info& kernel = kernels[i];
    CHECK(expected.erase(kernel.name) == 1) << kernel.name;
    CHECK(std::strncmp(kernel.name, kernel.op, std::strlen(kernel.op)) == 0) << kernel.name;
    CHECK((rlcc_force_isa(kernel.isa) == RLCC_OK) == (kernel.available == 1)) << kernel.name;
  }
  CHECK(rlcc_kernels(nullptr, &count) == RLCC_INVALID_ARGUMENT);
}

void forcing() {
  CHECK(rlcc_force_isa("scalar") == RLCC_OK);
  CHECK(std::strcmp(rlcc_isa(), "scalar") == 0);
  CHECK(std::strstr(rlcc_build_info(), "\"isa\": \"scalar\"") != nullptr) << rlcc_build_info();
  CHECK(rlcc_force_isa("sse9") == RLCC_UNSUPPORTED);
  CHECK(std::strstr(rlcc_last_error(), "sse9") != nullptr &&
        std::strstr(rlcc_last_error(), "scalar") != nullptr);
  CHECK(std::strcmp(rlcc_isa(), "scalar") == 0);  // a refused wish changes nothing
  CHECK(rlcc_force_isa(nullptr) == RLCC_OK);
  CHECK(rlcc_force_isa("") == RLCC_OK);
}

void wrong_environment() {
  rlcc_head_moments_params nothing{};
  CHECK(std::strcmp(rlcc_isa(), "") == 0);
  CHECK(rlcc_head_moments(&nothing) == RLCC_UNSUPPORTED);
  CHECK(std::strstr(rlcc_last_error(), "RLCC_ISA") != nullptr) << rlcc_last_error();
  CHECK(std::strstr(rlcc_build_info(), "\"isa\": null") != nullptr) << rlcc_build_info();
  CHECK(rlcc_force_isa("scalar") == RLCC_OK);
  CHECK(rlcc_head_moments(&nothing) == RLCC_OK);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "environment") == 0) {
    wrong_environment();
  } else {
    registry();
    forcing();
  }
  return restorelcc::test::report("registry");
}
