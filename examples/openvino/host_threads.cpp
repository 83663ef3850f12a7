#include "host_threads.h"

#include <algorithm>

#include "openvino/core/parallel.hpp"

namespace restorelcc_openvino {
namespace {

void run(void*, int64_t count, int64_t grain, rlcc_task task, void* context) {
  if (count <= 0) return;
  const int64_t least = std::max<int64_t>(grain, 1);
  const int64_t most = std::max<int64_t>(count / least, 1);  // parts of at least `grain`
  const int64_t parts = std::min<int64_t>(most, parallel_get_max_threads());
  ov::parallel_nt_static(static_cast<int>(parts), [&](int part, int all) {
    // Without threads, parallel.hpp calls once with all = 1.
    const int64_t begin = count / all * part + std::min<int64_t>(part, count % all);
    const int64_t end = begin + count / all + (part < count % all ? 1 : 0);
    if (begin < end) task(context, begin, end);
  });
}

}  // namespace

rlcc_parallel host_threads() { return {run, nullptr, std::max(1, parallel_get_max_threads())}; }

}  // namespace restorelcc_openvino
