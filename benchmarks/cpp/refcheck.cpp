#include "refcheck.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "weights.h"

namespace restorelcc::bench {
namespace {

constexpr double kLargestX = 127.0 / 64, kLargestWeight = 2;  // random_x, random_value
constexpr double kComp = 2;

double half_unit(rlcc_dtype dtype) {
  return dtype == RLCC_F32 ? 0x1p-24 : dtype == RLCC_BF16 ? 0x1p-9 : 0x1p-12;
}

// got and expected [count]; terms: how many products an element sums.
std::string compare(const char* what, const void* got, rlcc_dtype got_dtype, const void* expected,
                    rlcc_dtype expected_dtype, int64_t count, double terms) {
  const double sum = terms * kLargestX * kLargestWeight + kComp;
  for (int64_t i = 0; i < count; ++i) {
    const double g = element(got, got_dtype, i), e = element(expected, expected_dtype, i);
    // Each side was rounded once.
    const double roundings = 2 * (half_unit(got_dtype) + half_unit(expected_dtype)) * std::fabs(e);
    const double allowed = 32 * 0x1p-24 * sum + roundings;
    if (std::fabs(g - e) <= allowed) continue;  // false for NaN
    char text[160];
    std::snprintf(text, sizeof(text), "%s: element %lld is %.9g, the reference says %.9g, allowed %.3g", what,
                  static_cast<long long>(i), g, e, allowed);
    return text;
  }
  return "";
}

const char* row_of(const void* data, int64_t row, int64_t stride, rlcc_dtype dtype) {
  return static_cast<const char*>(data) + row * stride * bytes_of(dtype);
}

std::string refused() { return std::string("the reference refused: ") + rlcc_last_error(); }

}  // namespace

std::string check_forward(const rlcc_sparse_linear_params& done) {
  std::vector<char> expected(static_cast<size_t>(done.weight.rows * bytes_of(done.x_dtype)));
  for (int64_t m : {int64_t{0}, done.x_rows - 1}) {
    rlcc_sparse_linear_params p = done;
    p.x = row_of(done.x, m, done.x_stride, done.x_dtype);
    p.x_rows = 1;
    if (done.comp_index != nullptr) p.comp_index = done.comp_index + m;
    p.y = expected.data();
    if (rlcc_sparse_linear_reference(&p) != RLCC_OK) return refused();
    const std::string found =
        compare("y", row_of(done.y, m, done.y_stride, done.x_dtype), done.x_dtype, expected.data(),
                done.x_dtype, done.weight.rows, static_cast<double>(done.weight.columns));
    if (!found.empty()) return "row " + std::to_string(m) + ", " + found;
  }
  return "";
}

std::string check_grad_x(const rlcc_sparse_linear_grad_x_params& done) {
  std::vector<char> expected(static_cast<size_t>(done.weight.columns * bytes_of(done.dtype)));
  for (int64_t m : {int64_t{0}, done.y_rows - 1}) {
    rlcc_sparse_linear_grad_x_params p = done;
    p.grad_y = row_of(done.grad_y, m, done.grad_y_stride, done.dtype);
    p.y_rows = 1;
    p.grad_x = expected.data();
    if (rlcc_sparse_linear_grad_x_reference(&p) != RLCC_OK) return refused();
    const std::string found =
        compare("grad_x", row_of(done.grad_x, m, done.grad_x_stride, done.dtype), done.dtype, expected.data(),
                done.dtype, done.weight.columns, static_cast<double>(done.weight.rows));
    if (!found.empty()) return "row " + std::to_string(m) + ", " + found;
  }
  return "";
}

// The first rows of W are a weight of their own, with the same arrays.
std::string check_grad_values(const rlcc_sparse_linear_grad_values_params& done) {
  std::vector<char> expected(static_cast<size_t>(done.weight.value_count * bytes_of(done.weight.dtype)));
  rlcc_sparse_linear_grad_values_params p = done;
  p.weight.rows = std::min<int64_t>(done.weight.rows, 17);
  p.grad_values = expected.data();
  if (rlcc_sparse_linear_grad_values_reference(&p) != RLCC_OK) return refused();
  return compare("grad_values", done.grad_values, done.weight.dtype, expected.data(), done.weight.dtype,
                 p.weight.row_offsets[p.weight.rows], static_cast<double>(done.rows));
}

std::string check_dense(const rlcc_packed_weight& weight, const void* x, rlcc_dtype dtype, const float* y) {
  std::vector<char> expected(static_cast<size_t>(weight.rows * bytes_of(dtype)));
  rlcc_sparse_linear_params p{};
  p.weight = weight;
  p.x = x;
  p.x_rows = 1;
  p.x_stride = weight.columns;
  p.x_dtype = dtype;
  p.y = expected.data();
  p.y_stride = weight.rows;
  if (rlcc_sparse_linear_reference(&p) != RLCC_OK) return refused();
  return compare("y", y, RLCC_F32, expected.data(), dtype, weight.rows, static_cast<double>(weight.columns));
}

}  // namespace restorelcc::bench
