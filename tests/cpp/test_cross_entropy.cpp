// linear_cross_entropy, its gradient and head_contrast against the float64 oracle on every instruction set; the
// same bits for any number of threads; what is refused leaves the outputs as they were.
#include <functional>
#include <string>
#include <thread>

#include "cross_entropy_cases.h"

using namespace restorelcc::test;

namespace {

constexpr LossShape kSmall{6, 19, 21};

void against_oracle(const char* isa) {
  std::mt19937 random(61);
  int turn = 0;
  for (rlcc_dtype dtype : kDtypes) {
    for (const LossShape& shape : kLossShapes) {
      const std::string name = describe(isa, shape, dtype);
      const bool biased = turn++ % 2 == 0;
      LossCase(shape, dtype, random, biased).run(name);
      LossGradientCase(shape, dtype, random, !biased).run(name);
      ContrastCase(shape, 1 + turn % 3, 1 + turn % 4, dtype, random, biased).run(name);
    }
  }
}

// What is null is not asked for; the rest does not change.
void outputs_one_by_one(const char* isa) {
  std::mt19937 random(62);
  LossCase all(kSmall, RLCC_F32, random, true);
  CHECK_STATUS(rlcc_linear_cross_entropy(&all.params), RLCC_OK);
  const std::vector<float> nll = all.nll;
  all.params.lse = nullptr;
  all.params.grad_h = nullptr;
  all.nll.assign(all.nll.size(), -7);
  CHECK_STATUS(rlcc_linear_cross_entropy(&all.params), RLCC_OK);
  CHECK(all.nll == nll) << isa;

  LossGradientCase gradients(kSmall, RLCC_BF16, random, true);
  CHECK_STATUS(rlcc_linear_cross_entropy_backward(&gradients.params), RLCC_OK);
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
    CHECK_STATUS(rlcc_linear_cross_entropy_backward(&p), RLCC_OK);
    CHECK(kept != 0 || h == of_h) << isa;
    CHECK(kept != 1 || weight == of_weight) << isa;
    CHECK(kept != 2 || bias == of_bias) << isa;
  }
}

// Words without bias, rows of NaN, logits of 1e30, labels of probability 0: positions of NaN and Inf are the
// oracle's.
void not_finite(const char* isa) {
  std::mt19937 random(63);
  constexpr LossShape kShape{12, 67, 33};
  for (rlcc_dtype dtype : kDtypes) {
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
    c.run(std::string(isa) + " not finite " + dtype_name(dtype));
    CHECK(std::isnan(c.nll[1]) && std::isnan(c.nll[4]) && std::isnan(c.nll[9])) << isa;
    CHECK(c.nll[7] == HUGE_VALF && std::isfinite(c.lse[7])) << isa;
    CHECK(dtype == RLCC_F16 || c.nll[10] == 0) << isa << ": " << c.nll[10];

    c.model.bias.assign(c.model.bias.size(), -HUGE_VALF);
    CHECK_STATUS(rlcc_linear_cross_entropy(&c.params), RLCC_OK);
    for (float loss : c.nll) CHECK(std::isnan(loss)) << isa << ": all words masked give " << loss;
    c.model.labels.assign(c.model.labels.size(), c.params.ignore_index);
    CHECK_STATUS(rlcc_linear_cross_entropy(&c.params), RLCC_OK);
    for (float lse : c.lse) CHECK(std::isnan(lse)) << isa << ": and rows that are ignored an lse of " << lse;
  }
}

// ignore_index may be a word, and then that word is never a label; a row that is ignored is not looked at.
void ignored(const char* isa) {
  std::mt19937 random(64);
  LossCase c(kSmall, RLCC_BF16, random, false);
  c.params.ignore_index = 4;
  c.model.labels = {4, 3, 4, 4, 0, 18};
  c.model.h.set(2, 7, std::nanf(""));
  CHECK_STATUS(rlcc_linear_cross_entropy(&c.params), RLCC_OK);
  for (size_t m : {0, 2, 3}) {
    CHECK(c.nll[m] == 0) << isa;
    for (int64_t e = 0; e < 21; ++e) CHECK(c.grad_h.get(static_cast<int64_t>(m), e) == 0) << isa;
  }
  CHECK(c.nll[1] > 0 && c.nll[4] > 0 && c.nll[5] > 0) << isa;
  CHECK(std::isnan(c.lse[2]) && std::isfinite(c.lse[0])) << isa;

  c.params.head.vocabulary = 0;  // nothing to choose from is fine where nobody chooses
  c.model.labels.assign(6, 4);
  CHECK_STATUS(rlcc_linear_cross_entropy(&c.params), RLCC_OK);
  c.model.labels[3] = 0;
  CHECK_STATUS(rlcc_linear_cross_entropy(&c.params), RLCC_INVALID_ARGUMENT);
}

void run_on_new_threads(void*, int64_t count, int64_t grain, rlcc_task task, void* context) {
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < count; begin += grain) {
    threads.emplace_back(task, context, begin, std::min(begin + grain, count));
  }
  for (std::thread& thread : threads) thread.join();
}

