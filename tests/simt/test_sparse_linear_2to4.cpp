// The 2:4 weight: its repacking, element by element, and sparse_linear on it in the emulator, through the C
// entry points, against the float64 oracle of the bitmask weight that it came from.
#include <cmath>
#include <set>

#include "../cpp/sparse_linear_cases.h"
#include "check_launch.h"
#include "cuda/tile_plan.h"
#include "restorelcc/cuda.h"
#include "workspace.h"

using namespace restorelcc::test;
using restorelcc::cuda::TileShape;

namespace {

std::set<std::pair<TileShape, bool>> seen;

// At most two of every four: none, one or two, each place in turn.
Pattern two_of_four(std::mt19937& random) {
  return [&random, kept = 0u](int64_t n, int64_t k) mutable {
    constexpr unsigned kChoices[] = {0, 1, 2, 4, 8, 3, 5, 9, 6, 10, 12, 3, 5, 9, 6, 10, 12, 12};
    if (k % 4 == 0) kept = n == 1 ? 0u : n == 0 ? 12u : kChoices[random() % 18];
    return (kept >> k % 4 & 1) != 0;
  };
}

struct Repacked {
  mutable Workspace values, metadata;
  int64_t row_values;
  rlcc_cuda_weight_2to4 weight;

  static std::pair<int64_t, int64_t> counts(const Packed& w) {
    int64_t value_count = -1, metadata_count = -1;
    CHECK_STATUS(rlcc_cuda_pack_2to4_counts(&w.weight, &value_count, &metadata_count), RLCC_OK);
    return {value_count, metadata_count};
  }
  explicit Repacked(const Packed& w)
      : values(static_cast<size_t>(counts(w).first) * 2),
        metadata(static_cast<size_t>(counts(w).second) * 4),
        row_values((w.weight.columns + 63) / 64 * 32) {
    CHECK_STATUS(rlcc_cuda_pack_2to4(&w.weight, values.get(), counts(w).first,
                                     static_cast<uint32_t*>(metadata.get()), counts(w).second),
                 RLCC_OK);
    weight = {w.weight.rows, w.weight.columns, values.get(), static_cast<const uint32_t*>(metadata.get()),
              w.weight.dtype};
  }
};

// What the layout of cuda.h says, read back.
void repacking() {
  std::mt19937 random(51);
  for (rlcc_dtype dtype : {RLCC_BF16, RLCC_F16}) {
    for (const auto& [outputs, columns] :
         {std::pair<int64_t, int64_t>{1, 1}, {16, 64}, {17, 65}, {35, 258}, {3, 127}}) {
      const Packed w(random_weight(outputs, columns, dtype, random, two_of_four(random)));
      const Repacked r(w);
      const int64_t column_blocks = (columns + 63) / 64, rows = (outputs + 15) / 16 * 16;
      for (int64_t n = 0; n < rows; ++n) {
        std::vector<float> row(static_cast<size_t>(column_blocks * 64));
        for (int64_t i = 0; i < r.row_values; ++i) {
          const int64_t four = i / 2, lane = n % 8 * 4 + four % 16 / 4;
          const uint32_t word = r.weight.metadata[(n / 16 * column_blocks + four / 16) * 32 + lane];
          const uint32_t bits = word >> (n % 16 / 8 * 16 + four % 4 * 4) & 15;
          CHECK((bits & 3) < bits >> 2) << "ascending";
          const uint32_t column = i % 2 == 0 ? bits & 3 : bits >> 2;
          row[static_cast<size_t>(four * 4 + column)] =
              static_cast<float>(restorelcc::element(r.weight.values, dtype, n * r.row_values + i));
        }
        for (int64_t k = 0; k < column_blocks * 64; ++k) {
          const float expected = n < outputs && k < columns ? w.dense.get(n, k) : 0.0f;
          CHECK(row[static_cast<size_t>(k)] == expected) << n << ", " << k;
        }
      }
    }
  }
}

void call(LinearCase& c, const rlcc_cuda_weight_2to4& weight) {
  rlcc_sparse_linear_params params = c.params;
  params.weight = {};
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_2to4_workspace(&params, &weight, &bytes), RLCC_OK);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear_2to4(&params, &weight, workspace.get(), bytes, nullptr), RLCC_OK);
  const auto plan =
      restorelcc::cuda::plan_2to4(params.x_rows, weight.rows, weight.columns,
                                  {simt::options().multiprocessors, simt::options().shared_bytes_per_block});
  CHECK((bytes > 0) == (plan.splits > 1));
  seen.insert({plan.tile, plan.splits > 1});
}

