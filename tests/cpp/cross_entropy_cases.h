// One call of linear_cross_entropy, of its gradient, or of head_contrast on random inputs, on whatever
// back-end, held against the float64 oracle.
//
// Budget: a logit may be off by kSlack 2^-24 S, S = max_v sum_e |h| |W| + |bias| of its row (fp32 sums in
// whatever order). A loss may be off by as much, and by its own rounding. A probability may be off by as much,
// relative, and may be rounded to the dtype; so a gradient sum_v g W may be off by that share of sum_v |g| |W|,
// where |g| counts the probability and the label's 1 apart, and by the rounding of the result.
#pragma once

#include <algorithm>
#include <memory>

#include "matrices.h"

namespace restorelcc::test {

constexpr double kLossSlack = 32;
constexpr double kVanishing = 0x1p-120;  // a probability below it may be 0, or it
constexpr int64_t kIgnored = -100;

struct LossShape {
  int64_t rows, vocabulary, columns;
  bool wide = false;  // rows of h and W begin at multiples of 16 bytes
};

// Whole tiles, ragged ones, 1 of each, nothing of each, long in each direction.
constexpr LossShape kLossShapes[] = {
    {16, 256, 64}, {0, 5, 3},    {1, 1, 1},     {1, 2, 1},     {3, 1, 17},    {2, 17, 1},
    {5, 131, 31},  {17, 67, 64}, {33, 509, 65}, {7, 1009, 13}, {65, 40, 24},  {130, 70, 7},
    {4, 33, 576},  {4, 9, 1134}, {3, 11, 0},    {2, 4099, 8},  {32, 33, 32},  {31, 63, 33},
    {8, 128, 16},  {1, 300, 40}, {9, 16, 129},  {6, 15, 2},    {15, 1000, 3},
};

// Normal values times `scale`, some of them 4 times as large: a few words of a row share the probability.
inline void fill_logits(Matrix& matrix, std::mt19937& random, float scale) {
  std::normal_distribution<float> normal;
  for (int64_t m = 0; m < matrix.rows(); ++m) {
    for (int64_t n = 0; n < matrix.columns(); ++n) {
      matrix.set(m, n, normal(random) * (random() % 16 == 0 ? 4 * scale : scale));
    }
  }
}

// What all three ops take, owned.
struct LanguageModel {
  Matrix h, weight;  // [rows, E] (of head_contrast: G groups of M rows), [V, E]
  std::vector<float> bias;
  std::vector<int64_t> labels;
  rlcc_language_head head{};

  LanguageModel(const LossShape& shape, int64_t h_rows, rlcc_dtype dtype, std::mt19937& random, bool biased)
      : h(h_rows, shape.columns, dtype, gap(shape, 3)),
        weight(shape.vocabulary, shape.columns, dtype, gap(shape, 5)) {
    fill_logits(h, random, 1);
    fill_logits(weight, random, 2 / std::sqrt(static_cast<float>(shape.columns + 1)));
    std::normal_distribution<float> normal;
    for (int64_t v = 0; v < shape.vocabulary && biased; ++v) bias.push_back(normal(random));
    for (int64_t m = 0; m < shape.rows; ++m) {
      const uint64_t label = random() % static_cast<uint64_t>(shape.vocabulary);
      labels.push_back(random() % 5 == 0 ? kIgnored : static_cast<int64_t>(label));
    }
    head.weight = weight.data();
    head.vocabulary = shape.vocabulary;
    head.columns = shape.columns;
    head.weight_stride = weight.stride();
    head.bias = biased ? bias.data() : nullptr;
    head.dtype = dtype;
  }
  LanguageModel(const LanguageModel&) = delete;
  LanguageModel& operator=(const LanguageModel&) = delete;

  rlcc_dtype dtype() const { return head.dtype; }
  static int64_t gap(const LossShape& shape, int64_t odd) {
    return shape.wide ? (8 - shape.columns % 8) % 8 : odd;
  }

