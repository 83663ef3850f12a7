// y = x Wᵀ + P + bias + residual, for the matrices of modules whose outputs stand side by side, such as q, k
// and v.
//
// W is one packed weight, and the product one call, where the model has joined the modules; otherwise a call
// for each of them, packed or dense, whose outputs stand where they would.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "huge_pages.h"
#include "packed_model.h"

namespace decode {

// Rows of activations: [rows, stride] of dtype.
struct Rows {
  void* data;
  int64_t stride;
  rlcc_dtype dtype;
};

class Projection {
 public:
  struct Module {
    std::string name;
    int64_t outputs;
  };

  // Biases are read where `biased`. Throws Refusal where a matrix is missing or has other sizes.
  Projection(const PackedModel& model, const std::vector<Module>& modules, int64_t inputs, bool biased);

  // P = c Wᵀ, computed once; c [inputs]. x is never rounded for it.
  void compensate_inputs(const float* c);
  // P = c; c [outputs].
  void compensate_outputs(const float* c);

  // The weights are used in a copy there from now on. (Their files may be closed then.)
  void move_to(HugePages* pages);

  int64_t outputs() const { return outputs_; }
  // residual: null, or rows like y (and y may be residual).
  void run(const Rows& x, int64_t rows, const Rows& y, const void* residual) const;

 private:
  struct Part {
    bool packed;
    rlcc_packed_weight weight;
    rlcc_tensor dense;
    int64_t first, outputs;  // of y
  };
  void run_part(const Part& part, const Rows& x, int64_t rows, const Rows& y, const void* residual,
                bool bare) const;

  int64_t inputs_, outputs_ = 0;
  std::vector<Part> parts_;
  std::vector<float> bias_;       // [outputs], or empty
  std::vector<float> comp_rows_;  // P [outputs], or empty
};

}  // namespace decode
