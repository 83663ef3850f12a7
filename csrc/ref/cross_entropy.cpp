#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/element.h"
#include "ref/reference.h"

// Scratch is allocated before any output is written, here as in the kernels.
namespace restorelcc::reference {
namespace {

// l[v] = sum_e h[e] W[v, e] + bias[v], h being the E elements from `begin` on.
void set_logits(const rlcc_language_head& head, const void* h, int64_t begin, std::vector<double>& l) {
  for (int64_t v = 0; v < head.vocabulary; ++v) {
    double sum = 0;
    for (int64_t e = 0; e < head.columns; ++e) {
      sum += element(h, head.dtype, begin + e) * element(head.weight, head.dtype, v * head.weight_stride + e);
    }
    l[static_cast<size_t>(v)] = head.bias != nullptr ? sum + head.bias[v] : sum;
  }
}

std::vector<double> one_per_word(const rlcc_language_head& head) {
  return std::vector<double>(static_cast<size_t>(head.vocabulary));
}

// log sum_v exp(l[v]) = top + log_rest, top = max_v l[v], so that no exponential overflows. Both parts are
// kept, since lse - l[label] loses the digits of log_rest where top is large. NaN where a logit is NaN or +Inf,
// or all are -Inf, as in torch's log_softmax.
struct LogSum {
  double top = -std::numeric_limits<double>::infinity(), log_rest = 0;

  explicit LogSum(const std::vector<double>& l) {
    for (double logit : l) top = std::max(top, logit);
    double sum = 0;
    for (double logit : l) sum += std::exp(logit - top);
    log_rest = std::log(sum);
  }
  double lse() const { return top + log_rest; }
  double nll(double label_logit) const { return log_rest - (label_logit - top); }
};

// g[v] = scale (exp(l[v] - lse) - [v = label])
void set_logit_gradients(const std::vector<double>& l, double lse, int64_t label, double scale,
                         std::vector<double>& g) {
  for (size_t v = 0; v < l.size(); ++v) {
    g[v] = scale * (std::exp(l[v] - lse) - (static_cast<int64_t>(v) == label ? 1.0 : 0.0));
  }
}

// grad_h[e] = sum_v g[v] W[v, e], written from element `begin` on.
void set_grad_h(const rlcc_language_head& head, const std::vector<double>& g, void* grad_h, int64_t begin) {
  for (int64_t e = 0; e < head.columns; ++e) {
    double sum = 0;
    for (size_t v = 0; v < g.size(); ++v) {
      sum += g[v] * element(head.weight, head.dtype, static_cast<int64_t>(v) * head.weight_stride + e);
    }
    set_element(grad_h, head.dtype, begin + e, sum);
  }
}

void clear_row(const rlcc_language_head& head, void* row, int64_t begin) {
  for (int64_t e = 0; e < head.columns; ++e) set_element(row, head.dtype, begin + e, 0);
}

}  // namespace

// nll[m] = lse[m] - l[m, labels[m]],  grad_h[m, e] = sum_v (softmax(l[m])[v] - [v = labels[m]]) W[v, e]
void linear_cross_entropy(const rlcc_linear_cross_entropy_params& p) {
  std::vector<double> l = one_per_word(p.head), g = l;
  for (int64_t m = 0; m < p.rows; ++m) {
    const bool counted = p.labels[m] != p.ignore_index;
    if (!counted) {
      p.nll[m] = 0;
      if (p.grad_h != nullptr) clear_row(p.head, p.grad_h, m * p.grad_h_stride);
      if (p.lse == nullptr) continue;
    }
    set_logits(p.head, p.h, m * p.h_stride, l);
    const LogSum log_sum(l);
    if (p.lse != nullptr) p.lse[m] = static_cast<float>(log_sum.lse());
    if (!counted) continue;
    p.nll[m] = static_cast<float>(log_sum.nll(l[static_cast<size_t>(p.labels[m])]));
    if (p.grad_h != nullptr) {
      set_logit_gradients(l, log_sum.lse(), p.labels[m], 1, g);
      set_grad_h(p.head, g, p.grad_h, m * p.grad_h_stride);
    }
  }
}

// g[m, v] = grad_nll[m] (exp(l[m, v] - lse[m]) - [v = labels[m]])
// grad_h[m, e] = sum_v g[m, v] W[v, e]
// grad_weight[v, e] = sum_m g[m, v] h[m, e],  grad_bias[v] = sum_m g[m, v]
void linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params& p) {
  const int64_t vocabulary = p.head.vocabulary, columns = p.head.columns;
  std::vector<double> weight_sums(static_cast<size_t>(p.grad_weight != nullptr ? vocabulary * columns : 0));
  std::vector<double> bias_sums(static_cast<size_t>(p.grad_bias != nullptr ? vocabulary : 0));
  std::vector<double> l = one_per_word(p.head), g = l;
  for (int64_t m = 0; m < p.rows; ++m) {
    if (p.labels[m] == p.ignore_index) {
      if (p.grad_h != nullptr) clear_row(p.head, p.grad_h, m * p.grad_h_stride);
      continue;
    }
    set_logits(p.head, p.h, m * p.h_stride, l);
    set_logit_gradients(l, p.lse[m], p.labels[m], p.grad_nll[m], g);
    if (p.grad_h != nullptr) set_grad_h(p.head, g, p.grad_h, m * p.grad_h_stride);
    for (size_t v = 0; v < bias_sums.size(); ++v) bias_sums[v] += g[v];
    for (size_t i = 0; i < weight_sums.size(); ++i) {
      const int64_t v = static_cast<int64_t>(i) / columns, e = static_cast<int64_t>(i) % columns;
      weight_sums[i] += g[static_cast<size_t>(v)] * element(p.h, p.head.dtype, m * p.h_stride + e);
    }
  }
  for (size_t i = 0; i < weight_sums.size(); ++i) {
    const int64_t v = static_cast<int64_t>(i) / columns, e = static_cast<int64_t>(i) % columns;
    set_element(p.grad_weight, p.head.dtype, v * p.grad_weight_stride + e, weight_sums[i]);
  }
  for (size_t v = 0; v < bias_sums.size(); ++v) p.grad_bias[v] = static_cast<float>(bias_sums[v]);
}