void run(LinearCase& c, const Packed& w, const Repacked& r, const std::string& name) {
  call(c, r.weight);
  rlcc_sparse_linear_params reference = c.params;
  reference.y = c.expected.data();
  CHECK_STATUS(rlcc_sparse_linear_reference(&reference), RLCC_OK);
  compare(c.y, c.expected, c.budget(w.dense), name);
}

void ragged_shapes() {
  std::mt19937 random(52);
  size_t turn = 0;
  for (rlcc_dtype dtype : {RLCC_BF16, RLCC_F16}) {
    for (int64_t columns : {1, 2, 63, 64, 129, 449}) {
      for (int64_t outputs : {1, 2, 17, 129}) {
        const Packed w(random_weight(outputs, columns, dtype, random, two_of_four(random)));
        const Repacked r(w);
        for (int64_t rows : {0, 1, 5, 17, 65, 129}) {
          if (looks_for_races() && ++turn % 5 != 0) continue;
          if (outputs * columns * rows > 500'000 && turn++ % 3 != 0) continue;
          LinearCase c(w, rows, dtype, random, rows % 4, rows % 3 != 0, outputs != 17);
          run(c, w, r, describe("2to4", "cuda", w, rows, dtype));
        }
      }
    }
  }
}

void every_plan() {
  std::mt19937 random(53);
  struct Shape {
    int64_t rows, outputs, columns;
    int multiprocessors;
  };
  for (const Shape& s : {Shape{130, 129, 200, 1}, {128, 200, 70, 1}, {20, 70, 1100, 132}}) {
    for (rlcc_dtype dtype : {RLCC_BF16, RLCC_F16}) {
      simt::options().multiprocessors = s.multiprocessors;
      const Packed w(random_weight(s.outputs, s.columns, dtype, random, two_of_four(random)));
      LinearCase c(w, s.rows, dtype, random, 2, true, true);
      run(c, w, Repacked(w), describe("every_plan", "2to4", w, s.rows, dtype));
    }
  }
  simt::options() = simt::Options{};
  CHECK(seen.count({TileShape::k128x128, false}) == 1);
  for (bool split : {false, true}) CHECK(seen.count({TileShape::k64x64, split}) == 1);
}

void alignments() {
  std::mt19937 random(54);
  for (const auto& [columns, outputs] : {std::pair<int64_t, int64_t>{192, 64}, {200, 72}, {98, 35}}) {
    const Packed w(random_weight(outputs, columns, RLCC_F16, random, two_of_four(random)));
    const Repacked r(w);
    for (int64_t gap : {0, 2, 3}) {
      LinearCase c(w, 35, RLCC_F16, random, 0, false, false);
      c.x = Matrix(35, columns, RLCC_F16, gap);
      c.y = c.expected = Matrix(35, outputs, RLCC_F16, gap);
      fill_normal(c.x, random);
      c.params.x = c.x.data();
      c.params.x_stride = c.x.stride();
      c.params.y = c.y.data();
      c.params.y_stride = c.y.stride();
      run(c, w, r, describe("alignments", "2to4", w, 35, RLCC_F16));
    }
  }
}

// Inf and NaN of W go where the oracle's go; those of x at least where they meet a survivor.
void special_values() {
  std::mt19937 random(55);
  Matrix dense = random_weight(20, 130, RLCC_BF16, random, two_of_four(random));
  const float specials[] = {INFINITY, -INFINITY, NAN};
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 4; ++j) dense.set(3 * i + 2, 40 * i + j, j == i ? specials[i] : 0.0f);
  }
  const Packed w(dense);
  const Repacked r(w);
  LinearCase c(w, 30, RLCC_BF16, random, 0, true, true);
  run(c, w, r, describe("special_values", "2to4", w, 30, RLCC_BF16));
  c.x.set(4, 77, INFINITY);
  call(c, r.weight);
  for (int64_t n = 0; n < 20; ++n) {
    CHECK(w.dense.get(n, 77) == 0 || !std::isfinite(c.y.get(4, n)));
  }
}

