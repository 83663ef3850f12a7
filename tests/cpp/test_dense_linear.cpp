// dense_linear of every available instruction set on ragged shapes, all pairs of types and values that would
// show an error; between pages without access; what it refuses.
#include <array>

#include "dense_linear_cases.h"

#if defined(__unix__) || defined(__APPLE__)
#include "guarded_memory.h"
#endif

using namespace restorelcc::test;

namespace {

constexpr int64_t kDenseRows[] = {1, 2, 5, 6, 7, 8, 9, 13, 16, 17, 40};

void ragged_shapes(const char* isa) {
  std::mt19937 random(61);
  size_t turn = 0;
  for (int64_t columns : {1, 2, 7, 15, 16, 31, 32, 33, 64, 65, 129, 576}) {
    for (int64_t outputs : {1, 2, 3, 5, 64, 67}) {
      for (int64_t rows : kDenseRows) {
        ++turn;
        const DenseTypes types{kDtypes[turn % 3], kDtypes[turn / 3 % 3], kDtypes[turn / 9 % 3]};
        DenseCase one(rows, outputs, columns, types, random, turn % 2 == 0, turn / 2 % 2 == 0);
        one.run(one.describe(isa));
      }
    }
  }
}

// Every pair of types of W and x, by both loops.
void types(const char* isa) {
  std::mt19937 random(62);
  for (rlcc_dtype weight : kDtypes) {
    for (rlcc_dtype x : kDtypes) {
      for (rlcc_dtype y : kDtypes) {
        for (int64_t rows : {1, 4, 21}) {
          DenseCase one(rows, 37, 197, {weight, x, y}, random, true, true);
          one.run(one.describe(isa));
        }
      }
    }
  }
}

// Several blocks of depth, of rows and of outputs, over threads.
void many_blocks(const char* isa) {
  std::mt19937 random(63);
  for (rlcc_dtype dtype : kDtypes) {
    for (const auto& [rows, outputs, columns] :
         {std::array<int64_t, 3>{1, 900, 1201}, {12, 301, 2300}, {530, 70, 700}}) {
      DenseCase one(rows, outputs, columns, {dtype, dtype, RLCC_F32}, random, true, false);
      one.run(one.describe(isa));
    }
  }
}

// Infinities and NaN land where the product has them.
void special_values(const char* isa) {
  std::mt19937 random(64);
  const float special[] = {INFINITY, -INFINITY, NAN, -0.0f};
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {1, 7, 30}) {
      for (bool in_weight : {false, true}) {
        DenseCase one(rows, 20, 130, {dtype, dtype, dtype}, random, true, true);
        for (int i = 0; i < 4; ++i) {
          in_weight ? one.w.set(3 * i + 1, 11 * i, special[i]) : one.x.set(i % rows, 37 * i, special[i]);
        }
        one.run(one.describe(isa));
      }
    }
  }
}

void residual_in_place(const char* isa) {
  std::mt19937 random(65);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {1, 3, 20}) {
      DenseCase one(rows, 33, 70, {dtype, dtype, dtype}, random, true, true);
      CHECK_STATUS(rlcc_dense_linear(&one.params), RLCC_OK);
      rlcc_dense_linear_params in_place = one.params;
      in_place.y = one.residual.data();
      in_place.y_stride = one.residual.stride();
      CHECK_STATUS(rlcc_dense_linear(&in_place), RLCC_OK);
      for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0; n < 33; ++n) CHECK(one.y.get(m, n) == one.residual.get(m, n)) << isa;
      }
    }
  }
}

// K = 0: y is the bias. No rows, no outputs: nothing is touched.
void empty_products() {
  const float bias[3] = {1, 2, 3};
  rlcc_dense_linear_params params{};
  params.rows = 3;
  params.bias = bias;
  for (int64_t rows : {1, 4, 20}) {
    std::vector<float> y(static_cast<size_t>(3 * rows), -1.0f);
    params.x_rows = rows;
    params.y = y.data();
    params.y_stride = 3;
    CHECK_STATUS(rlcc_dense_linear(&params), RLCC_OK);
    for (size_t i = 0; i < y.size(); ++i) CHECK(y[i] == bias[i % 3]);
  }
  rlcc_dense_linear_params nothing{};
  nothing.columns = 5;
  CHECK_STATUS(rlcc_dense_linear(&nothing), RLCC_OK);
}

// The same bits for any number of threads.
void threads(const char* isa) {
  std::mt19937 random(66);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : {1, 6, 50}) {
      DenseCase one(rows, 3001, 320, {dtype, RLCC_BF16, RLCC_F32}, random, true, true);
      CHECK_STATUS(rlcc_set_num_threads(1), RLCC_OK);
      CHECK_STATUS(rlcc_dense_linear(&one.params), RLCC_OK);
      one.params.y = one.expected.data();
      for (int32_t count : {2, 3, 7}) {
        CHECK_STATUS(rlcc_set_num_threads(count), RLCC_OK);
        CHECK_STATUS(rlcc_dense_linear(&one.params), RLCC_OK);
        CHECK(one.y == one.expected) << one.describe(isa) << " threads " << count;
      }
    }
  }
}

