// One call of sparse_linear, or of one of its gradients, on random inputs, held against the float64 oracle.
//
// Budget: |y - y64| <= kSlack 2^-24 S + ulp(y64) / 2 in y's dtype, S = sum |x| |w| + |comp| + |bias| +
// |residual|; with int8 values and few rows also what rounding x to 8 bits costs. The fp32 sums run in at most
// a few dozen interleaved chains, so kSlack = 32 is a generous sqrt(K); a dropped, doubled or misplaced term
// (some are 100 times the others) is far outside. NaN and Inf are compared first, by position.
#pragma once

#include <algorithm>

#include "matrices.h"

namespace restorelcc::test {

constexpr double kSlack = 32;

struct Budget {
  std::vector<double> sums;  // sum |x| |w| + ...
  int64_t columns;
  std::vector<double> quantised{};  // what rounding x to int8 may cost; empty: nothing
  double at(int64_t m, int64_t n) const { return sums[static_cast<size_t>(m * columns + n)]; }
  double quantised_at(int64_t m, int64_t n) const {
    return quantised.empty() ? 0 : quantised[static_cast<size_t>(m * columns + n)];
  }
};

inline void compare(const Matrix& got, const Matrix& expected, const Budget& budget, const std::string& name) {
  for (int64_t m = 0; m < got.rows(); ++m) {
    for (int64_t n = 0; n < got.columns(); ++n) {
      const double g = got.get(m, n), e = expected.get(m, n);
      CHECK(std::isnan(g) == std::isnan(e)) << name << " at " << m << ", " << n << ": " << g << " for " << e;
      CHECK(std::isinf(g) == std::isinf(e) && (!std::isinf(e) || g == e))
          << name << " at " << m << ", " << n << ": " << g << " for " << e;
      if (!std::isfinite(e) || !std::isfinite(g)) continue;
      // Both are rounded to the dtype: twice half a unit.
      const double allowed = kSlack * 0x1p-24 * budget.at(m, n) + budget.quantised_at(m, n) +
                             2 * rounding(got.dtype()) * std::fabs(e) + smallest(got.dtype());
      CHECK(std::fabs(g - e) <= allowed)
          << name << " at " << m << ", " << n << ": " << g << " for " << e << ", allowed " << allowed;
    }
  }
  CHECK(got.gaps_untouched()) << name;
}

struct LinearCase {
  Matrix x, y, expected, residual;
  std::vector<float> comp_rows, bias;
  std::vector<int64_t> comp_index;
  rlcc_sparse_linear_params params{};

  LinearCase(const Packed& w, int64_t rows, rlcc_dtype dtype, std::mt19937& random, int64_t groups, bool biased,
             bool residually)
      : x(rows, w.dense.columns(), dtype, 3),
        y(rows, w.dense.rows(), dtype, 5),
        expected(y),
        residual(rows, w.dense.rows(), dtype, 1) {
    fill_normal(x, random);
    fill_normal(residual, random);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < groups * w.dense.rows(); ++i) comp_rows.push_back(normal(random));
    for (int64_t m = 0; m < rows && groups > 1; ++m) {
      comp_index.push_back(static_cast<int64_t>(random() % static_cast<uint64_t>(groups)));
    }
    for (int64_t n = 0; n < w.dense.rows() && biased; ++n) bias.push_back(normal(random));
    params.weight = w.weight;
    params.x = x.data();
    params.x_rows = rows;
    params.x_stride = x.stride();
    params.x_dtype = dtype;
    params.comp_rows = groups > 0 ? comp_rows.data() : nullptr;
    params.groups = groups;
    params.comp_index = groups > 1 ? comp_index.data() : nullptr;
    params.bias = biased ? bias.data() : nullptr;
    params.residual = residually ? residual.data() : nullptr;
    params.residual_stride = residual.stride();
    params.y = y.data();
    params.y_stride = y.stride();
  }

  Budget budget(const Matrix& w) const {
    Budget b{std::vector<double>(static_cast<size_t>(x.rows() * w.rows())), w.rows()};
    if (params.weight.dtype == RLCC_I8 && x.rows() <= 16) b.quantised = quantisation(w);
    for (int64_t m = 0; m < x.rows(); ++m) {
      for (int64_t n = 0; n < w.rows(); ++n) {
        double sum = 0;
        for (int64_t k = 0; k < w.columns(); ++k) sum += std::fabs(double{x.get(m, k)} * w.get(n, k));
        const int64_t group = params.comp_index != nullptr ? comp_index[static_cast<size_t>(m)] : 0;
        if (params.groups > 0) sum += std::fabs(comp_rows[static_cast<size_t>(group * w.rows() + n)]);
        if (params.bias != nullptr) sum += std::fabs(bias[static_cast<size_t>(n)]);
        if (params.residual != nullptr) sum += std::fabs(residual.get(m, n));
        b.sums[static_cast<size_t>(m * w.rows() + n)] = sum;
      }
    }
    return b;
  }

  // sum_k |W[n, k]| max|x of k's group| / 254; a group that counts as 0 costs itself
  std::vector<double> quantisation(const Matrix& w) const {
    std::vector<double> costs(static_cast<size_t>(x.rows() * w.rows()));
    for (int64_t m = 0; m < x.rows(); ++m) {
      for (int64_t begin = 0; begin < w.columns(); begin += RLCC_SCALE_COLUMNS) {
        const int64_t end = std::min<int64_t>(begin + RLCC_SCALE_COLUMNS, w.columns());
        double largest = 0;
        for (int64_t k = begin; k < end; ++k) largest = std::max(largest, std::fabs(double{x.get(m, k)}));
        for (int64_t n = 0; n < w.rows(); ++n) {
          for (int64_t k = begin; k < end; ++k) {
            const double cost = largest < 127 * 0x1p-126 ? largest : largest / 254;
            costs[static_cast<size_t>(m * w.rows() + n)] += std::fabs(double{w.get(n, k)}) * cost;
          }
        }
      }
    }
    return costs;
  }