  // What a logit of this row of h may be off by.
  double logit_error(int64_t row) const {
    double largest = 0;
    for (int64_t v = 0; v < head.vocabulary; ++v) {
      double sum = head.bias != nullptr && std::isfinite(head.bias[v]) ? std::fabs(head.bias[v]) : 0;
      for (int64_t e = 0; e < head.columns; ++e) sum += std::fabs(double{h.get(row, e)} * weight.get(v, e));
      largest = std::max(largest, sum);
    }
    return kLossSlack * 0x1p-24 * largest;
  }

  // scale (softmax(l)[v] + [v = label]) of each word: the terms of a gradient without their signs.
  std::vector<double> shares(int64_t row, double scale) const {
    std::vector<double> l(static_cast<size_t>(head.vocabulary));
    double top = -HUGE_VAL, sum = 0;
    for (int64_t v = 0; v < head.vocabulary; ++v) {
      double& logit = l[static_cast<size_t>(v)];
      if (head.bias != nullptr) logit = head.bias[v];
      for (int64_t e = 0; e < head.columns; ++e) logit += double{h.get(row, e)} * weight.get(v, e);
      top = std::max(top, logit);
    }
    for (double& logit : l) sum += logit = std::exp(logit - top);
    for (double& share : l) share *= std::fabs(scale) / sum;
    l[static_cast<size_t>(labels[static_cast<size_t>(row)])] += std::fabs(scale);
    return l;
  }
};

inline void close_to(double got, double expected, double allowed, const std::string& name, int64_t m,
                     int64_t n) {
  const bool same = std::isfinite(expected) ? std::fabs(got - expected) <= allowed && std::isfinite(got)
                                            : got == expected || (std::isnan(got) && std::isnan(expected));
  CHECK(same) << name << " at " << m << ", " << n << ": " << got << " for " << expected << ", allowed "
              << allowed;
}

inline void compare_gradients(const Matrix& got, const Matrix& expected, const std::vector<double>& allowed,
                              const std::string& name) {
  for (int64_t m = 0; m < got.rows(); ++m) {
    for (int64_t n = 0; n < got.columns(); ++n) {
      const double e = expected.get(m, n);
      const double rounded = 2 * rounding(got.dtype()) * std::fabs(e) + smallest(got.dtype());
      close_to(got.get(m, n), e, allowed[static_cast<size_t>(m * got.columns() + n)] + rounded, name, m, n);
    }
  }
  CHECK(got.gaps_untouched()) << name;
}

struct LossCase {
  LanguageModel model;
  std::vector<float> nll, lse, nll64, lse64;
  Matrix grad_h, grad_h64;
  rlcc_linear_cross_entropy_params params{};

  LossCase(const LossShape& shape, rlcc_dtype dtype, std::mt19937& random, bool biased)
      : model(shape, shape.rows, dtype, random, biased),
        nll(static_cast<size_t>(shape.rows), -7),
        lse(nll),
        nll64(nll),
        lse64(nll),
        grad_h(shape.rows, shape.columns, dtype, 1),
        grad_h64(grad_h) {
    params.head = model.head;
    params.h = model.h.data();
    params.rows = shape.rows;
    params.h_stride = model.h.stride();
    params.labels = model.labels.data();
    params.ignore_index = kIgnored;
    params.nll = nll.data();
    params.lse = lse.data();
    params.grad_h = grad_h.data();
    params.grad_h_stride = grad_h.stride();
  }