void run_backwards(void*, int64_t count, int64_t, rlcc_task task, void* context) {
  for (int64_t i = count - 1; i >= 0; --i) task(context, i, i + 1);
}

struct Bits {
  std::vector<float> nll, lse, grad_bias;
  std::vector<double> contrast;
  Matrix grad_h, backward_grad_h, grad_weight;
  bool operator==(const Bits& o) const {
    return nll == o.nll && lse == o.lse && grad_bias == o.grad_bias && contrast == o.contrast &&
           grad_h == o.grad_h && backward_grad_h == o.backward_grad_h && grad_weight == o.grad_weight;
  }
};

void threads(const char* isa, rlcc_dtype dtype) {
  std::mt19937 random(65);
  constexpr LossShape kShape{45, 700, 70};
  LossCase loss(kShape, dtype, random, true);
  LossGradientCase gradient(kShape, dtype, random, true);
  ContrastCase contrast({45, 300, 33}, 3, 1, dtype, random, false);
  const auto run = [&](const rlcc_parallel* parallel) {
    loss.params.parallel = gradient.params.parallel = contrast.params.parallel = parallel;
    CHECK_STATUS(rlcc_linear_cross_entropy(&loss.params), RLCC_OK);
    CHECK_STATUS(rlcc_linear_cross_entropy_backward(&gradient.params), RLCC_OK);
    CHECK_STATUS(rlcc_head_contrast(&contrast.params), RLCC_OK);
    return Bits{loss.nll,
                loss.lse,
                gradient.grad_bias,
                contrast.contrast,
                loss.grad_h,
                gradient.forward.grad_h,
                gradient.grad_weight};
  };
  CHECK_STATUS(rlcc_set_num_threads(1), RLCC_OK);
  const Bits expected = run(nullptr);
  for (int32_t count : {1, 2, 3, 7}) {
    CHECK_STATUS(rlcc_set_num_threads(count), RLCC_OK);
    CHECK(run(nullptr) == expected) << isa << " " << count << " threads";
  }
  const rlcc_parallel new_threads{run_on_new_threads, nullptr, 3}, backwards{run_backwards, nullptr, 5};
  CHECK(run(&new_threads) == expected) << isa;
  CHECK(run(&backwards) == expected) << isa;
}

// A wrong call: its change, and a part of its sentence.
template <class Params>
struct Wrong {
  std::function<void(Params&)> change;
  const char* sentence;
};

template <class Params>
void refused(const Wrong<Params>& wrong, const Params& good, rlcc_status (*op)(const Params*),
             rlcc_status (*reference)(const Params*)) {
  for (const auto& entry : {op, reference}) {
    Params p = good;
    wrong.change(p);
    CHECK_STATUS(entry(&p), RLCC_INVALID_ARGUMENT);
    CHECK(std::string(rlcc_last_error()).find(wrong.sentence) != std::string::npos)
        << "'" << rlcc_last_error() << "' lacks '" << wrong.sentence << "'";
    CHECK_STATUS(entry(nullptr), RLCC_INVALID_ARGUMENT);
  }
}

const rlcc_parallel kNoRun{nullptr, nullptr, 2};

template <class Params>
std::vector<Wrong<Params>> wrong_rows() {
  static const int64_t high[] = {0, 1, 19, 3, 4, 5}, low[] = {0, 1, 2, -1, 4, 5};
  return {
      {[](Params& p) { p.head.weight = nullptr; }, "head.weight is null"},
      {[](Params& p) { p.head.weight_stride = 20; }, "head.weight has row stride 20"},
      {[](Params& p) { p.head.weight_stride = INT64_MAX; }, "overflows 64 bits"},
      {[](Params& p) { p.head.vocabulary = -1; }, "head.weight has a negative size, [-1, 21]"},
      {[](Params& p) { p.head.columns = -1; }, "head.weight has a negative size, [19, -1]"},
      {[](Params& p) { p.head.dtype = RLCC_I8; }, "head.dtype is 3"},
      {[](Params& p) { p.head.dtype = 9; }, "head.dtype is 9"},
      {[](Params& p) { p.head.bias = reinterpret_cast<const float*>(2); }, "head.bias is not aligned"},
      {[](Params& p) { p.h = nullptr; }, "h is null"},
      {[](Params& p) { p.h = reinterpret_cast<const void*>(3); }, "h is not aligned"},
      {[](Params& p) { p.h_stride = 20; }, "h has row stride 20"},
      {[](Params& p) { p.h_stride = INT64_MAX; }, "overflows 64 bits"},
      {[](Params& p) { p.rows = -1; }, "negative size"},
      {[](Params& p) { p.labels = nullptr; }, "labels is null"},
      {[](Params& p) { p.labels = high; },
       "labels[2] is 19, must be in [0, 19), the vocabulary, or ignore_index (-100)"},
      {[](Params& p) { p.labels = low; }, "labels[3] is -1"},
      {[](Params& p) {
         p.ignore_index = 7;
         p.labels = low;
       },
       "labels[3] is -1"},
      {[](Params& p) { p.parallel = &kNoRun; }, "parallel.run is null"},
  };
}

