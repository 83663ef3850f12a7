// sparse_linear of more than 16 rows on the emulated device, through the C entry point, against the float64
// oracle: the cases and the budget of tests/cpp/test_sparse_linear.cpp (x is never rounded to 8 bits here).
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

// Values and x: each kind of kernel, and what goes to plain fp32.
constexpr std::pair<rlcc_dtype, rlcc_dtype> kPairs[] = {{RLCC_BF16, RLCC_BF16}, {RLCC_F16, RLCC_F16},
                                                        {RLCC_I8, RLCC_BF16},   {RLCC_I8, RLCC_F16},
                                                        {RLCC_F16, RLCC_BF16},  {RLCC_I8, RLCC_F32}};

std::set<std::pair<TileShape, bool>> seen;  // tiles of the tensor cores' kernel, and whether they were split

void call(LinearCase& c) {
  c.params.weight.trusted = 1;
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(&c.params, &bytes), RLCC_OK);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, workspace.get(), bytes, nullptr), RLCC_OK);
  const auto plan =
      restorelcc::cuda::plan_forward(c.params.x_rows, c.params.weight, c.params.x_dtype,
                                     {simt::options().multiprocessors, simt::options().shared_bytes_per_block});
  CHECK((bytes > 0) == (plan.splits > 1));
  if (plan.tensor_cores) seen.insert({plan.tile, plan.splits > 1});
}

void run(LinearCase& c, const Packed& w, const std::string& name) {
  call(c);
  rlcc_sparse_linear_params reference = c.params;
  reference.y = c.expected.data();
  CHECK_STATUS(rlcc_sparse_linear_reference(&reference), RLCC_OK);
  compare(c.y, c.expected, c.budget(w.dense), name);
}

