// sparse_linear on the emulated device, through the C entry point, against the float64 oracle: the cases and
// the budget of tests/cpp/test_sparse_linear.cpp (x is never rounded to 8 bits here). The bits must not depend
// on the schedule.
#include <cmath>
#include <vector>

#include "../cpp/sparse_linear_cases.h"
#include "check_launch.h"
#include "cuda/plan.h"
#include "restorelcc/cuda.h"

using namespace restorelcc::test;

namespace {

// A device so small that no row is cut into parts: a warp streams through all of its segments.
constexpr int kUncut = 0;

// 16-byte aligned scratch, NaN.
struct Workspace {
  std::vector<double> storage;
  size_t bytes;
  explicit Workspace(size_t count) : storage(count / 8 + 2, std::nan("")), bytes(count) {}
  void* get() {
    void* const at = storage.data();
    return reinterpret_cast<uintptr_t>(at) % 16 == 0 ? at : storage.data() + 1;
  }
};

void call(LinearCase& c) {
  c.params.weight.trusted = 1;
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(&c.params, &bytes), RLCC_OK);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, workspace.get(), bytes, nullptr), RLCC_OK);
}

void run(LinearCase& c, const Packed& w, const std::string& name) {
  call(c);
  rlcc_sparse_linear_params reference = c.params;
  reference.y = c.expected.data();
  CHECK_STATUS(rlcc_sparse_linear_reference(&reference), RLCC_OK);
  Budget budget = c.budget(w.dense);
  budget.quantised.clear();
  compare(c.y, c.expected, budget, name);
}

