// The CUDA cross entropies on the emulated device, through the C entry points, against the float64 oracle: the
// cases and the budgets of tests/cpp/test_cross_entropy.cpp.
#include <functional>
#include <string>

#include "../cpp/cross_entropy_cases.h"
#include "check_launch.h"
#include "cross_entropy_on_device.h"

using namespace restorelcc::test;

namespace {

constexpr LossShape kSmall{6, 19, 21};

// The forward pass without a gradient has kernels of its own; the same losses must come out, within its budget.
void without_gradient(LossCase& c, const std::string& name) {
  const std::vector<float> nll = c.nll, lse = c.lse;
  rlcc_linear_cross_entropy_params p = c.params;
  p.grad_h = nullptr;
  CHECK_STATUS(loss_on_device(&p), RLCC_OK);
  for (size_t m = 0; m < nll.size(); ++m) {
    const double logit = c.model.logit_error(static_cast<int64_t>(m));
    close_to(c.nll[m], c.nll64[m], logit + 0x1p-22 * std::fabs(c.nll64[m]), name + " nll alone",
             static_cast<int64_t>(m), 0);
    close_to(c.lse[m], c.lse64[m], logit + 0x1p-22 * std::fabs(c.lse64[m]), name + " lse alone",
             static_cast<int64_t>(m), 0);
  }
}

void run_all(const LossShape& shape, rlcc_dtype dtype, std::mt19937& random, int turn) {
  const std::string name = describe(shape.wide ? "wide" : "cuda", shape, dtype);
  const bool biased = turn % 2 == 0;
  LossCase loss(shape, dtype, random, biased);
  loss.run(name, loss_on_device);
  without_gradient(loss, name);
  LossGradientCase(shape, dtype, random, !biased).run(name, gradient_on_device);
  ContrastCase(shape, 1 + turn % 3, 1 + turn % 4, dtype, random, biased).run(name, contrast_on_device);
}

void against_oracle() {
  std::mt19937 random(61);
  int turn = 0;
  for (rlcc_dtype dtype : kDtypes) {
    for (LossShape shape : kLossShapes) {
      const int64_t work = shape.vocabulary * shape.columns * std::max<int64_t>(shape.rows, 16);
      const bool large = work > 500'000;
      if (dtype == RLCC_F16 && large) continue;  // the kernels are bf16's but for one instruction
      if (kSlow && (work > 40'000 || dtype == RLCC_F16)) continue;
      shape.wide = shape.columns % 2 == 0;
      run_all(shape, dtype, random, turn++);
      if (shape.wide && !large && dtype != RLCC_F16) {
        shape.wide = false;
        run_all(shape, dtype, random, turn++);
      }
    }
  }
}

// What is null is not asked for; the rest does not change.
void outputs_one_by_one() {
  std::mt19937 random(62);
  LossCase all(kSmall, RLCC_F32, random, true);
  CHECK_STATUS(loss_on_device(&all.params), RLCC_OK);
  const std::vector<float> nll = all.nll;
  all.params.lse = nullptr;
  all.nll.assign(all.nll.size(), -7);
  CHECK_STATUS(loss_on_device(&all.params), RLCC_OK);
  CHECK(all.nll == nll);

  LossGradientCase gradients(kSmall, RLCC_BF16, random, true);
  CHECK_STATUS(gradient_on_device(&gradients.params), RLCC_OK);
  const Matrix of_h = gradients.forward.grad_h, of_weight = gradients.grad_weight;
  const std::vector<float> of_bias = gradients.grad_bias;
  for (int kept = 0; kept < 4; ++kept) {
    rlcc_linear_cross_entropy_backward_params p = gradients.params;
    Matrix h(of_h.rows(), of_h.columns(), of_h.dtype(), 1),
        weight(of_weight.rows(), of_weight.columns(), RLCC_BF16, 2);
    std::vector<float> bias(of_bias.size());
    p.grad_h = kept == 0 ? h.data() : nullptr;
    p.grad_weight = kept == 1 ? weight.data() : nullptr;
    p.grad_bias = kept == 2 ? bias.data() : nullptr;
    CHECK_STATUS(gradient_on_device(&p), RLCC_OK);
    CHECK(kept != 0 || h == of_h);
    CHECK(kept != 1 || weight == of_weight);
    CHECK(kept != 2 || bias == of_bias);
  }
}

// Words without bias, rows of NaN, logits of 1e30, labels of probability 0: positions of NaN and Inf are the
// oracle's.
void not_finite() {
  std::mt19937 random(63);
  constexpr LossShape kShape{20, 67, 33};
  for (rlcc_dtype dtype : kDtypes) {
    const std::string name = std::string("not finite ") + dtype_name(dtype);
    LossCase c(kShape, dtype, random, true);
    for (int64_t& label : c.model.labels) label = std::max<int64_t>(label, 0);
    c.model.h.set(1, 3, std::nanf(""));
    c.model.h.set(4, 32, HUGE_VALF);
    c.model.h.set(9, 0, -HUGE_VALF);
    c.model.bias[5] = -HUGE_VALF;
    c.model.labels[7] = 5;
    if (dtype != RLCC_F16) {
      for (int64_t v = 0; v < 67; ++v) c.model.weight.set(v, 2, v == 40 ? 1e15f : 0.0f);
      c.model.h.set(10, 2, 1e15f);
      c.model.labels[10] = 40;
    }
    c.run(name, loss_on_device);
    without_gradient(c, name);
    CHECK(std::isnan(c.nll[1]) && std::isnan(c.nll[4]) && std::isnan(c.nll[9])) << name;
    CHECK(c.nll[7] == HUGE_VALF && std::isfinite(c.lse[7])) << name;
    CHECK(dtype == RLCC_F16 || c.nll[10] == 0) << name << ": " << c.nll[10];

    // All words masked; then one alone is left, of which the model is sure.
    c.model.labels[3] = kIgnored;
    c.model.bias.assign(c.model.bias.size(), -HUGE_VALF);
    for (void* grad_h : {static_cast<void*>(c.grad_h.data()), static_cast<void*>(nullptr)}) {
      rlcc_linear_cross_entropy_params p = c.params;
      p.grad_h = grad_h;
      CHECK_STATUS(loss_on_device(&p), RLCC_OK);
      for (size_t m = 0; m < 20; ++m) {
        CHECK(m == 3 ? c.nll[m] == 0 : std::isnan(c.nll[m])) << name << ": all words masked give " << c.nll[m];
        CHECK(std::isnan(c.lse[m])) << name;
      }
    }
    c.model.bias[11] = -1000;
    c.model.labels.assign(20, 11);
    CHECK_STATUS(loss_on_device(&c.params), RLCC_OK);
    for (size_t m : {0, 3, 7, 15}) {
      CHECK(c.nll[m] == 0 && std::fabs(c.lse[m] + 1000) < 100) << name << " " << c.nll[m] << " " << c.lse[m];
      for (int64_t e = 0; e < 33; ++e) CHECK(c.grad_h.get(static_cast<int64_t>(m), e) == 0) << name;
    }
  }
}

// A loss of 1e-9 and its gradient keep their digits.
void where_the_model_is_sure() {
  std::mt19937 random(69);
  const double others = 299 * std::exp(-26.0), nll = std::log1p(others), share = others / (1 + others);
  for (rlcc_dtype dtype : kDtypes) {
    LossCase c({20, 300, 40, true}, dtype, random, false);
    for (int64_t m = 0; m < 20; ++m) {
      for (int64_t e = 0; e < 40; ++e) c.model.h.set(m, e, e == 0 ? 1.0f : 0.0f);
    }
    for (int64_t v = 0; v < 300; ++v) c.model.weight.set(v, 0, v == 130 ? 8.0f : -18.0f);
    c.model.labels.assign(20, 130);
    for (void* grad_h : {static_cast<void*>(nullptr), c.params.grad_h}) {
      c.params.grad_h = grad_h;
      CHECK_STATUS(loss_on_device(&c.params), RLCC_OK);
      for (float got : c.nll) CHECK(std::fabs(got / nll - 1) < 1e-5) << got << " for " << nll;
    }
    for (int64_t m = 0; m < 20; ++m) {  // (softmax - 1) 8 + (1 - softmax) (-18)
      const double allowed = (2 * rounding(dtype) + 1e-5) * 26 * share + smallest(dtype);
      CHECK(std::fabs(c.grad_h.get(m, 0) + 26 * share) <= allowed) << c.grad_h.get(m, 0);
    }
  }
}

// ignore_index may be a word, and then that word is never a label; a row that is ignored is not looked at.
void ignored() {
  std::mt19937 random(64);
  LossCase c(kSmall, RLCC_BF16, random, false);
  c.params.ignore_index = 4;
  c.model.labels = {4, 3, 4, 4, 0, 18};
  c.model.h.set(2, 7, std::nanf(""));
  CHECK_STATUS(loss_on_device(&c.params), RLCC_OK);
  for (size_t m : {0, 2, 3}) {
    CHECK(c.nll[m] == 0);
    for (int64_t e = 0; e < 21; ++e) CHECK(c.grad_h.get(static_cast<int64_t>(m), e) == 0);
  }
  CHECK(c.nll[1] > 0 && c.nll[4] > 0 && c.nll[5] > 0);
  CHECK(std::isnan(c.lse[2]) && std::isfinite(c.lse[0]));

  // Nothing to choose from.
  c.params.head.vocabulary = 0;
  c.model.labels = {4, 4, 4, 3, 4, 4};
  for (void* grad_h : {c.params.grad_h, static_cast<void*>(nullptr)}) {
    c.params.grad_h = grad_h;
    CHECK_STATUS(loss_on_device(&c.params), RLCC_OK);
    CHECK(c.nll[0] == 0 && std::isnan(c.nll[3]) && c.lse[0] == -HUGE_VALF);
  }
}

// More rows than one turn of the list; few of them count.
void many_rows() {
  std::mt19937 random(70);
  LossCase c({2500, 3, 2}, RLCC_F32, random, true);
  for (size_t m = 0; m < 2500; ++m) {
    if (m % 50 != 7) c.model.labels[m] = kIgnored;
  }
  c.params.lse = nullptr;
  simt::statistics() = {};
  CHECK_STATUS(loss_on_device(&c.params), RLCC_OK);
  const uint64_t barriers = simt::statistics().barriers;  // of 40 blocks of rows one has something to do
  CHECK(barriers < 30) << "rows that do not count cost " << barriers << " barriers";
  rlcc_linear_cross_entropy_params oracle = c.params;
  oracle.nll = c.nll64.data();
  oracle.grad_h = c.grad_h64.data();
  CHECK_STATUS(rlcc_linear_cross_entropy_reference(&oracle), RLCC_OK);
  for (size_t m = 0; m < 2500; ++m) {
    CHECK(std::fabs(c.nll[m] - c.nll64[m]) < 1e-5f) << m;
    for (int64_t e = 0; e < 2; ++e) {
      const int64_t row = static_cast<int64_t>(m);
      CHECK(std::fabs(c.grad_h.get(row, e) - c.grad_h64.get(row, e)) < 1e-5f) << m;
    }
  }
}

// Labels and segments that a host cannot see: NaN where they matter, nowhere else.
void out_of_range() {
  std::mt19937 random(65);
  for (rlcc_dtype dtype : kDtypes) {
    for (const int64_t wrong : {int64_t{19}, int64_t{-1}, INT64_MAX, INT64_MIN, (int64_t{1} << 32) + 2}) {
      if (kSlow && wrong != 19) continue;
      LossCase c(kSmall, dtype, random, true);
      c.model.labels = {3, wrong, kIgnored, 18, 0, 5};
      for (void* grad_h : {c.params.grad_h, static_cast<void*>(nullptr)}) {
        rlcc_linear_cross_entropy_params p = c.params;
        p.grad_h = grad_h;
        CHECK_STATUS(loss_on_device(&p), RLCC_OK);
        for (size_t m = 0; m < 6; ++m) CHECK(std::isnan(c.nll[m]) == (m == 1) && std::isfinite(c.lse[m]));
      }
      for (int64_t e = 0; e < 21; ++e) {
        CHECK(std::isnan(c.grad_h.get(1, e)) && std::isfinite(c.grad_h.get(0, e)) && c.grad_h.get(2, e) == 0);
      }

      LossGradientCase g(kSmall, dtype, random, true);
      g.forward.model.labels[1] = wrong;
      g.grad_nll[1] = 1;
      CHECK_STATUS(gradient_on_device(&g.params), RLCC_OK);
      for (int64_t e = 0; e < 21; ++e) {
        CHECK(std::isnan(g.forward.grad_h.get(1, e)) && std::isfinite(g.forward.grad_h.get(0, e)));
        CHECK(std::isnan(g.grad_weight.get(0, e)) && std::isnan(g.grad_weight.get(18, e)));
      }
      for (float bias : g.grad_bias) CHECK(std::isnan(bias));

      ContrastCase s(kSmall, 2, 3, dtype, random, true);
      s.segments = {0, 1, 2, 0, 1, 2};
      s.weights.assign(6, 1);
      s.model.labels = {3, wrong, 4, 18, 0, 5};
      CHECK_STATUS(contrast_on_device(&s.params), RLCC_OK);
      for (size_t i = 0; i < 6; ++i) CHECK(std::isnan(s.contrast[i]) == (i % 3 == 1)) << s.contrast[i];
      s.model.labels[1] = 1;
      s.segments[4] = wrong < 0 ? 3 : std::max<int64_t>(wrong, 3);
      CHECK_STATUS(contrast_on_device(&s.params), RLCC_OK);
      for (double contrast : s.contrast) CHECK(std::isnan(contrast)) << contrast;
    }
  }
}

// A chunk of the vocabulary after the other, whose maxima lie far apart: sums change their reference both ways.
void moving_reference() {
  std::mt19937 random(66);
  for (rlcc_dtype dtype : kDtypes) {
    for (const float step : {6.0f, -6.0f, 90.0f, -90.0f, 0.0f}) {
      if (kSlow && step != 6.0f) continue;
      LossCase c({19, 2300, 16, true}, dtype, random, true);
      for (size_t v = 0; v < c.model.bias.size(); ++v) c.model.bias[v] += step * static_cast<float>(v / 128);
      for (size_t v = 700; v < 860 && step == 0; ++v) c.model.bias[v] = -HUGE_VALF;
      c.run(std::string("moving reference ") + dtype_name(dtype) + " " + std::to_string(step), loss_on_device);
    }
  }
}

}  // namespace

int main() {
  against_oracle();
  outputs_one_by_one();
  not_finite();
  where_the_model_is_sure();
  ignored();
  many_rows();
  out_of_range();
  moving_reference();
  return report("cross_entropy");
}
