#include <vector>

#include "core/element.h"
#include "ref/reference.h"

namespace restorelcc::reference {

// total[h, d] += sum_t dz[t, h, d],  gram[h, i, j] += sum_t dz[t, h, i] dz[t, h, j],
// dz = z_dense - z_pruned, both widened to float64 first
void head_moments(const rlcc_head_moments_params& p) {
  std::vector<double> dz(static_cast<size_t>(p.head_dim));
  for (int64_t h = 0; h < p.heads; ++h) {
    double* total = p.total + h * p.head_dim;
    double* gram = p.gram + h * p.head_dim * p.head_dim;
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t d = 0; d < p.head_dim; ++d) {
        dz[static_cast<size_t>(d)] =
            element(p.z_dense, p.dtype, t * p.dense_token_stride + h * p.dense_head_stride + d) -
            element(p.z_pruned, p.dtype, t * p.pruned_token_stride + h * p.pruned_head_stride + d);
        total[d] += dz[static_cast<size_t>(d)];
      }
      for (int64_t i = 0; i < p.head_dim; ++i) {
        for (int64_t j = 0; j < p.head_dim; ++j) {
          gram[i * p.head_dim + j] += dz[static_cast<size_t>(i)] * dz[static_cast<size_t>(j)];
        }
      }
    }
  }
}

}  // namespace restorelcc::reference
