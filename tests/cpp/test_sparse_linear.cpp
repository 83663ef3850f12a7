// sparse_linear and its gradients, of every available instruction set, on shapes, patterns and values that
// could go wrong. The tolerance is explained in sparse_linear_cases.h.
#include <memory>

#include "sparse_linear_cases.h"

using namespace restorelcc::test;

namespace {

void ragged_shapes(const char* isa) {
  std::mt19937 random(11);
  size_t turn = 0;  // x takes the dtypes in turn: every pair with the values' comes up dozens of times
  for (rlcc_dtype values : kValues) {
    for (int64_t columns : kInputs) {
      for (int64_t outputs : kOutputs) {
        const Packed w(
            random_weight(outputs, columns, dense_dtype(values), random, half_with_full_and_empty_row(random)),
            values);
        for (int64_t rows : kRows) {
          // The big corners cost the oracle seconds and test nothing that the others do not.
          if (outputs * columns * rows > 5'000'000) continue;
          const rlcc_dtype x = kDtypes[turn++ % 3];
          const int64_t groups = rows % 4;
          LinearCase(w, rows, x, random, groups, rows % 3 != 0, outputs != 17)
              .run(w, describe("linear", isa, w, rows, x));
          GradXCase(w, rows, x, random).run(w, describe("grad_x", isa, w, rows, x));
          if (values == RLCC_I8) continue;
          GradValuesCase(w, rows, x, random).run(w, describe("grad_values", isa, w, rows, x));
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
    for (rlcc_dtype values : kValues) {
      const rlcc_dtype dtype = dense_dtype(values);
      const Packed w(random_weight(35, 200, dtype, random, pattern), values);
      for (int64_t rows : {1, 3, 20, 24, 40, 50, 129}) {
        LinearCase(w, rows, dtype, random, 0, false, false).run(w, describe("linear", isa, w, rows, dtype));
        GradXCase(w, rows, dtype, random).run(w, describe("grad_x", isa, w, rows, dtype));
        if (values == RLCC_I8) continue;
        GradValuesCase(w, rows, dtype, random).run(w, describe("grad_values", isa, w, rows, dtype));
      }
    }
  }
}

// int8: the largest sums that a group can have, and x of every size down to the subnormal.
void int8_extremes(const char* isa) {
  std::mt19937 random(18);
  Matrix dense(9, 300, RLCC_F32);
  for (int64_t n = 0; n < 9; ++n) {
    for (int64_t k = 0; k < 300; ++k)
      dense.set(n, k, n % 2 == 0 ? 1.0f : (k % 2 == 0 ? 3e38f : -3e38f) * 1e-30f);
  }
  Packed w(dense, RLCC_I8);
  for (int64_t rows : {1, 5}) {
    for (float size : {1.0f, 1e26f, 1e-30f, 1e-44f, 0.0f}) {
      LinearCase linear(w, rows, RLCC_F32, random, 0, false, false);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t k = 0; k < 300; ++k) linear.x.set(m, k, m % 2 == 0 ? size : (k % 2 == 0 ? -size : size));
      }
      linear.run(w, describe("int8 extremes", isa, w, rows, RLCC_F32));
    }
  }
  for (char& value : w.storage) value = '\x80';  // -128: no packing makes it, a file may hold it
  CHECK_STATUS(rlcc_unpack(&w.weight, w.dense.data(), w.dense.stride()), RLCC_OK);
  for (int64_t rows : {1, 5, 20, 70}) {
    LinearCase(w, rows, RLCC_F32, random, 0, false, false).run(w, describe("-128", isa, w, rows, RLCC_F32));
  }
  for (float wrong : {INFINITY, NAN}) {  // a row that is not finite gives NaN, the others are as they were
    LinearCase linear(w, 3, RLCC_F32, random, 0, false, false);
    linear.x.set(1, 130, wrong);
    CHECK_STATUS(rlcc_sparse_linear(&linear.params), RLCC_OK);
    for (int64_t n = 0; n < 9; ++n) {
      CHECK(std::isnan(linear.y.get(1, n))) << isa;
      CHECK(std::isfinite(linear.y.get(0, n)) && std::isfinite(linear.y.get(2, n))) << isa;
    }
  }
}

// Deep enough for several blocks of depth, tall enough for several blocks of rows; with zeros to skip and
// without.
void many_blocks(const char* isa) {
  std::mt19937 random(13);
  for (const Pattern& pattern :
       {half_with_full_and_empty_row(random), Pattern([](int64_t, int64_t) { return true; })}) {
    const Packed w(random_weight(3, 1500, RLCC_F32, random, pattern));
    LinearCase(w, 1100, RLCC_BF16, random, 3, true, true).run(w, describe("linear", isa, w, 1100, RLCC_BF16));
    for (const rlcc_dtype values : {RLCC_BF16, RLCC_F32}) {
      const Packed tall(random_weight(1500, 3, values, random, pattern));
      GradXCase(tall, 1100, RLCC_F32, random).run(tall, describe("grad_x", isa, tall, 1100, RLCC_F32));
      GradValuesCase(tall, 1100, RLCC_F32, random)
          .run(tall, describe("grad_values", isa, tall, 1100, RLCC_F32));
    }
  }
}

// More outputs than are held at a time.
void many_outputs(const char* isa) {
  std::mt19937 random(21);
  const Packed w(random_weight(1100, 70, RLCC_F32, random, half_with_full_and_empty_row(random)));
  LinearCase(w, 66, RLCC_F32, random, 2, true, true).run(w, describe("linear", isa, w, 66, RLCC_F32));
}

// Infinities and NaN in weights and inputs land where a dense product has them: 0 * Inf is NaN.
void special_values(const char* isa) {
  std::mt19937 random(14);
  const float special[] = {INFINITY, -INFINITY, NAN, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {1, 7, 20, 70}) {
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
        GradValuesCase of_values(w, rows, dtype, random);
        for (int i = 0; i < 4; ++i) {
          of_values.x.set(i % rows, 37 * i, special[i]);
          of_values.grad_y.set(i % rows, 5 * i, special[i]);
        }
        of_values.run(w, describe("special grad_values", isa, w, rows, dtype));
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
    for (int64_t rows : {2, 20, 40}) {
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
  linear.weight = {3, 0, nullptr, padding, 16, offsets, RLCC_F32, 0, nullptr};  // K = 0: y is the bias
  for (int64_t rows : {2, 20}) {
    std::vector<float> out(static_cast<size_t>(3 * rows), -1.0f);
    linear.x_rows = rows;
    linear.y = out.data();
    linear.y_stride = 3;
    linear.bias = bias;
    CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == bias[i % 3]);
  }
  // The same of int8 values beside bf16 x, which have no scales to read where there are no columns.
  for (int64_t rows : {1, 2, 20}) {
    const std::unique_ptr<uint16_t[]> no_scales(new uint16_t[0]);
    std::vector<uint16_t> out(static_cast<size_t>(3 * rows), 0xffff);
    rlcc_sparse_linear_params int8 = linear;
    int8.weight = {3, 0, nullptr, padding, 64, offsets, RLCC_I8, 0, no_scales.get()};
    int8.x_rows = rows;
    int8.x_dtype = RLCC_BF16;
    int8.y = out.data();
    CHECK_STATUS(rlcc_sparse_linear(&int8), RLCC_OK);
    const uint16_t expected[3] = {0x3f80, 0x4000, 0x4040};  // 1, 2, 3
    for (size_t i = 0; i < out.size(); ++i) CHECK(out[i] == expected[i % 3]);
  }
  // No rows of x, and more rows of W than a block holds: every gradient is 0, and null arrays are not stepped
  // through.
  std::mt19937 random(19);
  const Packed tall(random_weight(1100, 3, RLCC_F32, random, half_with_full_and_empty_row(random)));
  GradValuesCase nothing(tall, 0, RLCC_F32, random);
  nothing.params.x = nothing.params.grad_y = nullptr;
  nothing.run(tall, "grad_values without rows");
  std::vector<float> all(3 * 1100, -1.0f);
  linear.x_rows = 1100;
  linear.y = all.data();
  CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
  CHECK(all[3 * 1099] == bias[0] && all[3 * 1100 - 1] == bias[2]);
  rlcc_sparse_linear_grad_x_params gradient{};
  gradient.weight = {0, 1, nullptr, padding, 16, offsets, RLCC_F32, 0, nullptr};  // N = 0: the gradient is 0
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
      [](LinearCase& c) { c.params.x_dtype = RLCC_I8; },
      [](LinearCase& c) { c.params.x_dtype = static_cast<rlcc_dtype>(4); },
      [](LinearCase& c) { c.params.y = c.residual.data(); },  // in place with another stride
  };
  for (const auto& wrong : wrongs) {
    LinearCase linear(w, 4, RLCC_F32, random, 3, true, true);
    wrong(linear);
    CHECK_STATUS(rlcc_sparse_linear(&linear.params), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_sparse_linear_reference(&linear.params), RLCC_INVALID_ARGUMENT);
    CHECK(linear.y == linear.expected);  // untouched
  }
  const Packed int8(random_weight(5, 70, RLCC_F32, random, half_with_full_and_empty_row(random)), RLCC_I8);
  const std::function<void(GradValuesCase&)> wrong_gradients[] = {
      [&](GradValuesCase& c) { c.params.weight = int8.weight; },
      [](GradValuesCase& c) { c.params.grad_values = nullptr; },
      [](GradValuesCase& c) { c.params.x = nullptr; },
      [](GradValuesCase& c) { c.params.grad_y_stride = 4; },
      [](GradValuesCase& c) { c.params.rows = -1; },
      [](GradValuesCase& c) { c.params.dtype = RLCC_I8; },
  };
  for (const auto& wrong : wrong_gradients) {
    GradValuesCase gradient(w, 4, RLCC_F32, random);
    wrong(gradient);
    CHECK_STATUS(rlcc_sparse_linear_grad_values(&gradient.params), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_sparse_linear_grad_values_reference(&gradient.params), RLCC_INVALID_ARGUMENT);
    CHECK(gradient.grad == gradient.expected);
  }
}

// Where nobody chose an instruction set, one row of bf16 is multiplied by FMAs if the CPU's dot product of
// pairs is slow, and by that dot product if it is not; several rows always by the latter. The two differ
// in denormals, but where they are emulated.
void choice_for_one_row() {
  const bool both = rlcc_force_isa("avx512vbmi2") == RLCC_OK && rlcc_force_isa("avx512bf16") == RLCC_OK;
  if (!both) return skip(rlcc_last_error());
  std::mt19937 random(19);
  const Packed w(random_weight(200, 700, RLCC_BF16, random, half_with_full_and_empty_row(random)), RLCC_BF16);
  for (const int64_t rows : {1, 4}) {
    Matrix x(rows, 700, RLCC_BF16);
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t k = 0; k < 700; ++k) x.set(m, k, 0x1p-130f);  // denormal: zero for a dot product of pairs
    }
    const auto bits_by = [&](const char* isa) {
      CHECK_STATUS(rlcc_force_isa(isa), RLCC_OK);
      Matrix y(rows, 200, RLCC_BF16);
      rlcc_sparse_linear_params params{};
      params.weight = w.weight;
      params.x = x.data();
      params.x_rows = rows;
      params.x_stride = x.stride();
      params.x_dtype = RLCC_BF16;
      params.y = y.data();
      params.y_stride = y.stride();
      CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);
      return std::string(static_cast<const char*>(y.data()), static_cast<size_t>(rows * y.stride()) * 2);
    };
    const std::string by_fma = bits_by("avx512vbmi2"), by_pairs = bits_by("avx512bf16");
    if (by_fma == by_pairs) {
      skip("the choice for one row: both kernels give the same bits");
      continue;
    }
#if defined(__x86_64__)
    const bool slow = __builtin_cpu_is("intel") != 0;
    CHECK(bits_by(nullptr) == (rows == 1 && slow ? by_fma : by_pairs)) << rows << " rows";
#endif
  }
}

