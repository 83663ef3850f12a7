// The gradients of comp_rows and bias on the emulated device, through the C entry points, against the float64
// oracle.
#include <array>
#include <cstring>
#include <functional>

#include "../cpp/grad_comp_cases.h"
#include "../cpp/guarded_memory.h"
#include "check_launch.h"
#include "cuda/grad_comp.h"
#include "restorelcc/cuda.h"
#include "workspace.h"

using namespace restorelcc::test;

namespace {

bool seen_one_part, seen_parts, seen_several_blocks_of_groups;

void call(GradCompCase& c) {
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp_workspace(&c.params, &bytes), RLCC_OK);
  Workspace workspace(bytes);
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp(&c.params, workspace.get(), bytes, nullptr), RLCC_OK);
  (bytes == 0 ? seen_one_part : seen_parts) = true;
  seen_several_blocks_of_groups |= c.params.groups > restorelcc::cuda::kGradCompGroups;
}

void run(GradCompCase& c, const std::string& name) {
  c.forget();
  call(c);
  c.compare_with_reference(name);
}

// With few multiprocessors the rows are one part, with many as many as there may be.
void ragged_shapes() {
  std::mt19937 random(71);
  size_t turn = 0;
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {0, 1, 31, 129, 1025}) {
      for (int64_t columns : {0, 1, 7, 255, 264, 520}) {
        for (int64_t groups : {1, 2, 8, 9, 33}) {
          if (rows * columns > 50'000 && ++turn % 6 != 0) continue;
          if (looks_for_races() && ++turn % 8 != 0) continue;
          for_each_wanted(rows, columns, groups, [&](const GradCompShape& shape) {
            simt::options().multiprocessors = ++turn % 2 == 0 ? 132 : 1;
            const int64_t gap = std::array<int64_t, 3>{3, 0, 8}[turn % 3];
            GradCompCase c(shape, dtype, random, gap);
            run(c, describe(shape, dtype) + " gap " + std::to_string(gap));
          });
        }
      }
    }
  }
  simt::options() = simt::Options{};
  CHECK(seen_one_part && seen_parts && seen_several_blocks_of_groups);
}

// Rows that begin at multiples of 16 bytes are read eight columns at once, others one by one.
constexpr int64_t kGaps[] = {3, 0};

// The stride allows wide reads, the first element's place does not.
void a_begin_between() {
  std::mt19937 random(78);
  for (rlcc_dtype dtype : kDtypes) {
    GradCompCase c({33, 264, 9, true, true}, dtype, random, 0);
    run(c, "aligned");
    const std::vector<float> comp = c.comp_rows, bias = c.bias;
    const size_t bytes = size_t{33} * 264 * dtype_bytes(dtype), off = dtype_bytes(dtype);
    std::vector<char> moved(bytes + off);
    std::memcpy(moved.data() + off, c.grad_y.data(), bytes);
    c.params.grad_y = moved.data() + off;
    c.forget();
    call(c);
    CHECK(c.comp_rows == comp && c.bias == bias);
  }
}

// Rows of one group only, none of a block's, runs of groups, a group in every part.
void patterns() {
  std::mt19937 random(72);
  const std::function<int64_t(int64_t)> all[] = {
      [](int64_t) { return 0; },
      [](int64_t) { return 19; },
      [](int64_t m) { return m / 32 % 20; },
      [](int64_t m) { return m % 20; },
      [](int64_t m) { return m == 511 ? 19 : 3; },
  };
  for (const auto& pattern : all) {
    for (rlcc_dtype dtype : kDtypes) {
      for (int64_t gap : kGaps) {
        simt::options().multiprocessors = 132;
        GradCompCase c({1300, 40, 20, true, true}, dtype, random, gap);
        for (int64_t m = 0; m < 1300; ++m) c.index[static_cast<size_t>(m)] = pattern(m);
        run(c, "pattern " + std::to_string(&pattern - all));
      }
    }
  }
  simt::options() = simt::Options{};
}

void special_values() {
  std::mt19937 random(73);
  const float specials[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t gap : kGaps) {
      GradCompCase c({300, 72, 4, true, true}, dtype, random, gap);
      for (int i = 0; i < 40; ++i) c.grad_y.set(7 * i, 3 * i % 70, specials[i % 5]);
      run(c, "special");
    }
  }
}

