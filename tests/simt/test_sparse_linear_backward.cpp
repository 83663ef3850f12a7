// The gradients of sparse_linear on the emulated device, through the C entry points, against the float64
// oracles.
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

// Values and grad_y: each kind of kernel, and what goes to plain fp32.
constexpr std::pair<rlcc_dtype, rlcc_dtype> kPairs[] = {{RLCC_BF16, RLCC_BF16},
                                                        {RLCC_F16, RLCC_F16},
                                                        {RLCC_I8, RLCC_BF16},
                                                        {RLCC_I8, RLCC_F16},
                                                        {RLCC_F32, RLCC_BF16}};

std::set<std::pair<TileShape, bool>> seen;

void call(GradXCase& c) {
  c.params.weight.trusted = 1;
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_x_workspace(&c.params, &bytes), RLCC_OK);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_x(&c.params, workspace.get(), bytes, nullptr), RLCC_OK);
  const auto plan =
      restorelcc::cuda::plan_grad_x(c.params.y_rows, c.params.weight, c.params.dtype,
                                    {simt::options().multiprocessors, simt::options().shared_bytes_per_block});
  if (plan.tensor_cores) seen.insert({plan.tile, plan.splits > 1});
}

void run(GradXCase& c, const Packed& w, const std::string& name) {
  call(c);
  rlcc_sparse_linear_grad_x_params reference = c.params;
  reference.grad_x = c.expected.data();
  CHECK_STATUS(rlcc_sparse_linear_grad_x_reference(&reference), RLCC_OK);
  compare(c.grad_x, c.expected, c.budget(w), name);
}

void call(GradValuesCase& c) {
  c.params.weight.trusted = 1;
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_values_workspace(&c.params, &bytes), RLCC_OK);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_values(&c.params, workspace.get(), bytes, nullptr), RLCC_OK);
}

void run(GradValuesCase& c, const Packed& w, const std::string& name) {
  call(c);
  c.compare_with_reference(w, name);
}

void both(const Packed& w, int64_t rows, rlcc_dtype dtype, std::mt19937& random, const char* what) {
  GradXCase x(w, rows, dtype, random);
  run(x, w, describe(what, "grad_x", w, rows, dtype));
  if (w.weight.dtype == RLCC_I8) return;
  GradValuesCase values(w, rows, dtype, random);
  run(values, w, describe(what, "grad_values", w, rows, dtype));
}

