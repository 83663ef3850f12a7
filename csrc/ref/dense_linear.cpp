#include "core/element.h"
#include "ref/reference.h"

namespace restorelcc::reference {

// y[m, n] = sum_k x[m, k] W[n, k] + bias[n] + residual[m, n]
void dense_linear(const rlcc_dense_linear_params& p) {
  for (int64_t m = 0; m < p.x_rows; ++m) {
    for (int64_t n = 0; n < p.rows; ++n) {
      double sum = 0;
      for (int64_t k = 0; k < p.columns; ++k) {
        sum += element(p.x, p.x_dtype, m * p.x_stride + k) *
               element(p.weight, p.weight_dtype, n * p.weight_stride + k);
      }
      if (p.bias != nullptr) sum += p.bias[n];
      if (p.residual != nullptr) sum += element(p.residual, p.y_dtype, m * p.residual_stride + n);
      set_element(p.y, p.y_dtype, m * p.y_stride + n, sum);
    }
  }
}

}  // namespace restorelcc::reference
