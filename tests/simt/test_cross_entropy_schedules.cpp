// The CUDA cross entropies under every order of threads, with lazy and eager copies, on emulated devices of
// several sizes: against the oracle once, then the same bits each time.
#include <string>

#include "../cpp/cross_entropy_cases.h"
#include "check_launch.h"
#include "cross_entropy_on_device.h"

using namespace restorelcc::test;

namespace {

// NaN, where a segment is empty, has bits too.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

struct Outputs {
  std::vector<float> nll, lse, nll_alone, lse_alone, grad_bias;
  std::vector<double> contrast;
  Matrix grad_h, backward_grad_h, grad_weight;
  bool operator==(const Outputs& o) const {
    return same_bits(nll, o.nll) && same_bits(lse, o.lse) && same_bits(nll_alone, o.nll_alone) &&
           same_bits(lse_alone, o.lse_alone) && same_bits(grad_bias, o.grad_bias) &&
           same_bits(contrast, o.contrast) && grad_h == o.grad_h && backward_grad_h == o.backward_grad_h &&
           grad_weight == o.grad_weight;
  }
};

struct Cases {
  LossCase loss;
  LossGradientCase gradient;
  ContrastCase contrast;

  Cases(const LossShape& shape, rlcc_dtype dtype, std::mt19937& random)
      : loss(shape, dtype, random, true),
        gradient(shape, dtype, random, true),
        contrast(shape, 2, 3, dtype, random, true) {}

  Outputs run() {
    CHECK_STATUS(loss_on_device(&loss.params), RLCC_OK);
    Outputs all{loss.nll, loss.lse, {}, {}, {}, {}, loss.grad_h, gradient.forward.grad_h, gradient.grad_weight};
    rlcc_linear_cross_entropy_params alone = loss.params;
    alone.grad_h = nullptr;
    CHECK_STATUS(loss_on_device(&alone), RLCC_OK);
    all.nll_alone = loss.nll;
    all.lse_alone = loss.lse;
    CHECK_STATUS(gradient_on_device(&gradient.params), RLCC_OK);
    CHECK_STATUS(contrast_on_device(&contrast.params), RLCC_OK);
    all.grad_bias = gradient.grad_bias;
    all.contrast = contrast.contrast;
    all.backward_grad_h = gradient.forward.grad_h;
    all.grad_weight = gradient.grad_weight;
    return all;
  }
};

void the_bits_are_the_same(const LossShape& shape, rlcc_dtype dtype, int multiprocessors, int seeds) {
  std::mt19937 random(65);
  Cases cases(shape, dtype, random);
  simt::options().multiprocessors = multiprocessors;
  if (kSlow) {
    cases.run();
    simt::options() = simt::Options{};
    return;
  }
  const std::string name = describe("schedules", shape, dtype);
  cases.loss.run(name, loss_on_device);
  cases.gradient.run(name, gradient_on_device);
  cases.contrast.run(name, contrast_on_device);
  simt::statistics() = {};
  const Outputs expected = cases.run();
  CHECK(simt::statistics().ldmatrix_conflicts == 0) << simt::statistics().ldmatrix_conflicts;
  CHECK((simt::statistics().mma > 0) == (dtype != RLCC_F32));
  under_every_schedule(seeds, [&](const std::string& schedule) {
    simt::options().multiprocessors = multiprocessors;
    CHECK(cases.run() == expected) << name << " " << schedule;
  });
}

}  // namespace

int main() {
  // Two blocks of rows, several tiles and steps; few rows, split over many parts; plain loads instead of
  // copies.
  for (rlcc_dtype dtype : {RLCC_BF16, RLCC_F32}) {
    the_bits_are_the_same({130, 150, 72, true}, dtype, 4, 1);
    the_bits_are_the_same({5, 400, 104, true}, dtype, 40, 2);
  }
  the_bits_are_the_same({21, 140, 41, true}, RLCC_F16, 1, 2);
  the_bits_are_the_same({19, 135, 37, false}, RLCC_BF16, 2, 1);
  return report("cross_entropy_schedules");
}