  void run(const Packed& w, const std::string& name) {
    CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);
    rlcc_sparse_linear_params reference = params;
    reference.y = expected.data();
    CHECK_STATUS(rlcc_sparse_linear_reference(&reference), RLCC_OK);
    compare(y, expected, budget(w.dense), name);
  }
};

struct GradXCase {
  Matrix grad_y, grad_x, expected;
  rlcc_sparse_linear_grad_x_params params{};

  GradXCase(const Packed& w, int64_t rows, rlcc_dtype dtype, std::mt19937& random)
      : grad_y(rows, w.dense.rows(), dtype, 2), grad_x(rows, w.dense.columns(), dtype, 7), expected(grad_x) {
    fill_normal(grad_y, random);
    params.weight = w.weight;
    params.grad_y = grad_y.data();
    params.y_rows = rows;
    params.grad_y_stride = grad_y.stride();
    params.dtype = dtype;
    params.grad_x = grad_x.data();
    params.grad_x_stride = grad_x.stride();
  }

  Budget budget(const Packed& w) const {
    Budget budget{std::vector<double>(static_cast<size_t>(grad_y.rows() * w.dense.columns())),
                  w.dense.columns()};
    for (int64_t m = 0; m < grad_y.rows(); ++m) {
      for (int64_t n = 0; n < w.dense.rows(); ++n) {
        for (int64_t k = 0; k < w.dense.columns(); ++k) {
          budget.sums[static_cast<size_t>(m * w.dense.columns() + k)] +=
              std::fabs(double{grad_y.get(m, n)} * w.dense.get(n, k));
        }
      }
    }
    return budget;
  }

  void run(const Packed& w, const std::string& name) {
    CHECK_STATUS(rlcc_sparse_linear_grad_x(&params), RLCC_OK);
    rlcc_sparse_linear_grad_x_params reference = params;
    reference.grad_x = expected.data();
    CHECK_STATUS(rlcc_sparse_linear_grad_x_reference(&reference), RLCC_OK);
    compare(grad_x, expected, budget(w), name);
  }
};

// The gradient of the surviving values, of the weight's dtype.
struct GradValuesCase {
  Matrix x, grad_y;
  std::vector<char> grad, expected;
  rlcc_sparse_linear_grad_values_params params{};

  GradValuesCase(const Packed& w, int64_t rows, rlcc_dtype dtype, std::mt19937& random)
      : x(rows, w.dense.columns(), dtype, 1),
        grad_y(rows, w.dense.rows(), dtype, 4),
        grad(static_cast<size_t>(w.weight.value_count) * dtype_bytes(w.weight.dtype), '\x7f'),
        expected(grad) {
    fill_normal(x, random);
    fill_normal(grad_y, random);
    params.weight = w.weight;
    params.x = x.data();
    params.rows = rows;
    params.x_stride = x.stride();
    params.grad_y = grad_y.data();
    params.grad_y_stride = grad_y.stride();
    params.dtype = dtype;
    params.grad_values = grad.data();
  }

  void run(const Packed& w, const std::string& name) {
    CHECK_STATUS(rlcc_sparse_linear_grad_values(&params), RLCC_OK);
    compare_with_reference(w, name);
  }

  void compare_with_reference(const Packed& w, const std::string& name) {
    rlcc_sparse_linear_grad_values_params reference = params;
    reference.grad_values = expected.data();
    CHECK_STATUS(rlcc_sparse_linear_grad_values_reference(&reference), RLCC_OK);
    const rlcc_dtype dtype = w.weight.dtype;
    int64_t place = 0;
    for (int64_t n = 0; n < w.dense.rows(); ++n) {
      place = w.row_offsets[static_cast<size_t>(n)];
      for (int64_t k = 0; k < w.dense.columns(); ++k) {
        if (w.dense.get(n, k) == 0) continue;
        double sum = 0;
        for (int64_t m = 0; m < x.rows(); ++m) sum += std::fabs(double{x.get(m, k)} * grad_y.get(m, n));
        const double g = restorelcc::element(grad.data(), dtype, place),
                     e = restorelcc::element(expected.data(), dtype, place);
        const double allowed = kSlack * 0x1p-24 * sum + 2 * rounding(dtype) * std::fabs(e) + smallest(dtype);
        CHECK(std::fabs(g - e) <= allowed || (std::isinf(e) && g == e) || (std::isnan(e) && std::isnan(g)))
            << name << " at " << n << ", " << k << ": " << g << " for " << e << ", allowed " << allowed;
        ++place;
      }
      const size_t bytes = dtype_bytes(dtype);  // what lies between the rows is as it was
      for (size_t i = static_cast<size_t>(place) * bytes;
           i < static_cast<size_t>(w.row_offsets[static_cast<size_t>(n) + 1]) * bytes; ++i) {
        CHECK(grad[i] == '\x7f') << name;
      }
    }
  }
};

inline std::string describe(const char* op, const char* isa, const Packed& w, int64_t rows, rlcc_dtype x) {
  std::ostringstream name;
  name << op << " " << isa << " M=" << rows << " N=" << w.dense.rows() << " K=" << w.dense.columns()
       << " values=" << dtype_name(w.weight.dtype) << " x=" << dtype_name(x);
  return name.str();
}

}  // namespace restorelcc::test
