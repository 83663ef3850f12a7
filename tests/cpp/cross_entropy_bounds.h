// The cross entropies with every array of a call right before a page without access, then right behind one:
// nothing is padded, so no kernel may touch one byte more, and the bits are those of plain memory.
#pragma once

#include <csignal>
#include <cstdio>

#include "cross_entropy_cases.h"
#include "guarded_memory.h"

namespace restorelcc::test {

inline char g_case[200] = "nothing yet";

// A back-end.
struct LossOps {
  rlcc_status (*loss)(const rlcc_linear_cross_entropy_params*);
  rlcc_status (*gradient)(const rlcc_linear_cross_entropy_backward_params*);
  rlcc_status (*contrast)(const rlcc_head_contrast_params*);
};

// Says which case it was; the test has failed.
inline void faulted(int) {
  constexpr char kBefore[] = "FAILED: touched memory outside of its arrays: ";
  ssize_t ignored = write(STDERR_FILENO, kBefore, sizeof(kBefore) - 1);
  ignored = write(STDERR_FILENO, g_case, std::strlen(g_case));
  ignored = write(STDERR_FILENO, "\n", 1);
  (void)ignored;
  _exit(1);
}

// A matrix with its strides, without the gap behind its last row.
inline Guarded guarded(const Matrix& matrix, Guarded::Side side) {
  const int64_t elements = matrix.rows() == 0 ? 0 : (matrix.rows() - 1) * matrix.stride() + matrix.columns();
  return Guarded(matrix.data(), static_cast<size_t>(elements) * dtype_bytes(matrix.dtype()), side);
}

template <class T>
Guarded guarded(const std::vector<T>& values, Guarded::Side side) {
  return Guarded(values.data(), values.size() * sizeof(T), side);
}

inline bool same(const Guarded& got, const void* expected) {
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

inline void losses(LossCase& plain, Guarded::Side side, const LossOps& ops) {
  const GuardedModel inside(plain.model, side);
  const Guarded nll = guarded(plain.nll, side), lse = guarded(plain.lse, side),
                grad_h = guarded(plain.grad_h, side);
  CHECK_STATUS(ops.loss(&plain.params), RLCC_OK);
  rlcc_linear_cross_entropy_params p = plain.params;
  p.head = inside.head;
  p.h = inside.h.as<void>();
  p.labels = inside.labels.as<int64_t>();
  p.nll = nll.as<float>();
  p.lse = lse.as<float>();
  p.grad_h = grad_h.as<void>();
  CHECK_STATUS(ops.loss(&p), RLCC_OK);
  CHECK(same(nll, plain.nll.data()) && same(lse, plain.lse.data()) && same(grad_h, plain.grad_h.data()))
      << g_case;
}

inline void gradients(LossGradientCase& plain, Guarded::Side side, const LossOps& ops) {
  const GuardedModel inside(plain.forward.model, side);
  const Guarded lse = guarded(plain.forward.lse, side), grad_nll = guarded(plain.grad_nll, side);
  const Guarded grad_h = guarded(plain.forward.grad_h, side), grad_weight = guarded(plain.grad_weight, side);
  const Guarded grad_bias = guarded(plain.grad_bias, side);
  CHECK_STATUS(ops.gradient(&plain.params), RLCC_OK);
  rlcc_linear_cross_entropy_backward_params p = plain.params;
  p.head = inside.head;
  p.h = inside.h.as<void>();
  p.labels = inside.labels.as<int64_t>();
  p.lse = lse.as<float>();
  p.grad_nll = grad_nll.as<float>();
  p.grad_h = grad_h.as<void>();
  p.grad_weight = grad_weight.as<void>();
  p.grad_bias = grad_bias.as<float>();
  CHECK_STATUS(ops.gradient(&p), RLCC_OK);
  CHECK(same(grad_h, plain.forward.grad_h.data())) << g_case;
  CHECK(same(grad_weight, plain.grad_weight.data()) && same(grad_bias, plain.grad_bias.data())) << g_case;
}

inline void contrasts(ContrastCase& plain, Guarded::Side side, const LossOps& ops) {
  const GuardedModel inside(plain.model, side);
  const Guarded base_nll = guarded(plain.base_nll, side), weights = guarded(plain.weights, side);
  const Guarded segments = guarded(plain.segments, side), contrast = guarded(plain.contrast, side);
  CHECK_STATUS(ops.contrast(&plain.params), RLCC_OK);
  rlcc_head_contrast_params p = plain.params;
  p.head = inside.head;
  p.h = inside.h.as<void>();
  p.labels = inside.labels.as<int64_t>();
  p.base_nll = base_nll.as<float>();
  if (p.segments != nullptr) p.segments = segments.as<int64_t>();
  if (p.weights != nullptr) p.weights = weights.as<float>();
  p.contrast = contrast.as<double>();
  CHECK_STATUS(ops.contrast(&p), RLCC_OK);
  CHECK(same(contrast, plain.contrast.data())) << g_case;
}

// Each shape at both edges; or, where that takes long, at one edge after the other, and without fp16, whose
// bytes are bf16's.
inline void guarded_shapes(const char* name, const LossOps& ops, bool thin = false) {
  std::mt19937 random(71);
  int turn = 0;
  for (rlcc_dtype dtype : kDtypes) {
    if (thin && dtype == RLCC_F16) continue;
    for (LossShape shape : kLossShapes) {
      for (const Guarded::Side side : {Guarded::kEnd, Guarded::kBegin}) {
        const bool biased = turn++ % 2 == 0;
        if (thin && (side == Guarded::kEnd) != (turn / 2 % 2 == 0)) continue;
        shape.wide = thin && shape.columns % 2 == 0;
        std::snprintf(g_case, sizeof(g_case), "%s", describe(name, shape, dtype).c_str());
        LossCase loss(shape, dtype, random, biased);
        losses(loss, side, ops);
        LossGradientCase gradient(shape, dtype, random, biased);
        gradients(gradient, side, ops);
        ContrastCase contrast(shape, 1 + turn % 3, 1 + turn % 4, dtype, random, biased);
        contrasts(contrast, side, ops);
      }
    }
  }
}

inline void catch_faults() {
  std::signal(SIGSEGV, faulted);
  std::signal(SIGBUS, faulted);
}

}  // namespace restorelcc::test