void ragged_shapes() {
  std::mt19937 random(31);
  size_t turn = 0;
  for (rlcc_dtype values : kValues) {
    for (int64_t columns : {1, 31, 64, 129, 449}) {
      for (int64_t outputs : {1, 17, 129}) {
        const Packed w(
            random_weight(outputs, columns, dense_dtype(values), random, half_with_full_and_empty_row(random)),
            values);
        for (int64_t rows : {17, 65, 129}) {
          if (looks_for_races() && ++turn % 5 != 0) continue;
          if (outputs * columns * rows > 500'000 && ++turn % 2 != 0) continue;
          const rlcc_dtype x = kDtypes[++turn % 3];
          LinearCase c(w, rows, x, random, rows % 4, rows % 3 != 0, outputs != 17);
          run(c, w, describe("tiles", "cuda", w, rows, x));
        }
      }
    }
  }
}

// One multiprocessor wants few large tiles, many want splits.
void every_plan() {
  std::mt19937 random(32);
  struct Shape {
    int64_t rows, outputs, columns;
    int multiprocessors;
  };
  for (const Shape& s :
       {Shape{260, 129, 70, 1}, {130, 100, 257, 1}, {70, 130, 1100, 132}, {33, 3, 2100, 132}}) {
    for (const auto& [values, x] : kPairs) {
      if (s.rows > 256 && values != x && values != RLCC_I8) continue;
      const Packed w(random_weight(s.outputs, s.columns, dense_dtype(values), random,
                                   half_with_full_and_empty_row(random)),
                     values);
      simt::options().multiprocessors = s.multiprocessors;
      LinearCase c(w, s.rows, x, random, 2, true, true);
      run(c, w, describe("every_plan", "cuda", w, s.rows, x));
    }
  }
  simt::options() = simt::Options{};
  for (TileShape tile : {TileShape::k256x128, TileShape::k128x64, TileShape::k64x64}) {
    CHECK(seen.count({tile, false}) == 1) << static_cast<int>(tile);
  }
  CHECK(seen.count({TileShape::k64x64, true}) == 1);
}

void patterns() {
  std::mt19937 random(33);
  const Pattern all[] = {
      [](int64_t, int64_t) { return false; },       [](int64_t, int64_t) { return true; },
      [](int64_t, int64_t k) { return k % 4 < 2; }, [](int64_t n, int64_t k) { return k == n; },
      [](int64_t, int64_t k) { return k >= 128; },  [](int64_t, int64_t k) { return k % 32 == 31; },
  };
  for (const Pattern& pattern : all) {
    for (rlcc_dtype values : kValues) {
      const rlcc_dtype x = values == RLCC_I8 ? RLCC_F16 : dense_dtype(values);
      const Packed w(random_weight(67, 200, dense_dtype(values), random, pattern), values);
      LinearCase c(w, 40, x, random, 0, false, false);
      run(c, w, describe("patterns", "cuda", w, 40, x));
    }
  }
}

// Copies of 16, of 4 and of 2 bytes; y and residual by 16 bytes and one by one.
void alignments() {
  std::mt19937 random(34);
  for (const auto& [columns, outputs] : {std::pair<int64_t, int64_t>{192, 64}, {200, 72}, {98, 35}}) {
    const Packed w(random_weight(outputs, columns, RLCC_BF16, random, half_with_full_and_empty_row(random)));
    for (int64_t gap : {0, 8, 2, 3}) {
      LinearCase c(w, 35, RLCC_BF16, random, 2, true, true);
      c.x = Matrix(35, columns, RLCC_BF16, gap);
      c.y = c.expected = Matrix(35, outputs, RLCC_BF16, gap);
      c.residual = Matrix(35, outputs, RLCC_BF16, gap == 8 ? 0 : gap);
      fill_normal(c.x, random);
      fill_normal(c.residual, random);
      c.params.x = c.x.data();
      c.params.x_stride = c.x.stride();
      c.params.y = c.y.data();
      c.params.y_stride = c.y.stride();
      c.params.residual = c.residual.data();
      c.params.residual_stride = c.residual.stride();
      run(c, w, describe("alignments", "cuda", w, 35, RLCC_BF16) + " gap " + std::to_string(gap));
    }
  }
}

// A pruned weight is +0, not nothing; Inf and NaN in values and in x go where the oracle's go. Int8 values of
// -128.
void special_values() {
  std::mt19937 random(35);
  const float specials[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    for (bool in_weight : {false, true}) {
      Matrix dense = random_weight(20, 130, dtype, random, half_with_full_and_empty_row(random));
      for (int i = 0; i < 5 && in_weight; ++i) dense.set(3 * i + 1, 25 * i, specials[i]);
      const Packed w(dense);
      LinearCase c(w, 30, dtype, random, 0, true, true);
      for (int i = 0; i < 5 && !in_weight; ++i) c.x.set(5 * i, 30 * i, specials[i]);
      run(c, w, describe("special_values", "cuda", w, 30, dtype));
    }
    Packed w(random_weight(9, 300, RLCC_F32, random, half_with_full_and_empty_row(random)), RLCC_I8);
    for (char& value : w.storage) value = '\x80';
    CHECK_STATUS(rlcc_unpack(&w.weight, w.dense.data(), w.dense.stride()), RLCC_OK);
    LinearCase c(w, 20, dtype, random, 0, false, false);
    run(c, w, describe("-128", "cuda", w, 20, dtype));
  }
}

void residual_in_place() {
  std::mt19937 random(36);
  for (int processors : {4, 132}) {  // the latter splits
    simt::options().multiprocessors = processors;
    const Packed w(random_weight(40, 1100, RLCC_BF16, random, half_with_full_and_empty_row(random)));
    for (rlcc_dtype dtype : kDtypes) {
      LinearCase c(w, 20, dtype, random, 3, true, true);
      call(c);
      rlcc_sparse_linear_params in_place = c.params;
      in_place.y = c.residual.data();
      in_place.y_stride = c.residual.stride();
      size_t bytes = 0;
      CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(&in_place, &bytes), RLCC_OK);
      Workspace workspace(bytes);
      CHECK_STATUS(rlcc_cuda_sparse_linear(&in_place, workspace.get(), bytes, nullptr), RLCC_OK);
      for (int64_t m = 0; m < 20; ++m) {
        for (int64_t n = 0; n < 40; ++n) CHECK(c.y.get(m, n) == c.residual.get(m, n));
      }
    }
  }
  simt::options() = simt::Options{};
}

