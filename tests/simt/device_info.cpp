#include "cuda/device_info.h"

#include "machine.h"

namespace restorelcc::cuda {

LaunchError query_device(DeviceInfo* info) {
  info->multiprocessors = simt::options().multiprocessors;
  info->capability = simt::options().capability;
  info->shared_bytes_per_block = simt::options().shared_bytes_per_block;
  return nullptr;
}

}  // namespace restorelcc::cuda
