// sparse_linear and sparse_linear_grad_x of every available instruction set against the float64 oracle.
//
// Budget: |y - y64| <= kSlack 2^-24 S + ulp(y64) / 2 in y's dtype, S = sum |x| |w| + |comp| + |bias| +
// |residual|. The fp32 sums run in at most a few dozen interleaved chains, so kSlack = 32 is a generous
// sqrt(K); a dropped, doubled or misplaced term (some are 100 times the others) is far outside. NaN and Inf are
// compared first, by position.
#include <algorithm>

#include "matrices.h"

using namespace restorelcc::test;

namespace {

constexpr double kSlack = 32;

struct Budget {
  std::vector<double> sums;  // sum |x| |w| + ...
  int64_t columns;
  double at(int64_t m, int64_t n) const { return sums[static_cast<size_t>(m * columns + n)]; }
};

void compare(const Matrix& got, const Matrix& expected, const Budget& budget, const std::string& name) {
  for (int64_t m = 0; m < got.rows(); ++m) {
    for (int64_t n = 0; n < got.columns(); ++n) {
      const double g = got.get(m, n), e = expected.get(m, n);
      CHECK(std::isnan(g) == std::isnan(e)) << name << " at " << m << ", " << n << ": " << g << " for " << e;
      CHECK(std::isinf(g) == std::isinf(e) && (!std::isinf(e) || g == e))
          << name << " at " << m << ", " << n << ": " << g << " for " << e;
      if (!std::isfinite(e) || !std::isfinite(g)) continue;
      // Both are rounded to the dtype: twice half a unit.
      const double allowed =
          kSlack * 0x1p-24 * budget.at(m, n) + 2 * rounding(got.dtype()) * std::fabs(e) + 1e-37;
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

  void run(const Packed& w, const std::string& name) {
    CHECK_STATUS(rlcc_sparse_linear_grad_x(&params), RLCC_OK);
    rlcc_sparse_linear_grad_x_params reference = params;
    reference.grad_x = expected.data();
    CHECK_STATUS(rlcc_sparse_linear_grad_x_reference(&reference), RLCC_OK);
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
    compare(grad_x, expected, budget, name);
  }
};

std::string describe(const char* op, const char* isa, const Packed& w, int64_t rows, rlcc_dtype x) {
  std::ostringstream name;
  name << op << " " << isa << " M=" << rows << " N=" << w.dense.rows() << " K=" << w.dense.columns()
       << " values=" << dtype_name(w.dense.dtype()) << " x=" << dtype_name(x);
  return name.str();
}

void ragged_shapes(const char* isa) {
  std::mt19937 random(11);
  for (rlcc_dtype values : kDtypes) {
    for (int64_t columns : kInputs) {
      for (int64_t outputs : kOutputs) {
        const Packed w(random_weight(outputs, columns, values, random, half_with_full_and_empty_row(random)));
        for (int64_t rows : kRows) {
          // The big corners cost the oracle seconds and test nothing that the others do not.
          if (outputs * columns * rows > 5'000'000) continue;
          for (rlcc_dtype x : kDtypes) {
            const int64_t groups = rows % 4;
            LinearCase(w, rows, x, random, groups, rows % 3 != 0, outputs != 17)
                .run(w, describe("linear", isa, w, rows, x));
            GradXCase(w, rows, x, random).run(w, describe("grad_x", isa, w, rows, x));
          }
        }
      }
    }
  }
}

void patterns(const char* isa) {
  std::mt19937 random(12);
  const Pattern all[] = {
      [](int64_t, int64_t) { return false; },       [](int64_t, int64_t) { return true; },
      [](int64_t, int64_t k) { return k % 4 < 2; }, [](int64_t n, int64_t k) { return k == n; },
      [](int64_t, int64_t k) { return k >= 128; },
  };
  for (const Pattern& pattern : all) {
    for (rlcc_dtype values : kDtypes) {
      const Packed w(random_weight(35, 200, values, random, pattern));
      for (int64_t rows : {1, 3, 40}) {
        LinearCase(w, rows, values, random, 0, false, false).run(w, describe("linear", isa, w, rows, values));
        GradXCase(w, rows, values, random).run(w, describe("grad_x", isa, w, rows, values));
      }
    }
  }
}

// Deep enough for several blocks of depth, tall enough for several blocks of rows.
void many_blocks(const char* isa) {
  std::mt19937 random(13);
  const Packed w(random_weight(3, 1500, RLCC_F32, random, half_with_full_and_empty_row(random)));
  LinearCase(w, 1100, RLCC_BF16, random, 3, true, true).run(w, describe("linear", isa, w, 1100, RLCC_BF16));
  const Packed tall(random_weight(1500, 3, RLCC_BF16, random, half_with_full_and_empty_row(random)));
  GradXCase(tall, 1100, RLCC_F32, random).run(tall, describe("grad_x", isa, tall, 1100, RLCC_F32));
}

// Infinities and NaN in weights and inputs land where a dense product has them: 0 * Inf is NaN.
void special_values(const char* isa) {
  std::mt19937 random(14);
  const float special[] = {INFINITY, -INFINITY, NAN, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {1, 7, 30}) {
      for (bool in_weight : {false, true}) {
        Matrix dense = random_weight(20, 130, dtype, random, half_with_full_and_empty_row(random));
        for (int i = 0; i < 4 && in_weight; ++i) dense.set(3 * i + 1, 11 * i, special[i]);
        const Packed w(dense);
        LinearCase linear(w, rows, dtype, random, 0, true, true);
        GradXCase gradient(w, rows, dtype, random);
        for (int i = 0; i < 4 && !in_weight; ++i) {
          linear.x.set(i % rows, 37 * i, special[i]);
          gradient.grad_y.set(i % rows, 5 * i, special[i]);
        }
        linear.run(w, describe("special linear", isa, w, rows, dtype));
        gradient.run(w, describe("special grad_x", isa, w, rows, dtype));
      }
    }
  }
}

// NaN whose payload is all ones: rounding it to bf16 like a number would carry into the sign and give -0.
void nan_payloads(const char* isa) {
  std::mt19937 random(17);
  const Packed w(random_weight(20, 70, RLCC_BF16, random, half_with_full_and_empty_row(random)));
  for (uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7f800001u}) {
    for (int64_t rows : {1, 20}) {
      LinearCase linear(w, rows, RLCC_BF16, random, 0, true, false);
      std::memcpy(&linear.bias[7], &bits, 4);
      linear.run(w, describe("NaN payload", isa, w, rows, RLCC_BF16));
      CHECK(std::isnan(linear.y.get(0, 7))) << isa;
    }
  }
}

void residual_in_place(const char* isa) {
  std::mt19937 random(15);
  const Packed w(random_weight(33, 70, RLCC_BF16, random, half_with_full_and_empty_row(random)));
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {2, 20}) {
      LinearCase apart(w, rows, dtype, random, 2, true, true);
      apart.params.residual_stride = apart.residual.stride();
      CHECK_STATUS(rlcc_sparse_linear(&apart.params), RLCC_OK);
      rlcc_sparse_linear_params in_place = apart.params;
      in_place.y = apart.residual.data();
      in_place.y_stride = apart.residual.stride();
      CHECK_STATUS(rlcc_sparse_linear(&in_place), RLCC_OK);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < 33; ++n) CHECK(apart.y.get(m, n) == apart.residual.get(m, n)) << isa;
      }
    }
  }
}