  void run(const std::string& name,
           rlcc_status (*op)(const rlcc_linear_cross_entropy_params*) = rlcc_linear_cross_entropy) {
    CHECK_STATUS(op(&params), RLCC_OK);
    rlcc_linear_cross_entropy_params oracle = params;
    oracle.nll = nll64.data();
    oracle.lse = lse64.data();
    oracle.grad_h = grad_h64.data();
    CHECK_STATUS(rlcc_linear_cross_entropy_reference(&oracle), RLCC_OK);
    std::vector<double> allowed(static_cast<size_t>(params.rows * params.head.columns));
    for (int64_t m = 0; m < params.rows; ++m) {
      const size_t row = static_cast<size_t>(m);
      const double logit = model.logit_error(m);
      close_to(nll[row], nll64[row], logit + 0x1p-22 * std::fabs(nll64[row]), name + " nll", m, 0);
      close_to(lse[row], lse64[row], logit + 0x1p-22 * std::fabs(lse64[row]), name + " lse", m, 0);
      if (model.labels[row] == kIgnored) {
        CHECK(nll[row] == 0) << name;
        for (int64_t e = 0; e < params.head.columns; ++e) CHECK(grad_h.get(m, e) == 0) << name;
        continue;
      }
      const std::vector<double> shares = model.shares(m, 1);
      for (int64_t e = 0; e < params.head.columns; ++e) {
        double sum = 0;
        for (size_t v = 0; v < shares.size(); ++v) {
          const double error = (2 * logit + rounding(model.dtype())) * shares[v] + kVanishing;
          sum += error * std::fabs(model.weight.get(static_cast<int64_t>(v), e));
        }
        allowed[static_cast<size_t>(m * params.head.columns + e)] = sum;
      }
    }
    compare_gradients(grad_h, grad_h64, allowed, name + " grad_h");
  }
};

struct LossGradientCase {
  LossCase forward;
  std::vector<float> grad_nll, grad_bias, grad_bias64;
  Matrix grad_weight, grad_weight64;
  rlcc_linear_cross_entropy_backward_params params{};

  LossGradientCase(const LossShape& shape, rlcc_dtype dtype, std::mt19937& random, bool biased)
      : forward(shape, dtype, random, biased),
        grad_bias(static_cast<size_t>(shape.vocabulary), -7),
        grad_bias64(grad_bias),
        grad_weight(shape.vocabulary, shape.columns, dtype, 2),
        grad_weight64(grad_weight) {
    CHECK_STATUS(rlcc_linear_cross_entropy_reference(&forward.params), RLCC_OK);
    std::normal_distribution<float> normal;
    for (int64_t m = 0; m < shape.rows; ++m) grad_nll.push_back(normal(random));
    params.head = forward.model.head;
    params.h = forward.params.h;
    params.rows = shape.rows;
    params.h_stride = forward.params.h_stride;
    params.labels = forward.params.labels;
    params.ignore_index = kIgnored;
    params.lse = forward.lse.data();
    params.grad_nll = grad_nll.data();
    params.grad_h = forward.grad_h.data();
    params.grad_h_stride = forward.grad_h.stride();
    params.grad_weight = grad_weight.data();
    params.grad_weight_stride = grad_weight.stride();
    params.grad_bias = grad_bias.data();
  }

