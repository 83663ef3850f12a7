// Every array of a call right before a page without access, then right behind one: the format promises 64 bytes
// of padding behind the values and nothing anywhere else, and no kernel may touch more.
#include "sparse_linear_cases.h"

#if defined(__unix__) || defined(__APPLE__)

#include <csignal>

#include "guarded_memory.h"

using namespace restorelcc::test;

namespace {

char g_case[200] = "nothing yet";

// Says which case it was; the test has failed.
void faulted(int) {
  constexpr char kBefore[] = "FAILED: touched memory outside of its arrays: ";
  ssize_t ignored = write(STDERR_FILENO, kBefore, sizeof(kBefore) - 1);
  ignored = write(STDERR_FILENO, g_case, std::strlen(g_case));
  ignored = write(STDERR_FILENO, "\n", 1);
  (void)ignored;
  _exit(1);
}

// The arrays of a packed weight, each between its own pages.
struct GuardedWeight {
  Guarded mask, values, row_offsets, scales;
  rlcc_packed_weight weight;

  GuardedWeight(const Packed& w, Guarded::Side side)
      : mask(w.mask.data(), w.mask.size() * 8, side),
        values(w.storage.data(), w.storage.size(), side),
        row_offsets(w.row_offsets.data(), w.row_offsets.size() * 8, side),
        scales(w.scales.data(), w.scales.size() * 2, side),
        weight(w.weight) {
    CHECK(w.weight.value_count * static_cast<int64_t>(dtype_bytes(w.weight.dtype)) ==
          w.row_offsets.back() * static_cast<int64_t>(dtype_bytes(w.weight.dtype)) + RLCC_VALUE_PADDING_BYTES);
    weight.mask = mask.as<uint64_t>();
    weight.values = values.as<void>();
    weight.row_offsets = row_offsets.as<int64_t>();
    if (weight.scales != nullptr) weight.scales = scales.as<uint16_t>();
  }
};

// A random matrix [rows, columns] without gaps between its rows.
Matrix random_matrix(int64_t rows, int64_t columns, rlcc_dtype dtype, std::mt19937& random) {
  Matrix matrix(rows, columns, dtype);
  fill_normal(matrix, random);
  return matrix;
}

Guarded guarded(const Matrix& matrix, Guarded::Side side) {
  return Guarded(matrix.data(),
                 static_cast<size_t>(matrix.rows() * matrix.columns()) * dtype_bytes(matrix.dtype()), side);
}

bool same(const Guarded& got, const Matrix& expected) {
  return got.bytes() == 0 || std::memcmp(got.as<char>(), expected.data(), got.bytes()) == 0;
}

// Each op twice: in plain memory, and between the pages; the bits have to be the same.
void all_ops(const Packed& w, int64_t rows, rlcc_dtype dtype, std::mt19937& random, Guarded::Side side) {
  const GuardedWeight inside(w, side);
  const int64_t outputs = w.dense.rows(), columns = w.dense.columns();
  CHECK_STATUS(rlcc_packed_validate(&inside.weight), RLCC_OK);
  const Matrix x = random_matrix(rows, columns, dtype, random),
               grad_y = random_matrix(rows, outputs, dtype, random);
  const Guarded guarded_x = guarded(x, side), guarded_grad_y = guarded(grad_y, side);
  Matrix y(rows, outputs, dtype), grad_x(rows, columns, dtype);
  const Guarded guarded_y = guarded(y, side), guarded_grad_x = guarded(grad_x, side);
  const std::vector<float> bias(static_cast<size_t>(outputs), 0.5f);
  const Guarded guarded_bias(bias.data(), bias.size() * 4, side);

  rlcc_sparse_linear_params linear{};
  linear.weight = w.weight;
  linear.x = x.data();
  linear.x_rows = rows;
  linear.x_stride = columns;
  linear.x_dtype = dtype;
  linear.bias = bias.data();
  linear.residual = grad_y.data();
  linear.residual_stride = outputs;
  linear.y = y.data();
  linear.y_stride = outputs;
  CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
  linear.weight = inside.weight;
  linear.x = guarded_x.as<void>();
  linear.bias = guarded_bias.as<float>();
  linear.residual = guarded_grad_y.as<void>();
  linear.y = guarded_y.as<void>();
  CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
  CHECK(same(guarded_y, y)) << g_case;

  rlcc_sparse_linear_grad_x_params of_x{};
  of_x.weight = w.weight;
  of_x.grad_y = grad_y.data();
  of_x.y_rows = rows;
  of_x.grad_y_stride = outputs;
  of_x.dtype = dtype;
  of_x.grad_x = grad_x.data();
  of_x.grad_x_stride = columns;
  CHECK_STATUS(rlcc_sparse_linear_grad_x(&of_x), RLCC_OK);
  of_x.weight = inside.weight;
  of_x.grad_y = guarded_grad_y.as<void>();
  of_x.grad_x = guarded_grad_x.as<void>();
  CHECK_STATUS(rlcc_sparse_linear_grad_x(&of_x), RLCC_OK);
  CHECK(same(guarded_grad_x, grad_x)) << g_case;

  const Guarded dense(nullptr,
                      static_cast<size_t>(outputs * columns) * dtype_bytes(dense_dtype(w.weight.dtype)), side);
  CHECK_STATUS(rlcc_unpack(&inside.weight, dense.as<void>(), columns), RLCC_OK);
  if (w.weight.dtype == RLCC_I8) return;

  std::vector<char> grad(w.storage.size(), '\x7f');
  const Guarded guarded_grad(grad.data(), grad.size(), side);
  rlcc_sparse_linear_grad_values_params of_values{};
  of_values.weight = w.weight;
  of_values.x = x.data();
  of_values.rows = rows;
  of_values.x_stride = columns;
  of_values.grad_y = grad_y.data();
  of_values.grad_y_stride = outputs;
  of_values.dtype = dtype;
  of_values.grad_values = grad.data();
  CHECK_STATUS(rlcc_sparse_linear_grad_values(&of_values), RLCC_OK);
  of_values.weight = inside.weight;
  of_values.x = guarded_x.as<void>();
  of_values.grad_y = guarded_grad_y.as<void>();
  of_values.grad_values = guarded_grad.as<void>();
  CHECK_STATUS(rlcc_sparse_linear_grad_values(&of_values), RLCC_OK);
  CHECK(std::memcmp(guarded_grad.as<char>(), grad.data(), grad.size()) == 0) << g_case;
}

void shapes(const char* isa) {
  std::mt19937 random(41);
  // The last row decides what is read last: full, half, empty, its last column alone.
  const Pattern patterns[] = {
      [](int64_t, int64_t) { return true; },
      half_with_full_and_empty_row(random),
      [](int64_t n, int64_t) { return n == 0; },
      [](int64_t n, int64_t k) { return n == 0 || k % 67 == 66; },
  };
  size_t turn = 0;
  for (rlcc_dtype values : kValues) {
    for (int64_t columns : {1, 2, 15, 31, 63, 64, 65, 127, 128, 129, 200, 576}) {
      for (int64_t outputs : {1, 2, 5, 17, 33}) {
        const Pattern& pattern = patterns[turn++ % 4];
        const Packed w(random_weight(outputs, columns, dense_dtype(values), random, pattern), values);
        for (int64_t rows : {1, 2, 4, 7, 16, 17, 40, 67}) {
          const rlcc_dtype dtype = kDtypes[turn++ % 3];
          const Guarded::Side side = turn % 5 == 0 ? Guarded::kBegin : Guarded::kEnd;
          std::snprintf(g_case, sizeof(g_case), "%s pattern %zu", describe("ops", isa, w, rows, dtype).c_str(),
                        static_cast<size_t>(&pattern - patterns));
          all_ops(w, rows, dtype, random, side);
        }
      }
    }
  }
}

// The guard itself: a child that reads one byte too many, or one before the first, has to die of it.
void guards_hold() {
  for (const Guarded::Side side : {Guarded::kEnd, Guarded::kBegin}) {
    const Guarded few("abc", 3, side);
    int pipe_ends[2];
    CHECK(pipe(pipe_ends) == 0);  // the system reads for us and says EFAULT
    const char* beyond = side == Guarded::kEnd ? few.as<char>() + 3 : few.as<char>() - 1;
    CHECK(write(pipe_ends[1], beyond, 1) == -1);
    CHECK(write(pipe_ends[1], few.as<char>(), 3) == 3);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
  }
}

}  // namespace

int main() {
  guards_hold();
  std::signal(SIGSEGV, faulted);
  std::signal(SIGBUS, faulted);
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    shapes(isa);
  }
  return report("memory_bounds");
}

#else

int main() {
  restorelcc::test::skip("pages without access need mmap and mprotect, which this system lacks");
  return restorelcc::test::report("memory_bounds");
}

#endif
