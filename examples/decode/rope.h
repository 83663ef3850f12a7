// Rotary positions: cos and sin of position · inverse frequency, as stock transformers scale the frequencies.
#pragma once

#include <cstdint>
#include <vector>

#include "packed_model.h"

namespace decode {

class Rope {
 public:
  // For positions [0, positions). Types "default", "linear" and "llama3"; throws Refusal for others.
  Rope(const rlcc_model_config& config, int64_t positions);

  const float* cosines(int64_t position) const { return cosines_.data() + position * half_; }  // [D / 2]
  const float* sines(int64_t position) const { return sines_.data() + position * half_; }      // [D / 2]

 private:
  int64_t half_;
  std::vector<float> cosines_, sines_;  // [positions, D / 2]
};

// [D / 2]
std::vector<float> inverse_frequencies(const rlcc_model_config& config);

}  // namespace decode
