#include "cuda/architectures.h"

#include <climits>
#include <cstdlib>
#include <sstream>

#include "core/build_info.h"

namespace restorelcc::cuda {
namespace {

constexpr int kLeastCapability = 80;

std::string version(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

}  // namespace

Architectures::Architectures(const char* words) {
  std::istringstream stream(words);
  for (std::string word; stream >> word;) {
    listed_ += (listed_.empty() ? "" : ", ") + word;
    const size_t number = word.find('_') + 1;  // 0: there is none
    const bool machine_code = word.compare(0, number, "sm_") == 0;
    if (!machine_code && word.compare(0, number, "compute_") != 0) continue;
    char* end = nullptr;
    const int capability = static_cast<int>(std::strtol(word.c_str() + number, &end, 10));
    const std::string suffix = end;
    if (end == word.c_str() + number || (!suffix.empty() && suffix != "a" && suffix != "f")) continue;
    const bool same_major = machine_code || suffix == "f";
    codes_.push_back({capability, suffix == "a" ? capability
                                  : same_major  ? capability / 10 * 10 + 9
                                                : INT_MAX});
  }
}

bool Architectures::serve(int capability) const {
  for (const Code& code : codes_) {
    if (capability >= code.first && capability <= code.last) return true;
  }
  return false;
}

const Architectures& built_architectures() {
  static const Architectures built(cuda_architectures());
  return built;
}

Status check_device(const Architectures& architectures, int capability) {
  if (capability < kLeastCapability) {
    return failure(RLCC_UNSUPPORTED, "no usable CUDA device: the current one has compute capability ",
                   version(capability), ", and the kernels need ", version(kLeastCapability),
                   " or later; choose another with CUDA_VISIBLE_DEVICES, or move the tensors to the CPU");
  }
  if (architectures.serve(capability)) return {};
  return failure(RLCC_UNSUPPORTED, "no usable CUDA device: the current one has compute capability ",
                 version(capability), ", and this library was built for ", architectures.listed(),
                 "; build it with -DRLCC_CUDA_ARCHITECTURES=", capability,
                 " (or a list that has it), or move the tensors to the CPU");
}

Status launch_status(const char* kernel, LaunchError error, const Architectures& architectures,
                     int capability) {
  if (error == nullptr) return {};
  if (error != kNoCode) return failure(RLCC_INTERNAL, "launching ", kernel, " failed: ", error);
  return failure(
      RLCC_UNSUPPORTED, "launching ", kernel, " failed: this library was built for ", architectures.listed(),
      ", of which the driver takes no code for the current device, of compute capability ", version(capability),
      "; update the driver, or build the library with -DRLCC_CUDA_ARCHITECTURES=", capability);
}

}  // namespace restorelcc::cuda
