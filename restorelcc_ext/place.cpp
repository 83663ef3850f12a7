#include "place.h"

#include "tensor_view.h"

namespace restorelcc_ext {

Place::Place(std::initializer_list<NamedTensor> tensors) : first_(tensors.begin()->tensor) {
  const char* const first_name = tensors.begin()->name;
  const bool cuda = first_->is_cuda();
  if (!cuda && !first_->is_cpu()) {
    refuse(first_name,
           " is neither on the CPU nor on a CUDA device, and restorelcc has no other kernels; move it with "
           ".cpu() or .cuda()");
  }
  if (cuda) cuda_index_ = first_->get_device_index();
  for (const NamedTensor& other : tensors) {
    if (other.tensor == nullptr) continue;
    if (cuda ? !other.tensor->is_cuda() : !other.tensor->is_cpu()) {
      refuse(other.name, " is not on the ", cuda ? "CUDA device" : "CPU", ", where ", first_name,
             " is; move it with .to(", first_name, ".device)");
    }
    if (cuda && other.tensor->get_device_index() != cuda_index_) {
      refuse(other.name, " is on CUDA device ", other.tensor->get_device_index(), ", ", first_name, " on ",
             cuda_index_, "; move it with .to(", first_name, ".device)");
    }
  }
}

void require_cpu(std::initializer_list<NamedTensor> tensors) {
  for (const NamedTensor& given : tensors) {
    if (given.tensor != nullptr && !given.tensor->is_cpu()) {
      refuse(given.name,
             " is not on the CPU, where weights are packed, unpacked and checked; move it with .cpu()");
    }
  }
}

}  // namespace restorelcc_ext
