#include <vector>

#include "core/element.h"
#include "ref/reference.h"
#include "sparse/layout.h"

// Scratch is allocated before any output is written, here as in the kernels.
namespace restorelcc::reference {
namespace {

double scale(const rlcc_packed_weight& weight, int64_t n, int64_t k) {
  if (weight.scales == nullptr) return 1;
  return float_of_bf16(weight.scales[n * scale_groups_of(weight.columns) + k / RLCC_SCALE_COLUMNS]);
}

// W[n, 0..K), pruned places +0.0. They take part in the sums: 0 * Inf is NaN, as in a dense product.
void unpack_row(const rlcc_packed_weight& weight, int64_t n, std::vector<double>& row) {
  int64_t cursor = weight.row_offsets[n];
  for (int64_t k = 0; k < weight.columns; ++k) {
    const uint64_t word = weight.mask[n * words_of(weight.columns) + k / kWordBits];
    const bool survived = ((word >> (k % kWordBits)) & 1) != 0;
    row[static_cast<size_t>(k)] =
        survived ? element(weight.values, weight.dtype, cursor++) * scale(weight, n, k) : 0.0;
  }
}

}  // namespace

// y[m, n] = sum_k x[m, k] W[n, k] + comp_rows[comp_index[m], n] + bias[n] + residual[m, n]
void sparse_linear(const rlcc_sparse_linear_params& p) {
  const int64_t outputs = p.weight.rows;
  std::vector<double> row(static_cast<size_t>(p.weight.columns));
  for (int64_t n = 0; n < outputs; ++n) {
    unpack_row(p.weight, n, row);
    for (int64_t m = 0; m < p.x_rows; ++m) {
      double sum = 0;
      for (int64_t k = 0; k < p.weight.columns; ++k) {
        sum += element(p.x, p.x_dtype, m * p.x_stride + k) * row[static_cast<size_t>(k)];
      }
      if (p.comp_rows != nullptr) {
        sum += p.comp_rows[(p.comp_index != nullptr ? p.comp_index[m] : 0) * outputs + n];
      }
      if (p.bias != nullptr) sum += p.bias[n];
      if (p.residual != nullptr) sum += element(p.residual, p.x_dtype, m * p.residual_stride + n);
      set_element(p.y, p.x_dtype, m * p.y_stride + n, sum);
    }
  }
}

// grad_x[m, k] = sum_n grad_y[m, n] W[n, k]
void sparse_linear_grad_x(const rlcc_sparse_linear_grad_x_params& p) {
  const int64_t inputs = p.weight.columns;
  std::vector<double> sums(static_cast<size_t>(p.y_rows * inputs)), row(static_cast<size_t>(inputs));
  for (int64_t n = 0; n < p.weight.rows; ++n) {
    unpack_row(p.weight, n, row);
    for (int64_t m = 0; m < p.y_rows; ++m) {
      const double gradient = element(p.grad_y, p.dtype, m * p.grad_y_stride + n);
      for (int64_t k = 0; k < inputs; ++k) {
        sums[static_cast<size_t>(m * inputs + k)] += gradient * row[static_cast<size_t>(k)];
      }
    }
  }
  for (int64_t m = 0; m < p.y_rows; ++m) {
    for (int64_t k = 0; k < inputs; ++k) {
      set_element(p.grad_x, p.dtype, m * p.grad_x_stride + k, sums[static_cast<size_t>(m * inputs + k)]);
    }
  }
}

// grad_values[v(n, k)] = sum_m grad_y[m, n] x[m, k]
void sparse_linear_grad_values(const rlcc_sparse_linear_grad_values_params& p) {
  const rlcc_packed_weight& weight = p.weight;
  for (int64_t n = 0; n < weight.rows; ++n) {
    int64_t cursor = weight.row_offsets[n];
    for (int64_t k = 0; k < weight.columns; ++k) {
      const uint64_t word = weight.mask[n * words_of(weight.columns) + k / kWordBits];
      if (((word >> (k % kWordBits)) & 1) == 0) continue;
      double sum = 0;
      for (int64_t m = 0; m < p.rows; ++m) {
        sum += element(p.grad_y, p.dtype, m * p.grad_y_stride + n) * element(p.x, p.dtype, m * p.x_stride + k);
      }
      set_element(p.grad_values, weight.dtype, cursor++, sum);
    }
  }
}

// grad_comp_rows[g, n] = sum_{m: comp_index[m] = g} grad_y[m, n],   grad_bias[n] = sum_m grad_y[m, n]
void sparse_linear_grad_comp(const rlcc_sparse_linear_grad_comp_params& p) {
  std::vector<double> sums(static_cast<size_t>(p.groups));  // before anything is written
  for (int64_t n = 0; n < p.columns; ++n) {
    sums.assign(sums.size(), 0);
    double all = 0;
    for (int64_t m = 0; m < p.rows; ++m) {
      const double gradient = element(p.grad_y, p.dtype, m * p.grad_y_stride + n);
      all += gradient;
      if (p.groups > 0) sums[static_cast<size_t>(p.comp_index != nullptr ? p.comp_index[m] : 0)] += gradient;
    }
    for (int64_t g = 0; g < p.groups; ++g) {
      p.grad_comp_rows[g * p.columns + n] = static_cast<float>(sums[static_cast<size_t>(g)]);
    }
    if (p.grad_bias != nullptr) p.grad_bias[n] = static_cast<float>(all);
  }
}

}  // namespace restorelcc::reference
