// The gradients of comp_rows and bias, on every instruction set, against the float64 oracle.
#include <cstring>
#include <functional>

#include "grad_comp_cases.h"
#include "guarded_memory.h"

using namespace restorelcc::test;

namespace {

void ragged_shapes(const char* isa) {
  std::mt19937 random(61);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {0, 1, 2, 17, 129}) {
      for (int64_t columns : {0, 1, 63, 64, 65, 449}) {
        for (int64_t groups : {1, 2, 9, 40}) {
          for_each_wanted(rows, columns, groups, [&](const GradCompShape& shape) {
            GradCompCase(shape, dtype, random).run(std::string(isa) + " " + describe(shape, dtype));
          });
        }
      }
    }
  }
}

void special_values(const char* isa) {
  std::mt19937 random(62);
  const float specials[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 1e-40f};
  for (rlcc_dtype dtype : kDtypes) {
    const GradCompShape shape{40, 70, 4, true, true};
    GradCompCase c(shape, dtype, random);
    for (int i = 0; i < 24; ++i) c.grad_y.set(i, 3 * i % 70, specials[i % 6]);
    c.run(std::string(isa) + " special " + describe(shape, dtype));
  }
}

// fp32 additions in the order of m, whatever the instruction set and the pool.
void the_bits_are_those_of_a_loop(const char* isa) {
  std::mt19937 random(63);
  for (rlcc_dtype dtype : kDtypes) {
    GradCompCase c({300, 450, 3, true, true}, dtype, random);
    std::vector<float> comp(c.comp_rows.size()), bias(c.bias.size());
    for (int64_t m = 0; m < 300; ++m) {
      for (int64_t n = 0; n < 450; ++n) {
        comp[static_cast<size_t>(c.index[static_cast<size_t>(m)] * 450 + n)] += c.grad_y.get(m, n);
        bias[static_cast<size_t>(n)] += c.grad_y.get(m, n);
      }
    }
    for (int32_t threads : {1, 2, 3}) {
      CHECK_STATUS(rlcc_set_num_threads(threads), RLCC_OK);
      c.forget();
      CHECK_STATUS(rlcc_sparse_linear_grad_comp(&c.params), RLCC_OK);
      CHECK(c.comp_rows == comp && c.bias == bias) << isa << " " << threads << " threads";
    }
  }
}

// Not a byte outside of the arrays is touched.
void bounds(const char* isa) {
  std::mt19937 random(64);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t columns : {1, 7, 64, 129}) {
      for (const Guarded::Side side : {Guarded::kBegin, Guarded::kEnd}) {
        GradCompCase c({9, columns, 3, true, true}, dtype, random, 0);
        c.run(isa);
        const Guarded grad_y(c.grad_y.data(), static_cast<size_t>(9 * columns) * dtype_bytes(dtype), side),
            index(c.index.data(), 9 * 8, side), comp(nullptr, c.comp_rows.size() * 4, side),
            bias(nullptr, c.bias.size() * 4, side);
        c.params.grad_y = grad_y.as<void>();
        c.params.comp_index = index.as<int64_t>();
        c.params.grad_comp_rows = comp.as<float>();
        c.params.grad_bias = bias.as<float>();
        CHECK_STATUS(rlcc_sparse_linear_grad_comp(&c.params), RLCC_OK);
        CHECK(std::memcmp(comp.as<char>(), c.comp_rows.data(), comp.bytes()) == 0) << isa;
        CHECK(std::memcmp(bias.as<char>(), c.bias.data(), bias.bytes()) == 0) << isa;
      }
    }
  }
}

void refused() {
  std::mt19937 random(65);
  const std::function<void(GradCompCase&)> wrong[] = {
      [](GradCompCase& c) { c.params.grad_y = nullptr; },
      [](GradCompCase& c) { c.params.rows = -1; },
      [](GradCompCase& c) { c.params.columns = -1; },
      [](GradCompCase& c) { c.params.dtype = RLCC_I8; },
      [](GradCompCase& c) { c.params.grad_y_stride = 4; },
      [](GradCompCase& c) { c.params.groups = 0; },
      [](GradCompCase& c) { c.params.grad_comp_rows = nullptr; },
      [](GradCompCase& c) { c.index[3] = 3; },
      [](GradCompCase& c) { c.index[3] = -1; },
      [](GradCompCase& c) { c.params.groups = -1; },
      [](GradCompCase& c) { c.params.comp_index = nullptr; },
      [](GradCompCase& c) { c.params.groups = int64_t{1} << 62; },
  };
  for (const auto& change : wrong) {
    GradCompCase c({5, 7, 3, true, true}, RLCC_BF16, random);
    c.comp_rows.assign(c.comp_rows.size(), 7.0f);
    c.bias.assign(c.bias.size(), 7.0f);
    const std::vector<float> comp = c.comp_rows, bias = c.bias;
    change(c);
    CHECK_STATUS(rlcc_sparse_linear_grad_comp(&c.params), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_sparse_linear_grad_comp_reference(&c.params), RLCC_INVALID_ARGUMENT);
    CHECK(c.comp_rows == comp && c.bias == bias) << "untouched";
  }
  CHECK_STATUS(rlcc_sparse_linear_grad_comp(nullptr), RLCC_INVALID_ARGUMENT);
}

}  // namespace

int main() {
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    ragged_shapes(isa);
    special_values(isa);
    the_bits_are_those_of_a_loop(isa);
    bounds(isa);
  }
  refused();
  return report("grad_comp");
}