// Every f16 number through the scalar conversions and back; and what lies between two of them.
void half_conversions() {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = static_cast<float>(restorelcc::double_of_f16(half));
    CHECK(restorelcc::f16_of_float(value) == half) << bits;
    CHECK(restorelcc::f16_of_float(-value) == (half | 0x8000)) << bits;
    const float next = bits == 0x7bff
                           ? 65536.0f
                           : static_cast<float>(restorelcc::double_of_f16(static_cast<uint16_t>(bits + 1)));
    const uint16_t even = static_cast<uint16_t>(bits % 2 == 0 ? bits : bits + 1);
    CHECK(value < next && restorelcc::f16_of_float((value + next) / 2) == even) << bits;
  }
  CHECK(std::isinf(restorelcc::double_of_f16(0x7c00)) && std::isnan(restorelcc::double_of_f16(0x7c01)));
}

}  // namespace

int main() {
  half_conversions();
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    CHECK(std::strcmp(rlcc_isa(), isa) == 0);
    ragged_shapes(isa);
    patterns(isa);
    many_blocks(isa);
    many_outputs(isa);
    special_values(isa);
    nan_payloads(isa);
    residual_in_place(isa);
    int8_extremes(isa);
    empty_products();
  }
  choice_for_one_row();
  refused();
  return report("sparse_linear");
}