void the_bits_are_the_same() {
  std::mt19937 random(56);
  struct Shape {
    int64_t rows, outputs, columns;
    int multiprocessors;
  };
  for (const Shape& s : {Shape{128, 128, 200, 1}, {20, 70, 1030, 132}, {17, 40, 200, 4}}) {
    const Packed w(random_weight(s.outputs, s.columns, RLCC_BF16, random, two_of_four(random)));
    const Repacked r(w);
    LinearCase c(w, s.rows, RLCC_BF16, random, 2, true, true);
    simt::options().multiprocessors = s.multiprocessors;
    run(c, w, r, describe("schedules", "2to4", w, s.rows, RLCC_BF16));
    const Matrix first = c.y;
    under_every_schedule(1, [&, at = s.multiprocessors](const std::string& schedule) {
      if (looks_for_races() && schedule[0] != 'r') return;  // random, lazy and eager
      simt::options().multiprocessors = at;
      c.y = Matrix(first.rows(), first.columns(), first.dtype(), first.stride() - first.columns());
      c.params.y = c.y.data();
      call(c, r.weight);
      CHECK(c.y == first) << schedule;
    });
  }
}

void refused() {
  std::mt19937 random(57);
  // One group too full, in turn at each end of the matrix.
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{0, 0}, {4, 124}, {2, 60}}) {
    Matrix dense = random_weight(5, 128, RLCC_BF16, random, two_of_four(random));
    for (int j = 0; j < 3; ++j) dense.set(n, k + j, 1.0f);
    const Packed w(dense);
    const auto [value_count, metadata_count] = Repacked::counts(w);
    Workspace values(static_cast<size_t>(value_count) * 2), metadata(static_cast<size_t>(metadata_count) * 4);
    CHECK_STATUS(rlcc_cuda_pack_2to4(&w.weight, values.get(), value_count,
                                     static_cast<uint32_t*>(metadata.get()), metadata_count),
                 RLCC_INVALID_ARGUMENT);
    const std::string place = "row " + std::to_string(n) + " has";
    CHECK(std::strstr(rlcc_last_error(), place.c_str()) != nullptr) << rlcc_last_error();
  }
  int64_t count = 0;
  for (rlcc_dtype values : {RLCC_F32, RLCC_I8}) {
    const Packed w(random_weight(5, 70, RLCC_F32, random, two_of_four(random)), values);
    CHECK_STATUS(rlcc_cuda_pack_2to4_counts(&w.weight, &count, &count), RLCC_INVALID_ARGUMENT);
  }
  const Packed w(random_weight(5, 70, RLCC_BF16, random, two_of_four(random)));
  const Repacked r(w);
  CHECK_STATUS(rlcc_cuda_pack_2to4(&w.weight, r.values.get(), 16 * 64 - 1, nullptr, 64), RLCC_INVALID_ARGUMENT);
  const std::function<void(rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4&)> wrongs[] = {
      [](rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4& v) { v.values = nullptr; },
      [](rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4& v) { v.metadata = nullptr; },
      [](rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4& v) { v.rows = -1; },
      [](rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4& v) { v.columns = -1; },
      [](rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4& v) { v.dtype = RLCC_F16; },
      [](rlcc_sparse_linear_params&, rlcc_cuda_weight_2to4& v) { v.dtype = RLCC_F32; },
      [](rlcc_sparse_linear_params& p, rlcc_cuda_weight_2to4&) { p.x_dtype = RLCC_F32; },
      [](rlcc_sparse_linear_params& p, rlcc_cuda_weight_2to4&) { p.x = nullptr; },
      [](rlcc_sparse_linear_params& p, rlcc_cuda_weight_2to4&) { p.y_stride = 4; },
      [](rlcc_sparse_linear_params& p, rlcc_cuda_weight_2to4&) { p.groups = 1; },
  };
  for (const auto& wrong : wrongs) {
    LinearCase c(w, 4, RLCC_BF16, random, 0, false, false);
    rlcc_cuda_weight_2to4 weight = r.weight;
    wrong(c.params, weight);
    CHECK_STATUS(rlcc_cuda_sparse_linear_2to4(&c.params, &weight, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK(c.y == c.expected);
  }
}

}  // namespace

int main() {
  repacking();
  ragged_shapes();
  every_plan();
  alignments();
  special_values();
  the_bits_are_the_same();
  refused();
  return report("sparse_linear_2to4");
}
