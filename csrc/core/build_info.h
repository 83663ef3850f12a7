// What this build is, as JSON.
#pragma once

#include <string>

namespace restorelcc {

std::string build_info_json();

// What the CUDA kernels were compiled for, "sm_80 compute_80"; "" in a build without them. Defined in
// csrc/cuda.
const char* cuda_architectures();

}  // namespace restorelcc
