// OpenVINO's own threads, lent to librestorelcc: no second pool, and INFERENCE_NUM_THREADS counts for the
// products too.
#pragma once

#include "restorelcc/params.h"

namespace restorelcc_openvino {

// Of the thread that calls: as many as its arena has. Valid on this thread until evaluate() returns.
rlcc_parallel host_threads();

}  // namespace restorelcc_openvino