void ragged_shapes() {
  std::mt19937 random(21);
  size_t turn = 0;
  for (rlcc_dtype values : kValues) {
    for (int64_t columns : {1, 2, 63, 64, 129, 449, 576, 1134, 2304}) {
      for (int64_t outputs : {1, 2, 17, 129}) {
        const Packed w(
            random_weight(outputs, columns, dense_dtype(values), random, half_with_full_and_empty_row(random)),
            values);
        for (int64_t rows : {0, 1, 2, 5, 16, 17}) {
          const rlcc_dtype x = kDtypes[turn++ % 3];
          if (outputs * columns * rows > 300'000 && turn % 5 != 0) continue;
          if (kSlow && turn % 17 != 0) continue;
          simt::options().multiprocessors = turn % 2 == 0 ? kUncut : 4;
          LinearCase c(w, rows, x, random, rows % 4, rows % 3 != 0, outputs != 17);
          run(c, w, describe("decode", "cuda", w, rows, x));
        }
      }
    }
  }
  simt::options() = simt::Options{};
}

// Segment after segment in the same shared memory.
void long_rows() {
  std::mt19937 random(30);
  for (rlcc_dtype values : kValues) {
    simt::options().multiprocessors = kUncut;
    const Packed w(random_weight(9, 4500, dense_dtype(values), random, half_with_full_and_empty_row(random)),
                   values);
    LinearCase c(w, 1, dense_dtype(values), random, 0, true, true);
    run(c, w, describe("long_rows", "cuda", w, 1, dense_dtype(values)));
  }
  simt::options() = simt::Options{};
}

// Few outputs and many columns: split over warps and blocks. Many outputs: several row groups in a block.
void every_plan() {
  std::mt19937 random(22);
  simt::options().multiprocessors = 132;
  for (const auto& [outputs, columns] :
       {std::pair<int64_t, int64_t>{3, 9000}, {5, 4160}, {700, 520}, {9, 1024}}) {
    for (rlcc_dtype values : kValues) {
      if (kSlow && values != RLCC_BF16) continue;
      const Packed w(
          random_weight(outputs, columns, dense_dtype(values), random, half_with_full_and_empty_row(random)),
          values);
      for (int64_t rows : {1, 3}) {
        LinearCase c(w, rows, dense_dtype(values), random, 2, true, true);
        run(c, w, describe("every_plan", "cuda", w, rows, dense_dtype(values)));
      }
    }
  }
  simt::options() = simt::Options{};
}

void patterns() {
  std::mt19937 random(23);
  const Pattern all[] = {
      [](int64_t, int64_t) { return false; },       [](int64_t, int64_t) { return true; },
      [](int64_t, int64_t k) { return k % 4 < 2; }, [](int64_t n, int64_t k) { return k == n; },
      [](int64_t, int64_t k) { return k >= 128; },  [](int64_t, int64_t k) { return k % 512 == 511; },
  };
  for (const Pattern& pattern : all) {
    for (rlcc_dtype values : kValues) {
      const Packed w(random_weight(6, 1300, dense_dtype(values), random, pattern), values);
      for (int64_t rows : {1, 3}) {
        LinearCase c(w, rows, dense_dtype(values), random, 0, false, false);
        run(c, w, describe("patterns", "cuda", w, rows, dense_dtype(values)));
      }
    }
  }
}

// 16-byte loads of x and of the mask where they are allowed, and where they are not.
void alignments() {
  std::mt19937 random(24);
  for (int64_t columns : {512, 576, 640}) {  // an odd number of mask words in the middle one
    const Packed w(random_weight(9, columns, RLCC_BF16, random, half_with_full_and_empty_row(random)));
    for (rlcc_dtype dtype : kDtypes) {
      for (int64_t gap : {0, 8, 3}) {
        LinearCase c(w, 3, dtype, random, 0, false, false);
        c.x = Matrix(3, columns, dtype, gap);
        fill_normal(c.x, random);
        c.params.x = c.x.data();
        c.params.x_stride = c.x.stride();
        run(c, w, describe("alignments", "cuda", w, 3, dtype));
      }
    }
  }
}

// A pruned weight is +0, not nothing; Inf and NaN in values and in x go where the oracle's go.
void special_values() {
  std::mt19937 random(25);
  const float specials[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    Matrix dense = random_weight(12, 600, dtype, random, half_with_full_and_empty_row(random));
    for (size_t i = 0; i < 5; ++i)
      dense.set(static_cast<int64_t>(i) + 2, 100 * static_cast<int64_t>(i), specials[i]);
    const Packed w(dense);
    for (int64_t rows : {1, 5}) {
      LinearCase c(w, rows, dtype, random, 0, false, false);
      for (int64_t m = 0; m < rows; ++m) c.x.set(m, 77 * m + 3, specials[m % 5]);
      run(c, w, describe("special_values", "cuda", w, rows, dtype));
    }
  }
}

// x is not finite in one place only, which one lane in one step sees: every fourth row of W has a weight there,
// the others a pruned one, and one of them nothing but pruned ones.
void one_special_value() {
  std::mt19937 random(31);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t column : {0, 777, 1299}) {
      const auto half = half_with_full_and_empty_row(random);
      const Packed w(random_weight(9, 1300, dtype, random, [&](int64_t n, int64_t k) {
        return k == column ? n % 4 == 0 : n != 6 && half(n, k);
      }));
      for (float special : {INFINITY, NAN}) {
        LinearCase c(w, 1, dtype, random, 0, false, false);
        c.x.set(0, column, special);
        run(c, w, describe("one_special_value", "cuda", w, 1, dtype));
        for (int64_t n = 0; n < 9; ++n)
          CHECK(n % 4 == 0 ? !std::isfinite(c.y.get(0, n)) : std::isnan(c.y.get(0, n)));
      }
    }
  }
}

void residual_in_place() {
  std::mt19937 random(26);
  const Packed w(random_weight(37, 1100, RLCC_BF16, random, half_with_full_and_empty_row(random)));
  LinearCase c(w, 4, RLCC_BF16, random, 3, true, true), in_place(c);
  call(c);
  in_place.params.x = in_place.x.data();
  in_place.params.comp_rows = in_place.comp_rows.data();
  in_place.params.comp_index = in_place.comp_index.data();
  in_place.params.bias = in_place.bias.data();
  in_place.params.residual = in_place.params.y = in_place.residual.data();
  in_place.params.y_stride = in_place.residual.stride();
  call(in_place);
  for (int64_t m = 0; m < 4; ++m) {
    for (int64_t n = 0; n < 37; ++n) CHECK(c.y.get(m, n) == in_place.residual.get(m, n));
  }
}