void refused_losses() {
  std::mt19937 random(66);
  LossCase c(kSmall, RLCC_F32, random, true);
  using Params = rlcc_linear_cross_entropy_params;
  std::vector<Wrong<Params>> wrongs = wrong_rows<Params>();
  wrongs.push_back({[](Params& p) { p.nll = nullptr; }, "nll is null"});
  wrongs.push_back({[](Params& p) { p.lse = reinterpret_cast<float*>(6); }, "lse is not aligned"});
  wrongs.push_back({[](Params& p) { p.grad_h_stride = 20; }, "grad_h has row stride 20"});
  for (const Wrong<Params>& wrong : wrongs) {
    refused(wrong, c.params, rlcc_linear_cross_entropy, rlcc_linear_cross_entropy_reference);
  }
  CHECK(c.nll == c.nll64 && c.lse == c.lse64 && c.grad_h == c.grad_h64);
}

void refused_gradients() {
  std::mt19937 random(67);
  LossGradientCase c(kSmall, RLCC_F32, random, true);
  const Matrix of_h = c.forward.grad_h;
  using Params = rlcc_linear_cross_entropy_backward_params;
  std::vector<Wrong<Params>> wrongs = wrong_rows<Params>();
  wrongs.push_back({[](Params& p) { p.lse = nullptr; }, "lse is null"});
  wrongs.push_back({[](Params& p) { p.grad_nll = nullptr; }, "grad_nll is null"});
  wrongs.push_back({[](Params& p) { p.grad_h_stride = 20; }, "grad_h has row stride 20"});
  wrongs.push_back({[](Params& p) { p.grad_weight_stride = 20; }, "grad_weight has row stride 20"});
  wrongs.push_back({[](Params& p) { p.grad_bias = reinterpret_cast<float*>(6); }, "grad_bias is not aligned"});
  for (const Wrong<Params>& wrong : wrongs) {
    refused(wrong, c.params, rlcc_linear_cross_entropy_backward, rlcc_linear_cross_entropy_backward_reference);
  }
  CHECK(c.forward.grad_h == of_h && c.grad_weight == c.grad_weight64 && c.grad_bias == c.grad_bias64);
}

void refused_contrasts() {
  std::mt19937 random(68);
  ContrastCase c(kSmall, 2, 3, RLCC_F32, random, true);
  static const int64_t beyond[] = {0, 1, 2, -1, 3, 0};
  static const float negative[] = {1, 1, -1, 1, 1, 1}, endless[] = {1, 1, 1, 1, 1, HUGE_VALF};
  static const float undefined[] = {std::nanf(""), 1, 1, 1, 1, 1};
  using Params = rlcc_head_contrast_params;
  std::vector<Wrong<Params>> wrongs = wrong_rows<Params>();
  wrongs.push_back({[](Params& p) { p.groups = -1; }, "h has a negative size, [-1, 6, 21]"});
  wrongs.push_back({[](Params& p) { p.groups = INT64_MAX; }, "overflows 64 bits"});
  wrongs.push_back({[](Params& p) { p.group_stride = -1; }, "h has a negative group stride, -1"});
  wrongs.push_back({[](Params& p) { p.group_stride = INT64_MAX; }, "overflows 64 bits"});
  wrongs.push_back({[](Params& p) { p.base_nll = nullptr; }, "base_nll is null"});
  wrongs.push_back({[](Params& p) { p.segments = nullptr; }, "segments is null, but segment_count is 3"});
  wrongs.push_back(
      {[](Params& p) { p.segments = beyond; }, "segments[4] is 3, must be below segment_count, 3"});
  wrongs.push_back({[](Params& p) { p.segment_count = 0; }, "segment_count is 0, must be at least 1"});
  wrongs.push_back(
      {[](Params& p) { p.segment_count = INT64_MAX; }, "contrast of [2, 9223372036854775807] overflows"});
  wrongs.push_back(
      {[](Params& p) { p.weights = negative; }, "weights[2] is -1, must be finite and at least 0"});
  wrongs.push_back({[](Params& p) { p.weights = endless; }, "weights[5] is inf"});
  wrongs.push_back({[](Params& p) { p.weights = undefined; }, "weights[0] is nan"});
  wrongs.push_back({[](Params& p) { p.contrast = nullptr; }, "contrast is null"});
  for (const Wrong<Params>& wrong : wrongs) {
    refused(wrong, c.params, rlcc_head_contrast, rlcc_head_contrast_reference);
  }
  CHECK(c.contrast == c.contrast64);
}

}  // namespace

int main() {
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    against_oracle(isa);
    outputs_one_by_one(isa);
    not_finite(isa);
    ignored(isa);
    for (rlcc_dtype dtype : kDtypes) threads(isa, dtype);
  }
  refused_losses();
  refused_gradients();
  refused_contrasts();
  return report("cross_entropy");
}