  void run(const std::string& name, rlcc_status (*op)(const rlcc_linear_cross_entropy_backward_params*) =
                                        rlcc_linear_cross_entropy_backward) {
    const LanguageModel& model = forward.model;
    CHECK_STATUS(op(&params), RLCC_OK);
    rlcc_linear_cross_entropy_backward_params oracle = params;
    oracle.grad_h = forward.grad_h64.data();
    oracle.grad_weight = grad_weight64.data();
    oracle.grad_bias = grad_bias64.data();
    CHECK_STATUS(rlcc_linear_cross_entropy_backward_reference(&oracle), RLCC_OK);
    const int64_t columns = params.head.columns;
    std::vector<double> of_h(static_cast<size_t>(params.rows * columns)), of_bias(grad_bias.size());
    std::vector<double> of_weight(static_cast<size_t>(params.head.vocabulary * columns));
    for (int64_t m = 0; m < params.rows; ++m) {
      if (model.labels[static_cast<size_t>(m)] == kIgnored) continue;
      // lse comes rounded to fp32, which moves every probability of the row alike.
      const double lse_error = 0x1p-24 * std::fabs(forward.lse[static_cast<size_t>(m)]);
      const double share_error = 2 * model.logit_error(m) + 2 * lse_error + rounding(model.dtype());
      const std::vector<double> shares = model.shares(m, grad_nll[static_cast<size_t>(m)]);
      for (size_t v = 0; v < shares.size(); ++v) {
        const double error = share_error * shares[v] + kVanishing;
        of_bias[v] += error;
        for (int64_t e = 0; e < columns; ++e) {
          const double w = std::fabs(model.weight.get(static_cast<int64_t>(v), e));
          of_h[static_cast<size_t>(m * columns + e)] += error * w;
          of_weight[v * static_cast<size_t>(columns) + static_cast<size_t>(e)] +=
              error * std::fabs(model.h.get(m, e));
        }
      }
    }
    compare_gradients(forward.grad_h, forward.grad_h64, of_h, name + " grad_h");
    compare_gradients(grad_weight, grad_weight64, of_weight, name + " grad_weight");
    for (size_t v = 0; v < grad_bias.size(); ++v) {
      const double allowed = of_bias[v] + 0x1p-22 * std::fabs(grad_bias64[v]);
      close_to(grad_bias[v], grad_bias64[v], allowed, name + " grad_bias", static_cast<int64_t>(v), 0);
    }
  }
};

struct ContrastCase {
  LanguageModel model;  // h [G M, E]
  std::vector<float> base_nll, weights;
  std::vector<int64_t> segments;
  std::vector<double> contrast, contrast64;
  rlcc_head_contrast_params params{};

  ContrastCase(const LossShape& shape, int64_t groups, int64_t segment_count, rlcc_dtype dtype,
               std::mt19937& random, bool biased)
      : model(shape, groups * shape.rows, dtype, random, biased),
        contrast(static_cast<size_t>(groups * segment_count), -7),
        contrast64(contrast) {
    std::uniform_real_distribution<float> uniform;
    for (int64_t m = 0; m < shape.rows; ++m) {
      base_nll.push_back(5 * uniform(random));
      weights.push_back(random() % 4 == 0 ? 0 : uniform(random));
      const uint64_t segment = random() % static_cast<uint64_t>(segment_count + 1);
      segments.push_back(static_cast<int64_t>(segment) - 1);
    }
    params.head = model.head;
    params.h = model.h.data();
    params.groups = groups;
    params.rows = shape.rows;
    params.group_stride = shape.rows * model.h.stride();
    params.h_stride = model.h.stride();
    params.labels = model.labels.data();
    params.ignore_index = kIgnored;
    params.base_nll = base_nll.data();
    params.segments = segment_count > 1 ? segments.data() : nullptr;
    params.segment_count = segment_count;
    params.weights = segment_count > 1 ? weights.data() : nullptr;
    params.contrast = contrast.data();
  }

  void run(const std::string& name, rlcc_status (*op)(const rlcc_head_contrast_params*) = rlcc_head_contrast) {
    CHECK_STATUS(op(&params), RLCC_OK);
    rlcc_head_contrast_params oracle = params;
    oracle.contrast = contrast64.data();
    CHECK_STATUS(rlcc_head_contrast_reference(&oracle), RLCC_OK);
    for (int64_t g = 0; g < params.groups; ++g) {
      double worst = 0;  // a mean is off by no more than its terms are
      for (int64_t m = 0; m < params.rows; ++m) worst = std::max(worst, model.logit_error(g * params.rows + m));
      for (int64_t s = 0; s < params.segment_count; ++s) {
        const size_t place = static_cast<size_t>(g * params.segment_count + s);
        close_to(contrast[place], contrast64[place], worst + 0x1p-18, name + " contrast", g, s);
      }
    }
  }
};

inline std::string describe(const char* isa, const LossShape& shape, rlcc_dtype dtype) {
  std::ostringstream name;
  name << isa << " M=" << shape.rows << " V=" << shape.vocabulary << " E=" << shape.columns << " "
       << dtype_name(dtype);
  return name.str();
}

}  // namespace restorelcc::test