void the_bits_are_the_same() {
  std::mt19937 random(27);
  for (const auto& [outputs, columns, processors] :
       {std::tuple<int64_t, int64_t, int>{13, 1600, 4}, {5, 4160, 132}, {7, 3000, kUncut}}) {
    for (rlcc_dtype values : {RLCC_BF16, RLCC_I8}) {
      if (kSlow && values == RLCC_I8) continue;
      const Packed w(
          random_weight(outputs, columns, dense_dtype(values), random, half_with_full_and_empty_row(random)),
          values);
      LinearCase c(w, 2, RLCC_BF16, random, 2, true, true);
      simt::options().multiprocessors = processors;
      run(c, w, describe("schedules", "cuda", w, 2, RLCC_BF16));
      const Matrix first = c.y;
      under_every_schedule(kSlow ? 1 : 3, [&, at = processors](const std::string& schedule) {
        simt::options().multiprocessors = at;
        c.y = Matrix(first.rows(), first.columns(), first.dtype(), first.stride() - first.columns());
        c.params.y = c.y.data();
        call(c);
        CHECK(c.y == first) << schedule;
      });
    }
  }
}

void out_of_range_index() {
  std::mt19937 random(28);
  const Packed w(random_weight(5, 70, RLCC_F32, random, half_with_full_and_empty_row(random)));
  LinearCase c(w, 3, RLCC_F32, random, 2, true, true);
  c.comp_index[1] = 2;
  c.comp_index[2] = -1;
  call(c);
  for (int64_t n = 0; n < 5; ++n) {
    CHECK(std::isfinite(c.y.get(0, n)) && std::isnan(c.y.get(1, n)) && std::isnan(c.y.get(2, n)));
  }
}

void refused() {
  std::mt19937 random(29);
  const Packed w(random_weight(5, 4160, RLCC_F32, random, half_with_full_and_empty_row(random)));
  const std::function<void(LinearCase&)> wrongs[] = {
      [](LinearCase& c) { c.params.weight.trusted = 0; },
      [](LinearCase& c) { c.params.weight.values = static_cast<const float*>(c.params.weight.values) + 1; },
      [](LinearCase& c) { c.params.comp_index = nullptr; },
      [](LinearCase& c) { c.params.comp_rows = nullptr; },
      [](LinearCase& c) { c.params.groups = 0; },
      [](LinearCase& c) { c.params.groups = -1; },
      [](LinearCase& c) { c.params.groups = INT64_MAX; },
      [](LinearCase& c) { c.params.x = nullptr; },
      [](LinearCase& c) { c.params.x_rows = INT64_MAX; },
      [](LinearCase& c) { c.params.x_stride = 69; },
      [](LinearCase& c) { c.params.y_stride = 4; },
      [](LinearCase& c) { c.params.x_dtype = RLCC_I8; },
  };
  simt::options().multiprocessors = 132;  // so that there is a workspace
  for (const auto& wrong : wrongs) {
    LinearCase c(w, 4, RLCC_F32, random, 3, true, true);
    c.params.weight.trusted = 1;
    size_t bytes = 0;
    CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(&c.params, &bytes), RLCC_OK);
    CHECK(bytes > 0);
    Workspace workspace(bytes);
    CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, workspace.get(), bytes - 1, nullptr),
                 RLCC_INVALID_ARGUMENT);
    wrong(c);
    CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, workspace.get(), bytes, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK(c.y == c.expected);  // untouched
  }
  CHECK_STATUS(rlcc_cuda_sparse_linear(nullptr, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(nullptr, nullptr), RLCC_INVALID_ARGUMENT);
  simt::options() = simt::Options{};
}

}  // namespace

int main() {
  ragged_shapes();
  long_rows();
  every_plan();
  if (!kSlow) {
    patterns();
    alignments();
    special_values();
    one_special_value();
  }
  residual_in_place();
  the_bits_are_the_same();
  out_of_range_index();
  refused();
  return report("sparse_linear_decode");
}
