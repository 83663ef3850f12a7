// One call of dense_linear on random inputs, held against the float64 oracle by the budget of sparse_linear.
#pragma once

#include "sparse_linear_cases.h"

namespace restorelcc::test {

// The types of a call.
struct DenseTypes {
  rlcc_dtype weight, x, y;
};

struct DenseCase {
  Matrix w, x, y, expected, residual;
  std::vector<float> bias;
  rlcc_dense_linear_params params{};

  DenseCase(int64_t rows, int64_t outputs, int64_t columns, DenseTypes types, std::mt19937& random, bool biased,
            bool residually, int64_t gap = 3)
      : w(outputs, columns, types.weight, gap),
        x(rows, columns, types.x, gap),
        y(rows, outputs, types.y, 2 * gap),
        expected(y),
        residual(rows, outputs, types.y, gap) {
    fill_normal(w, random);
    fill_normal(x, random);
    fill_normal(residual, random);
    std::normal_distribution<float> normal;
    for (int64_t n = 0; n < outputs && biased; ++n) bias.push_back(normal(random));
    params.weight = w.data();
    params.rows = outputs;
    params.columns = columns;
    params.weight_stride = w.stride();
    params.weight_dtype = types.weight;
    params.x = x.data();
    params.x_rows = rows;
    params.x_stride = x.stride();
    params.x_dtype = types.x;
    params.bias = biased ? bias.data() : nullptr;
    params.residual = residually ? residual.data() : nullptr;
    params.residual_stride = residual.stride();
    params.y = y.data();
    params.y_stride = y.stride();
    params.y_dtype = types.y;
  }

  Budget budget() const {
    Budget b{std::vector<double>(static_cast<size_t>(x.rows() * w.rows())), w.rows()};
    for (int64_t m = 0; m < x.rows(); ++m) {
      for (int64_t n = 0; n < w.rows(); ++n) {
        double sum = 0;
        for (int64_t k = 0; k < w.columns(); ++k) sum += std::fabs(double{x.get(m, k)} * w.get(n, k));
        if (params.bias != nullptr) sum += std::fabs(bias[static_cast<size_t>(n)]);
        if (params.residual != nullptr) sum += std::fabs(residual.get(m, n));
        b.sums[static_cast<size_t>(m * w.rows() + n)] = sum;
      }
    }
    return b;
  }

  void run(const std::string& name) {
    CHECK_STATUS(rlcc_dense_linear(&params), RLCC_OK);
    rlcc_dense_linear_params reference = params;
    reference.y = expected.data();
    CHECK_STATUS(rlcc_dense_linear_reference(&reference), RLCC_OK);
    compare(y, expected, budget(), name);
  }

  std::string describe(const char* isa) const {
    std::ostringstream name;
    name << "dense_linear " << isa << " M=" << x.rows() << " N=" << w.rows() << " K=" << w.columns()
         << " w=" << dtype_name(w.dtype()) << " x=" << dtype_name(x.dtype()) << " y=" << dtype_name(y.dtype());
    return name.str();
  }
};

}  // namespace restorelcc::test