// Whose row it is, nobody knows: each group is NaN, the bias, which does not depend on it, is as ever.
void an_index_from_outside() {
  std::mt19937 random(74);
  for (int multiprocessors : {1, 132}) {
    for (int64_t wrong : {int64_t{-1}, int64_t{20}, INT64_MIN, INT64_MAX}) {
      simt::options().multiprocessors = multiprocessors;
      GradCompCase c({1300, 304, 20, true, true}, RLCC_BF16, random, wrong < 0 ? 0 : 3);
      run(c, "before");
      const std::vector<float> bias = c.bias;
      c.index[700] = wrong;
      c.forget();
      call(c);
      for (float value : c.comp_rows) CHECK(std::isnan(value)) << wrong;
      CHECK(c.bias == bias) << wrong;
    }
  }
  simt::options() = simt::Options{};
}

void the_bits_are_the_same() {
  std::mt19937 random(75);
  for (const GradCompShape& shape : {GradCompShape{300, 264, 3, true, true}, {1025, 40, 11, true, true}}) {
    for (rlcc_dtype dtype : {RLCC_BF16, RLCC_F32}) {
      GradCompCase c(shape, dtype, random, shape.groups == 3 ? 0 : 3);
      simt::options().multiprocessors = 132;
      run(c, "schedules");
      const std::vector<float> comp = c.comp_rows, bias = c.bias;
      under_every_schedule(1, [&](const std::string& schedule) {
        if (looks_for_races() && schedule[0] != 'r') return;
        simt::options().multiprocessors = 132;
        c.forget();
        call(c);
        CHECK(c.comp_rows == comp && c.bias == bias) << schedule;
      });
    }
  }
}

// Not a byte outside of the arrays is touched.
void bounds() {
  std::mt19937 random(76);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t columns : {1, 8, 129, 256}) {
      for (const Guarded::Side side : {Guarded::kBegin, Guarded::kEnd}) {
        GradCompCase c({33, columns, 9, true, true}, dtype, random, 0);
        run(c, "bounds");
        const Guarded grad_y(c.grad_y.data(), static_cast<size_t>(33 * columns) * dtype_bytes(dtype), side),
            index(c.index.data(), 33 * 8, side), comp(nullptr, c.comp_rows.size() * 4, side),
            bias(nullptr, c.bias.size() * 4, side);
        c.params.grad_y = grad_y.as<void>();
        c.params.comp_index = index.as<int64_t>();
        c.params.grad_comp_rows = comp.as<float>();
        c.params.grad_bias = bias.as<float>();
        call(c);
        CHECK(std::memcmp(comp.as<char>(), c.comp_rows.data(), comp.bytes()) == 0);
        CHECK(std::memcmp(bias.as<char>(), c.bias.data(), bias.bytes()) == 0);
      }
    }
  }
}

void refused() {
  std::mt19937 random(77);
  Workspace workspace(1 << 16);
  const std::function<void(GradCompCase&)> wrong[] = {
      [](GradCompCase& c) { c.params.grad_y = nullptr; },
      [](GradCompCase& c) { c.params.rows = -1; },
      [](GradCompCase& c) { c.params.dtype = RLCC_I8; },
      [](GradCompCase& c) { c.params.grad_y_stride = 4; },
      [](GradCompCase& c) { c.params.grad_comp_rows = nullptr; },
      [](GradCompCase& c) { c.params.comp_index = nullptr; },
      [](GradCompCase& c) { c.params.groups = 0; },
      [](GradCompCase& c) { c.params.groups = -1; },
      [](GradCompCase& c) { c.params.groups = int64_t{1} << 62; },
      [](GradCompCase& c) { c.params.comp_index = reinterpret_cast<const int64_t*>(c.comp_rows.data() + 1); },
  };
  simt::options().multiprocessors = 132;
  for (const auto& change : wrong) {
    GradCompCase c({1025, 7, 3, true, true}, RLCC_BF16, random);
    c.comp_rows.assign(c.comp_rows.size(), 7.0f);
    c.bias.assign(c.bias.size(), 7.0f);
    const std::vector<float> comp = c.comp_rows, bias = c.bias;
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp(&c.params, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    change(c);
    CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp(&c.params, workspace.get(), 1 << 16, nullptr),
                 RLCC_INVALID_ARGUMENT);
    CHECK(c.comp_rows == comp && c.bias == bias) << "untouched";
  }
  simt::options() = simt::Options{};
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp(nullptr, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_cuda_sparse_linear_grad_comp_workspace(nullptr, nullptr), RLCC_INVALID_ARGUMENT);
}

}  // namespace

int main() {
  ragged_shapes();
  a_begin_between();
  patterns();
  special_values();
  an_index_from_outside();
  the_bits_are_the_same();
  bounds();
  refused();
  return report("grad_comp_cuda");
}