void ragged_shapes() {
  std::mt19937 random(41);
  size_t turn = 0;
  for (rlcc_dtype values : kValues) {
    for (int64_t columns : {1, 31, 129, 449}) {
      for (int64_t outputs : {1, 17, 129}) {
        const Packed w(
            random_weight(outputs, columns, dense_dtype(values), random, half_with_full_and_empty_row(random)),
            values);
        for (int64_t rows : {1, 17, 65}) {
          if (looks_for_races() && ++turn % 5 != 0) continue;
          if (outputs * columns * rows > 200'000 && ++turn % 2 != 0) continue;
          both(w, rows, kDtypes[++turn % 3], random, "ragged");
        }
      }
    }
  }
}

// The last one has more columns than a warp indexes at once.
void every_plan() {
  std::mt19937 random(42);
  struct Shape {
    int64_t rows, outputs, columns;
    int multiprocessors;
  };
  for (const Shape& s : {Shape{130, 70, 129, 1}, {100, 40, 129, 1}, {3, 1100, 70, 132}, {2, 3, 4300, 4}}) {
    for (const auto& [values, dtype] : kPairs) {
      const Packed w(random_weight(s.outputs, s.columns, dense_dtype(values), random,
                                   half_with_full_and_empty_row(random)),
                     values);
      simt::options().multiprocessors = s.multiprocessors;
      both(w, s.rows, dtype, random, "every_plan");
    }
  }
  simt::options() = simt::Options{};
  for (TileShape tile : {TileShape::k256x128, TileShape::k128x128, TileShape::k64x128}) {
    CHECK(seen.count({tile, false}) == 1) << static_cast<int>(tile);
  }
  CHECK(seen.count({TileShape::k64x128, true}) == 1);
}

void patterns() {
  std::mt19937 random(43);
  const Pattern all[] = {
      [](int64_t, int64_t) { return false; },       [](int64_t, int64_t) { return true; },
      [](int64_t, int64_t k) { return k % 4 < 2; }, [](int64_t n, int64_t k) { return k == n; },
      [](int64_t, int64_t k) { return k >= 128; },  [](int64_t, int64_t k) { return k % 32 == 31; },
  };
  for (const Pattern& pattern : all) {
    for (rlcc_dtype values : kValues) {
      const rlcc_dtype dtype = values == RLCC_I8 ? RLCC_BF16 : dense_dtype(values);
      const Packed w(random_weight(67, 200, dense_dtype(values), random, pattern), values);
      both(w, 40, dtype, random, "patterns");
    }
  }
}

void special_values() {
  std::mt19937 random(44);
  const float specials[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    for (bool in_weight : {false, true}) {
      Matrix dense = random_weight(20, 130, dtype, random, half_with_full_and_empty_row(random));
      for (int i = 0; i < 5 && in_weight; ++i) dense.set(3 * i + 1, 25 * i, specials[i]);
      const Packed w(dense);
      GradXCase c(w, 30, dtype, random);
      for (int i = 0; i < 5 && !in_weight; ++i) c.grad_y.set(5 * i, 4 * i, specials[i]);
      run(c, w, describe("special_values", "grad_x", w, 30, dtype));
    }
  }
  // Int8 values of -128, and scales of every size: the two bf16 that stand for a weight are exact.
  Packed w(random_weight(40, 300, RLCC_F32, random, half_with_full_and_empty_row(random)), RLCC_I8);
  for (size_t i = 0; i < w.storage.size(); ++i)
    w.storage[i] = static_cast<char>(i % 5 == 0 ? -128 : 127 - int(i % 200));
  for (uint16_t& scale : w.scales) scale = static_cast<uint16_t>(0x2f00 + random() % 0x1000);
  CHECK_STATUS(rlcc_unpack(&w.weight, w.dense.data(), w.dense.stride()), RLCC_OK);
  for (rlcc_dtype dtype : kDtypes) {
    GradXCase c(w, 20, dtype, random);
    run(c, w, describe("-128", "grad_x", w, 20, dtype));
  }
}

void the_bits_are_the_same() {
  std::mt19937 random(45);
  struct Shape {
    int64_t rows, outputs, columns;
    int multiprocessors;
  };
  for (const Shape& s : {Shape{130, 40, 128, 1}, {20, 1030, 70, 132}}) {
    for (const auto& [values, dtype] : {std::pair<rlcc_dtype, rlcc_dtype>{RLCC_BF16, RLCC_BF16},
                                        {RLCC_I8, RLCC_BF16},
                                        {RLCC_F16, RLCC_F32}}) {
      const Packed w(random_weight(s.outputs, s.columns, dense_dtype(values), random,
                                   half_with_full_and_empty_row(random)),
                     values);
      GradXCase x(w, s.rows, dtype, random);
      const bool has_gradient = values != RLCC_I8;
      Packed other(random_weight(1, 1, RLCC_F32, random, half_with_full_and_empty_row(random)));
      GradValuesCase v(has_gradient ? w : other, s.rows, dtype, random);
      simt::options().multiprocessors = s.multiprocessors;
      if (s.multiprocessors == 132 && values == RLCC_I8) continue;  // as bf16, and slower
      run(x, w, describe("schedules", "grad_x", w, s.rows, dtype));
      run(v, has_gradient ? w : other, describe("schedules", "grad_values", w, s.rows, dtype));
      const Matrix first = x.grad_x;
      const std::vector<char> first_values = v.grad;
      under_every_schedule(1, [&, at = s.multiprocessors](const std::string& schedule) {
        if (looks_for_races() && schedule[0] != 'r') return;  // random, lazy and eager
        simt::options().multiprocessors = at;
        x.grad_x = Matrix(first.rows(), first.columns(), first.dtype(), first.stride() - first.columns());
        x.params.grad_x = x.grad_x.data();
        call(x);
        CHECK(x.grad_x == first) << schedule;
        if (!has_gradient) return;
        v.grad.assign(v.grad.size(), '\x7f');
        call(v);
        CHECK(v.grad == first_values) << schedule;
      });
    }
  }
}

void nothing_to_sum() {
  std::mt19937 random(46);
  const int64_t offsets[1] = {0};
  alignas(16) const char padding[64] = {};
  for (rlcc_dtype dtype : {RLCC_F32, RLCC_BF16}) {
    rlcc_sparse_linear_grad_x_params p{};
    p.weight = {0, 3, nullptr, padding, 32, offsets, dtype, 1, nullptr};  // N = 0: the gradient is 0
    Matrix grad_x(20, 3, dtype);
    p.y_rows = 20;
    p.dtype = dtype;
    p.grad_x = grad_x.data();
    p.grad_x_stride = 3;
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_x(&p, nullptr, 0, nullptr), RLCC_OK);
    for (int64_t m = 0; m < 20; ++m) CHECK(grad_x.get(m, 2) == 0);
    const Packed w(random_weight(130, 3, dtype, random, half_with_full_and_empty_row(random)));
    GradValuesCase nothing(w, 0, dtype, random);
    nothing.params.x = nothing.params.grad_y = nullptr;
    run(nothing, w, "grad_values without rows");
  }
}