// The stride of a single row means nothing.
void one_row_of_any_stride() {
  std::mt19937 random(69);
  for (int64_t rows : {1, 20}) {
    DenseCase one(rows, 1, 130, {RLCC_BF16, RLCC_F32, RLCC_F32}, random, true, false, 0);
    one.params.weight_stride = INT64_MAX;
    if (rows == 1) one.params.x_stride = one.params.y_stride = INT64_MIN;
    one.run("one row of any stride");
  }
}

void refused() {
  std::mt19937 random(67);
  const std::function<void(rlcc_dense_linear_params&)> wrongs[] = {
      [](rlcc_dense_linear_params& p) { p.weight = nullptr; },
      [](rlcc_dense_linear_params& p) { p.weight_stride = 69; },
      [](rlcc_dense_linear_params& p) { p.weight_stride = INT64_MAX; },
      [](rlcc_dense_linear_params& p) { p.weight_dtype = RLCC_I8; },
      [](rlcc_dense_linear_params& p) { p.x_dtype = RLCC_I8; },
      [](rlcc_dense_linear_params& p) { p.y_dtype = 4; },
      [](rlcc_dense_linear_params& p) { p.rows = -1; },
      [](rlcc_dense_linear_params& p) { p.columns = -1; },
      [](rlcc_dense_linear_params& p) { p.x = nullptr; },
      [](rlcc_dense_linear_params& p) { p.x_rows = -1; },
      [](rlcc_dense_linear_params& p) { p.x_stride = 69; },
      [](rlcc_dense_linear_params& p) { p.y = nullptr; },
      [](rlcc_dense_linear_params& p) { p.y_stride = 4; },
      [](rlcc_dense_linear_params& p) { p.residual_stride = 4; },
      [](rlcc_dense_linear_params& p) { p.y = const_cast<void*>(p.residual); },  // in place with another stride
      [](rlcc_dense_linear_params& p) { p.bias = reinterpret_cast<const float*>(1); },
  };
  for (const auto& wrong : wrongs) {
    DenseCase one(4, 5, 70, {RLCC_F32, RLCC_F32, RLCC_F32}, random, true, true);
    wrong(one.params);
    CHECK_STATUS(rlcc_dense_linear(&one.params), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_dense_linear_reference(&one.params), RLCC_INVALID_ARGUMENT);
    CHECK(one.y == one.expected);  // untouched
  }
  CHECK_STATUS(rlcc_dense_linear(nullptr), RLCC_INVALID_ARGUMENT);
}

#if defined(__unix__) || defined(__APPLE__)
// Each array right before a page without access, then right behind one; a read or write past it kills the test.
void memory_bounds(const char* isa) {
  std::mt19937 random(68);
  size_t turn = 0;
  for (int64_t columns : {1, 15, 31, 32, 33, 65, 200}) {
    for (int64_t outputs : {1, 3, 5, 33}) {
      for (int64_t rows : {1, 2, 7, 16, 17, 40}) {
        const DenseTypes types{kDtypes[turn % 3], kDtypes[turn / 3 % 3], kDtypes[turn / 9 % 3]};
        const Guarded::Side side = ++turn % 5 == 0 ? Guarded::kBegin : Guarded::kEnd;
        DenseCase one(rows, outputs, columns, types, random, true, true, 0);
        const auto guard = [&](const Matrix& matrix) {
          return Guarded(matrix.data(),
                         static_cast<size_t>(matrix.rows() * matrix.columns()) * dtype_bytes(matrix.dtype()),
                         side);
        };
        const Guarded w = guard(one.w), x = guard(one.x), y = guard(one.y), residual = guard(one.residual);
        const Guarded bias(one.bias.data(), one.bias.size() * 4, side);
        CHECK_STATUS(rlcc_dense_linear(&one.params), RLCC_OK);
        rlcc_dense_linear_params inside = one.params;
        inside.weight = w.as<void>();
        inside.x = x.as<void>();
        inside.y = y.as<void>();
        inside.residual = residual.as<void>();
        inside.bias = bias.as<float>();
        CHECK_STATUS(rlcc_dense_linear(&inside), RLCC_OK);
        CHECK(std::memcmp(y.as<char>(), one.y.data(), y.bytes()) == 0) << one.describe(isa);
      }
    }
  }
}
#endif

}  // namespace

int main() {
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    ragged_shapes(isa);
    types(isa);
    many_blocks(isa);
    special_values(isa);
    residual_in_place(isa);
    empty_products();
    one_row_of_any_stride();
    threads(isa);
#if defined(__unix__) || defined(__APPLE__)
    memory_bounds(isa);
#endif
  }
  refused();
  return report("dense_linear");
}
