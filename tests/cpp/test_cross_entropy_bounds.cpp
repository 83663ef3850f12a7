// The cross entropies with every array of a call right before a page without access, then right behind one: nothing is
// padded, so no kernel may touch one byte more, and the bits are those of plain memory.
#include "cross_entropy_cases.h"

#if defined(__unix__) || defined(__APPLE__)

#include <csignal>
#include <cstdio>

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

// A matrix with its strides, without the gap behind its last row.
Guarded guarded(const Matrix& matrix, Guarded::Side side) {
  const int64_t elements =
      matrix.rows() == 0 ? 0 : (matrix.rows() - 1) * matrix.stride() + matrix.columns();
  return Guarded(matrix.data(), static_cast<size_t>(elements) * dtype_bytes(matrix.dtype()), side);
}

template <class T>
Guarded guarded(const std::vector<T>& values, Guarded::Side side) {
  return Guarded(values.data(), values.size() * sizeof(T), side);
}

bool same(const Guarded& got, const void* expected) {
  return got.bytes() == 0 || std::memcmp(got.as<char>(), expected, got.bytes()) == 0;
}

// A language head between the pages.
struct GuardedModel {
  Guarded h, weight, bias, labels;
  rlcc_language_head head;

  GuardedModel(const LanguageModel& model, Guarded::Side side)
      : h(guarded(model.h, side)),
        weight(guarded(model.weight, side)),
        bias(guarded(model.bias, side)),
        labels(guarded(model.labels, side)),
        head(model.head) {
    head.weight = weight.as<void>();
    if (head.bias != nullptr) head.bias = bias.as<float>();
  }
};

void losses(LossCase& plain, Guarded::Side side) {
  const GuardedModel inside(plain.model, side);
  const Guarded nll = guarded(plain.nll, side), lse = guarded(plain.lse, side), grad_h = guarded(plain.grad_h, side);
  CHECK_STATUS(rlcc_linear_cross_entropy(&plain.params), RLCC_OK);
  rlcc_linear_cross_entropy_params p = plain.params;
  p.head = inside.head;
  p.h = inside.h.as<void>();
  p.labels = inside.labels.as<int64_t>();
  p.nll = nll.as<float>();
  p.lse = lse.as<float>();
  p.grad_h = grad_h.as<void>();
  CHECK_STATUS(rlcc_linear_cross_entropy(&p), RLCC_OK);
  CHECK(same(nll, plain.nll.data()) && same(lse, plain.lse.data()) && same(grad_h, plain.grad_h.data())) << g_case;
}

void gradients(LossGradientCase& plain, Guarded::Side side) {
  const GuardedModel inside(plain.forward.model, side);
  const Guarded lse = guarded(plain.forward.lse, side), grad_nll = guarded(plain.grad_nll, side);
  const Guarded grad_h = guarded(plain.forward.grad_h, side), grad_weight = guarded(plain.grad_weight, side);
  const Guarded grad_bias = guarded(plain.grad_bias, side);
  CHECK_STATUS(rlcc_linear_cross_entropy_backward(&plain.params), RLCC_OK);
  rlcc_linear_cross_entropy_backward_params p = plain.params;
  p.head = inside.head;
  p.h = inside.h.as<void>();
  p.labels = inside.labels.as<int64_t>();
  p.lse = lse.as<float>();
  p.grad_nll = grad_nll.as<float>();
  p.grad_h = grad_h.as<void>();
  p.grad_weight = grad_weight.as<void>();
  p.grad_bias = grad_bias.as<float>();
  CHECK_STATUS(rlcc_linear_cross_entropy_backward(&p), RLCC_OK);
  CHECK(same(grad_h, plain.forward.grad_h.data())) << g_case;
  CHECK(same(grad_weight, plain.grad_weight.data()) && same(grad_bias, plain.grad_bias.data())) << g_case;
}

void contrasts(ContrastCase& plain, Guarded::Side side) {
  const GuardedModel inside(plain.model, side);
  const Guarded base_nll = guarded(plain.base_nll, side), weights = guarded(plain.weights, side);
  const Guarded segments = guarded(plain.segments, side), contrast = guarded(plain.contrast, side);
  CHECK_STATUS(rlcc_head_contrast(&plain.params), RLCC_OK);
  rlcc_head_contrast_params p = plain.params;
  p.head = inside.head;
  p.h = inside.h.as<void>();
  p.labels = inside.labels.as<int64_t>();
  p.base_nll = base_nll.as<float>();
  if (p.segments != nullptr) p.segments = segments.as<int64_t>();
  if (p.weights != nullptr) p.weights = weights.as<float>();
  p.contrast = contrast.as<double>();
  CHECK_STATUS(rlcc_head_contrast(&p), RLCC_OK);
  CHECK(same(contrast, plain.contrast.data())) << g_case;
}

void shapes(const char* isa) {
  std::mt19937 random(71);
  int turn = 0;
  for (rlcc_dtype dtype : kDtypes) {
    for (const LossShape& shape : kLossShapes) {
      for (const Guarded::Side side : {Guarded::kEnd, Guarded::kBegin}) {
        const bool biased = turn++ % 2 == 0;
        std::snprintf(g_case, sizeof(g_case), "%s", describe(isa, shape, dtype).c_str());
        LossCase loss(shape, dtype, random, biased);
        losses(loss, side);
        LossGradientCase gradient(shape, dtype, random, biased);
        gradients(gradient, side);
        ContrastCase contrast(shape, 1 + turn % 3, 1 + turn % 4, dtype, random, biased);
        contrasts(contrast, side);
      }
    }
  }
}

}  // namespace

int main() {
  std::signal(SIGSEGV, faulted);
  std::signal(SIGBUS, faulted);
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    shapes(isa);
  }
  return report("cross_entropy_bounds");
}

#else

int main() {
  restorelcc::test::skip("pages without access need mmap and mprotect, which this system lacks");
  return restorelcc::test::report("cross_entropy_bounds");
}

#endif