void refused() {
  std::mt19937 random(47);
  const Packed w(random_weight(5, 70, RLCC_BF16, random, half_with_full_and_empty_row(random)));
  const Packed int8(random_weight(5, 70, RLCC_F32, random, half_with_full_and_empty_row(random)), RLCC_I8);
  Workspace workspace(1 << 16);
  const std::function<void(GradXCase&)> wrong_x[] = {
      [](GradXCase& c) { c.params.weight.trusted = 0; }, [](GradXCase& c) { c.params.grad_y = nullptr; },
      [](GradXCase& c) { c.params.grad_x_stride = 4; },  [](GradXCase& c) { c.params.y_rows = -1; },
      [](GradXCase& c) { c.params.dtype = RLCC_I8; },
  };
  for (const auto& wrong : wrong_x) {
    GradXCase c(w, 4, RLCC_BF16, random);
    c.params.weight.trusted = 1;
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_x(&c.params, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    wrong(c);
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_x(&c.params, workspace.get(), 1 << 16, nullptr),
                 RLCC_INVALID_ARGUMENT);
    CHECK(c.grad_x == c.expected);
  }
  const std::function<void(GradValuesCase&)> wrong_values[] = {
      [](GradValuesCase& c) { c.params.weight.trusted = 0; },
      [&](GradValuesCase& c) { c.params.weight = int8.weight, c.params.weight.trusted = 1; },
      [](GradValuesCase& c) { c.params.grad_values = nullptr; },
      [](GradValuesCase& c) { c.params.x = nullptr; },
      [](GradValuesCase& c) { c.params.grad_y_stride = 4; },
  };
  for (const auto& wrong : wrong_values) {
    GradValuesCase c(w, 4, RLCC_BF16, random);
    c.params.weight.trusted = 1;
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_values(&c.params, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    wrong(c);
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_values(&c.params, workspace.get(), 1 << 16, nullptr),
                 RLCC_INVALID_ARGUMENT);
    CHECK(c.grad == c.expected);
  }
}

}  // namespace

int main() {
  ragged_shapes();
  every_plan();
  patterns();
  special_values();
  the_bits_are_the_same();
  nothing_to_sum();
  refused();
  return report("sparse_linear_backward");
}