void the_bits_are_the_same() {
  std::mt19937 random(37);
  struct Shape {
    int64_t rows, outputs, columns;
    int multiprocessors;
  };
  for (const Shape& s : {Shape{140, 100, 130, 1}, {20, 30, 1030, 132}}) {
    for (const auto& [values, x] :
         {std::pair<rlcc_dtype, rlcc_dtype>{RLCC_BF16, RLCC_BF16}, {RLCC_I8, RLCC_F16}, {RLCC_F16, RLCC_F32}}) {
      const Packed w(random_weight(s.outputs, s.columns, dense_dtype(values), random,
                                   half_with_full_and_empty_row(random)),
                     values);
      LinearCase c(w, s.rows, x, random, 2, true, true);
      simt::options().multiprocessors = s.multiprocessors;
      run(c, w, describe("schedules", "cuda", w, s.rows, x));
      const Matrix first = c.y;
      under_every_schedule(1, [&, at = s.multiprocessors](const std::string& schedule) {
        if (looks_for_races() && schedule[0] != 'r') return;  // random, lazy and eager
        simt::options().multiprocessors = at;
        c.y = Matrix(first.rows(), first.columns(), first.dtype(), first.stride() - first.columns());
        c.params.y = c.y.data();
        call(c);
        CHECK(c.y == first) << schedule;
      });
    }
  }
}

void nothing_to_sum() {
  const int64_t offsets[4] = {0, 0, 0, 0};
  alignas(16) const char padding[64] = {};
  const float bias[3] = {1, 2, 3};
  for (rlcc_dtype values : kValues) {
    for (rlcc_dtype x : {RLCC_F32, RLCC_BF16}) {
      rlcc_sparse_linear_params p{};
      const uint16_t no_scales[1] = {};
      p.weight = {3, 0, nullptr, padding, 64, offsets, values, 1, values == RLCC_I8 ? no_scales : nullptr};
      p.x_rows = 20;
      p.x_dtype = x;
      Matrix y(20, 3, x);
      p.y = y.data();
      p.y_stride = 3;
      p.bias = bias;
      CHECK_STATUS(rlcc_cuda_sparse_linear(&p, nullptr, 0, nullptr), RLCC_OK);
      for (int64_t m = 0; m < 20; ++m) {
        for (int64_t n = 0; n < 3; ++n) CHECK(y.get(m, n) == bias[n]);
      }
    }
  }
}

void out_of_range_index() {
  std::mt19937 random(38);
  for (rlcc_dtype dtype : {RLCC_F32, RLCC_BF16}) {
    const Packed w(random_weight(5, 70, dtype, random, half_with_full_and_empty_row(random)));
    LinearCase c(w, 18, dtype, random, 2, true, true);
    c.comp_index[1] = 2;
    c.comp_index[2] = -1;
    call(c);
    for (int64_t n = 0; n < 5; ++n) {
      CHECK(std::isfinite(c.y.get(0, n)) && std::isnan(c.y.get(1, n)) && std::isnan(c.y.get(2, n)));
    }
  }
}

void refused() {
  std::mt19937 random(39);
  const Packed w(random_weight(5, 4160, RLCC_BF16, random, half_with_full_and_empty_row(random)));
  simt::options().multiprocessors = 132;
  LinearCase c(w, 40, RLCC_BF16, random, 0, false, false);
  c.params.weight.trusted = 1;
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_workspace(&c.params, &bytes), RLCC_OK);
  CHECK(bytes > 0);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, workspace.get(), bytes - 1, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_cuda_sparse_linear(&c.params, static_cast<char*>(workspace.get()) + 4, bytes, nullptr),
               RLCC_INVALID_ARGUMENT);
  CHECK(c.y == c.expected);  // untouched
  simt::options() = simt::Options{};
}

}  // namespace

int main() {
  ragged_shapes();
  every_plan();
  patterns();
  alignments();
  special_values();
  residual_in_place();
  the_bits_are_the_same();
  nothing_to_sum();
  out_of_range_index();
  refused();
  return report("sparse_linear_tiles");
}
