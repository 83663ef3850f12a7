#include "cuda/architectures.h"

#include <cstdlib>
#include <sstream>
#include <string>

namespace restorelcc::cuda {
namespace {

constexpr int kLeastCapability = 80;

bool serves(const std::string& architecture, int capability) {
  const size_t number = architecture.find('_') + 1;  // 0: there is none
  const bool code = architecture.compare(0, number, "sm_") == 0;
  if (!code && architecture.compare(0, number, "compute_") != 0) return false;
  char* end = nullptr;
  const long compiled = std::strtol(architecture.c_str() + number, &end, 10);
  if (*end == 'a') return compiled == capability;
  return compiled <= capability && (!code || compiled / 10 == capability / 10);
}

std::string version(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

std::string listed(const char* architectures) {
  std::string list;
  std::istringstream words(architectures);
  for (std::string word; words >> word;) list += (list.empty() ? "" : ", ") + word;
  return list;
}

}  // namespace

bool architectures_serve(const char* architectures, int capability) {
  std::istringstream words(architectures);
  for (std::string word; words >> word;) {
    if (serves(word, capability)) return true;
  }
  return false;
}

Status check_device(const char* architectures, int capability) {
  if (capability < kLeastCapability) {
    return failure(RLCC_UNSUPPORTED, "no usable CUDA device: the current one has compute capability ",
                   version(capability), ", and the kernels need ", version(kLeastCapability),
                   " or later; choose another with CUDA_VISIBLE_DEVICES, or move the tensors to the CPU");
  }
  if (architectures_serve(architectures, capability)) return {};
  return failure(RLCC_UNSUPPORTED, "no usable CUDA device: the current one has compute capability ",
                 version(capability), ", and this library was built for ", listed(architectures),
                 "; build it with -DRLCC_CUDA_ARCHITECTURES=", capability,
                 " (or a list that has it), or move the tensors to the CPU");
}

Status launch_status(const char* kernel, LaunchError error, const char* architectures, int capability) {
  if (error == nullptr) return {};
  if (error != kNoCode) return failure(RLCC_INTERNAL, "launching ", kernel, " failed: ", error);
  return failure(
      RLCC_UNSUPPORTED, "launching ", kernel, " failed: this library was built for ", listed(architectures),
      ", of which the driver takes no code for the current device, of compute capability ", version(capability),
      "; update the driver, or build the library with -DRLCC_CUDA_ARCHITECTURES=", capability);
}

}  // namespace restorelcc::cuda