void empty_products() {
  const int64_t offsets[4] = {0, 0, 0, 0};
  alignas(16) const char padding[64] = {};
  const float bias[3] = {1, 2, 3};
  float grad[2][1] = {{-1}, {-1}};
  rlcc_sparse_linear_params linear{};
  linear.weight = {3, 0, nullptr, padding, 16, offsets, RLCC_F32, 0};  // K = 0: y is the bias
  for (int64_t rows : {2, 20}) {
    std::vector<float> out(static_cast<size_t>(3 * rows), -1.0f);
    linear.x_rows = rows;
    linear.y = out.data();
    linear.y_stride = 3;
    linear.bias = bias;
    CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == bias[i % 3]);
  }
  rlcc_sparse_linear_grad_x_params gradient{};
  gradient.weight = {0, 1, nullptr, padding, 16, offsets, RLCC_F32, 0};  // N = 0: the gradient is 0
  gradient.y_rows = 2;
  gradient.grad_x = grad;
  gradient.grad_x_stride = 1;
  CHECK_STATUS(rlcc_sparse_linear_grad_x(&gradient), RLCC_OK);
  CHECK(grad[0][0] == 0 && grad[1][0] == 0);
}

void refused() {
  std::mt19937 random(16);
  const Packed w(random_weight(5, 70, RLCC_F32, random, half_with_full_and_empty_row(random)));
  const std::function<void(LinearCase&)> wrongs[] = {
      [](LinearCase& c) { c.comp_index[2] = 3; },
      [](LinearCase& c) { c.comp_index[1] = -1; },
      [](LinearCase& c) { c.params.comp_index = nullptr; },
      [](LinearCase& c) { c.params.comp_rows = nullptr; },
      [](LinearCase& c) { c.params.groups = 0; },
      [](LinearCase& c) { c.params.groups = -1; },
      [](LinearCase& c) { c.params.groups = INT64_MAX; },
      [](LinearCase& c) { c.params.x = nullptr; },
      [](LinearCase& c) { c.params.y = nullptr; },
      [](LinearCase& c) { c.params.x_rows = -1; },
      [](LinearCase& c) { c.params.x_rows = INT64_MAX; },
      [](LinearCase& c) { c.params.x_stride = 69; },
      [](LinearCase& c) { c.params.x_stride = INT64_MAX; },
      [](LinearCase& c) { c.params.y_stride = 4; },
      [](LinearCase& c) { c.params.residual_stride = 4; },
      [](LinearCase& c) { c.params.x_dtype = static_cast<rlcc_dtype>(2); },
      [](LinearCase& c) { c.params.y = c.residual.data(); },  // in place with another stride
  };
  for (const auto& wrong : wrongs) {
    LinearCase linear(w, 4, RLCC_F32, random, 3, true, true);
    wrong(linear);
    CHECK_STATUS(rlcc_sparse_linear(&linear.params), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_sparse_linear_reference(&linear.params), RLCC_INVALID_ARGUMENT);
    CHECK(linear.y == linear.expected);  // untouched
  }
}

}  // namespace

int main() {
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    CHECK(std::strcmp(rlcc_isa(), isa) == 0);
    ragged_shapes(isa);
    patterns(isa);
    many_blocks(isa);
    special_values(isa);
    nan_payloads(isa);
    residual_in_place(isa);
    empty_products();
  }
  refused();
  return report("sparse_linear");
}