// contrast[g, s] = sum_{m in s} w[m] (nll(h[g, m]) - base_nll[m]) / sum_{m in s} w[m]
void head_contrast(const rlcc_head_contrast_params& p) {
  std::vector<double> sums(static_cast<size_t>(p.segment_count)), totals(sums), l = one_per_word(p.head);
  for (int64_t g = 0; g < p.groups; ++g) {
    std::fill(sums.begin(), sums.end(), 0.0);
    std::fill(totals.begin(), totals.end(), 0.0);
    for (int64_t m = 0; m < p.rows; ++m) {
      const int64_t segment = p.segments != nullptr ? p.segments[m] : 0;
      const double weight = p.weights != nullptr ? p.weights[m] : 1;
      if (p.labels[m] == p.ignore_index || segment < 0 || weight == 0) continue;
      set_logits(p.head, p.h, g * p.group_stride + m * p.h_stride, l);
      const double nll = LogSum(l).nll(l[static_cast<size_t>(p.labels[m])]);
      sums[static_cast<size_t>(segment)] += weight * (nll - p.base_nll[m]);
      totals[static_cast<size_t>(segment)] += weight;
    }
    for (int64_t s = 0; s < p.segment_count; ++s) {  // 0 / 0 is NaN: a segment without tokens
      p.contrast[g * p.segment_count + s] = sums[static_cast<size_t>(s)] / totals[static_cast<size_t>(s)];
    }
  }
}

}  // namespace restorelcc::reference
