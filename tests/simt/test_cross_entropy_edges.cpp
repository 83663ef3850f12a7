// The CUDA cross entropies at the edge of their memory; and what their entry points refuse.
#include <functional>

#include "../cpp/cross_entropy_bounds.h"
#include "check_launch.h"
#include "cross_entropy_on_device.h"

using namespace restorelcc::test;

namespace {

// A wrong call: its change, and a part of its sentence.
template <class Params>
struct Wrong {
  std::function<void(Params&)> change;
  const char* sentence;
  rlcc_status status = RLCC_INVALID_ARGUMENT;
};

template <class Params>
void refused(const std::vector<Wrong<Params>>& wrongs, const Params& good,
             rlcc_status (*size)(const Params*, size_t*),
             rlcc_status (*op)(const Params*, void*, size_t, void*)) {
  size_t bytes = 0;
  CHECK_STATUS(size(&good, &bytes), RLCC_OK);
  CHECK(bytes > 0);
  Workspace workspace(bytes);
  CHECK_STATUS(op(&good, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(op(&good, workspace.get(), bytes - 1, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(op(&good, static_cast<char*>(workspace.get()) + 8, bytes, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(op(nullptr, workspace.get(), bytes, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(size(nullptr, &bytes), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(size(&good, nullptr), RLCC_INVALID_ARGUMENT);
  const uint64_t launches = simt::statistics().launches;
  for (const Wrong<Params>& wrong : wrongs) {
    Params p = good;
    wrong.change(p);
    for (const rlcc_status status : {size(&p, &bytes), op(&p, workspace.get(), workspace.bytes, nullptr)}) {
      CHECK(status == wrong.status) << status << " for '" << wrong.sentence << "'";
      CHECK(std::string(rlcc_last_error()).find(wrong.sentence) != std::string::npos)
          << "'" << rlcc_last_error() << "' lacks '" << wrong.sentence << "'";
    }
  }
  CHECK(simt::statistics().launches == launches) << "nothing was launched";
}

const rlcc_parallel kNoRun{nullptr, nullptr, 2};

template <class Params>
std::vector<Wrong<Params>> wrong_rows() {
  return {
      {[](Params& p) { p.head.weight = nullptr; }, "head.weight is null"},
      {[](Params& p) { p.head.weight_stride = 20; }, "head.weight has row stride 20"},
      {[](Params& p) { p.head.vocabulary = -1; }, "head.weight has a negative size, [-1, 21]"},
      {[](Params& p) { p.head.dtype = RLCC_I8; }, "head.dtype is 3"},
      {[](Params& p) { p.head.bias = reinterpret_cast<const float*>(2); }, "head.bias is not aligned"},
      {[](Params& p) { p.h = nullptr; }, "h is null"},
      {[](Params& p) { p.h_stride = 20; }, "h has row stride 20"},
      {[](Params& p) { p.h_stride = INT64_MAX; }, "overflows 64 bits"},
      {[](Params& p) { p.rows = -1; }, "negative size"},
      {[](Params& p) { p.labels = nullptr; }, "labels is null"},
      {[](Params& p) { p.rows = (int64_t{1} << 30) + 1; }, "too large", RLCC_UNSUPPORTED},
      {[](Params& p) { p.head.vocabulary = (int64_t{1} << 30) + 1; }, "too large", RLCC_UNSUPPORTED},
  };
}

void refusals() {
  std::mt19937 random(66);
  constexpr LossShape kSmall{6, 19, 21};
  LossCase loss(kSmall, RLCC_F32, random, true);
  loss.params.parallel = &kNoRun;  // not looked at
  auto losses_refused = wrong_rows<rlcc_linear_cross_entropy_params>();
  losses_refused.push_back({[](auto& p) { p.nll = nullptr; }, "nll is null"});
  losses_refused.push_back({[](auto& p) { p.lse = reinterpret_cast<float*>(6); }, "lse is not aligned"});
  losses_refused.push_back({[](auto& p) { p.grad_h_stride = 20; }, "grad_h has row stride 20"});
  refused(losses_refused, loss.params, rlcc_cuda_linear_cross_entropy_workspace,
          rlcc_cuda_linear_cross_entropy);

  LossGradientCase gradient(kSmall, RLCC_F32, random, true);
  auto gradients_refused = wrong_rows<rlcc_linear_cross_entropy_backward_params>();
  gradients_refused.push_back({[](auto& p) { p.lse = nullptr; }, "lse is null"});
  gradients_refused.push_back({[](auto& p) { p.grad_nll = nullptr; }, "grad_nll is null"});
  gradients_refused.push_back({[](auto& p) { p.grad_weight_stride = 20; }, "grad_weight has row stride 20"});
  gradients_refused.push_back(
      {[](auto& p) { p.grad_bias = reinterpret_cast<float*>(6); }, "grad_bias is not aligned"});
  refused(gradients_refused, gradient.params, rlcc_cuda_linear_cross_entropy_backward_workspace,
          rlcc_cuda_linear_cross_entropy_backward);

  ContrastCase contrast(kSmall, 2, 3, RLCC_F32, random, true);
  auto contrasts_refused = wrong_rows<rlcc_head_contrast_params>();
  contrasts_refused.push_back({[](auto& p) { p.groups = -1; }, "h has a negative size, [-1, 6, 21]"});
  contrasts_refused.push_back({[](auto& p) { p.group_stride = -1; }, "h has a negative group stride, -1"});
  contrasts_refused.push_back(
      {[](auto& p) { p.segments = nullptr; }, "segments is null, but segment_count is 3"});
  contrasts_refused.push_back({[](auto& p) { p.segment_count = 0; }, "segment_count is 0, must be at least 1"});
  contrasts_refused.push_back(
      {[](auto& p) { p.segment_count = int64_t{1} << 30; }, "too large", RLCC_UNSUPPORTED});
  contrasts_refused.push_back({[](auto& p) { p.contrast = nullptr; }, "contrast is null"});
  refused(contrasts_refused, contrast.params, rlcc_cuda_head_contrast_workspace, rlcc_cuda_head_contrast);
}

// Nothing, in each direction: outputs that there are have their values all the same.
void nothing() {
  std::mt19937 random(68);
  ContrastCase empty({0, 9, 5}, 3, 2, RLCC_BF16, random, true);
  CHECK_STATUS(contrast_on_device(&empty.params), RLCC_OK);
  for (double contrast : empty.contrast) CHECK(std::isnan(contrast));
  ContrastCase no_groups({4, 9, 5}, 0, 2, RLCC_BF16, random, true);
  CHECK_STATUS(contrast_on_device(&no_groups.params), RLCC_OK);
  LossGradientCase ignored({7, 9, 5}, RLCC_F16, random, true);
  ignored.forward.model.labels.assign(7, kIgnored);
  CHECK_STATUS(gradient_on_device(&ignored.params), RLCC_OK);
  for (int64_t e = 0; e < 5; ++e) {
    for (int64_t m = 0; m < 7; ++m) CHECK(ignored.forward.grad_h.get(m, e) == 0);
    for (int64_t v = 0; v < 9; ++v) CHECK(ignored.grad_weight.get(v, e) == 0);
  }
  for (float bias : ignored.grad_bias) CHECK(bias == 0);
}

}  // namespace

int main() {
  refusals();
  nothing();
  catch_faults();
  if (!kSlow) guarded_shapes("cuda", {loss_on_device, gradient_on_device, contrast_on_device}, true);
  return report("cross_entropy_edges");
}
