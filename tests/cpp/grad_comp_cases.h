// One call of sparse_linear_grad_comp on random inputs, held against the float64 oracle.
//
// Budget: |sum - sum64| <= kSlack 2^-24 S + the rounding of both to fp32, S = sum |grad_y| over the same rows.
// A dropped, doubled or misplaced row is far outside. NaN and Inf are compared first, by position.
#pragma once

#include "matrices.h"

namespace restorelcc::test {

struct GradCompShape {
  int64_t rows, columns, groups;  // groups 0: no grad_comp_rows
  bool indexed, biased;
};

struct GradCompCase {
  static constexpr double kSlack = 32;

  Matrix grad_y;
  std::vector<int64_t> index;
  std::vector<float> comp_rows, bias;
  rlcc_sparse_linear_grad_comp_params params{};

  GradCompCase(const GradCompShape& shape, rlcc_dtype dtype, std::mt19937& random, int64_t gap = 3)
      : grad_y(shape.rows, shape.columns, dtype, gap),
        comp_rows(static_cast<size_t>(shape.groups * shape.columns)),
        bias(static_cast<size_t>(shape.biased ? shape.columns : 0)) {
    fill_normal(grad_y, random);
    for (int64_t m = 0; m < shape.rows && shape.indexed;
         ++m) {  // the last group has no rows, if there are more
      const uint64_t used = static_cast<uint64_t>(std::max<int64_t>(shape.groups - 1, 1));
      index.push_back(static_cast<int64_t>(random() % used));
    }
    params.grad_y = grad_y.data();
    params.rows = shape.rows;
    params.columns = shape.columns;
    params.grad_y_stride = grad_y.stride();
    params.dtype = dtype;
    params.comp_index = shape.indexed ? index.data() : nullptr;
    params.groups = shape.groups;
    params.grad_comp_rows = shape.groups > 0 ? comp_rows.data() : nullptr;
    params.grad_bias = shape.biased ? bias.data() : nullptr;
    forget();
  }

  // NaN wherever a call is to write.
  void forget() {
    comp_rows.assign(comp_rows.size(), NAN);
    bias.assign(bias.size(), NAN);
  }

  void run(const std::string& name) {
    forget();
    CHECK_STATUS(rlcc_sparse_linear_grad_comp(&params), RLCC_OK);
    compare_with_reference(name);
  }

  void compare_with_reference(const std::string& name) const {
    std::vector<float> comp64(comp_rows.size(), NAN), bias64(bias.size(), NAN);
    rlcc_sparse_linear_grad_comp_params p = params;
    p.grad_comp_rows = p.groups > 0 ? comp64.data() : nullptr;
    p.grad_bias = bias.empty() ? nullptr : bias64.data();
    CHECK_STATUS(rlcc_sparse_linear_grad_comp_reference(&p), RLCC_OK);
    std::vector<double> comp_size(comp_rows.size()), bias_size(static_cast<size_t>(p.columns));
    for (int64_t m = 0; m < p.rows; ++m) {
      const int64_t group = p.comp_index != nullptr ? p.comp_index[m] : 0;
      for (int64_t n = 0; n < p.columns; ++n) {
        const double size = std::fabs(double{grad_y.get(m, n)});
        bias_size[static_cast<size_t>(n)] += size;
        if (p.groups > 0) comp_size[static_cast<size_t>(group * p.columns + n)] += size;
      }
    }
    compare(comp_rows, comp64, comp_size, name + " grad_comp_rows");
    compare(bias, bias64, bias_size, name + " grad_bias");
  }

 private:
  static void compare(const std::vector<float>& got, const std::vector<float>& expected,
                      const std::vector<double>& sizes, const std::string& name) {
    for (size_t i = 0; i < got.size(); ++i) {
      const double g = got[i], e = expected[i];
      CHECK(std::isnan(g) == std::isnan(e)) << name << " at " << i << ": " << g << " for " << e;
      CHECK(std::isinf(g) == std::isinf(e) && (!std::isinf(e) || g == e))
          << name << " at " << i << ": " << g << " for " << e;
      if (!std::isfinite(e) || !std::isfinite(g)) continue;
      const double allowed = kSlack * 0x1p-24 * sizes[i] + 2 * rounding(RLCC_F32) * std::fabs(e);
      CHECK(std::fabs(g - e) <= allowed) << name << " at " << i << ": " << g << " for " << e;
    }
  }
};

inline std::string describe(const GradCompShape& s, rlcc_dtype dtype) {
  std::ostringstream name;
  name << "M=" << s.rows << " N=" << s.columns << " G=" << s.groups << (s.indexed ? " indexed" : "")
       << (s.biased ? " bias " : " ") << dtype_name(dtype);
  return name.str();
}

// Both gradients, and each alone; with an index, and without where one group is all.
template <class Body>
void for_each_wanted(int64_t rows, int64_t columns, int64_t groups, const Body& body) {
  for (const bool biased : {false, true}) {
    body(GradCompShape{rows, columns, groups, true, biased});
    if (groups == 1) body(GradCompShape{rows, columns, 1, false, biased});
  }
  body(GradCompShape{rows, columns, 0, false, true});
}

}  // namespace restorelcc::test
