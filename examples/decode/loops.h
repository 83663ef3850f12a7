// The arithmetic between the projections: norms, rotary positions, attention, SwiGLU, the largest logit.
//
// loops.inl is compiled once for each instruction set of the CPU family, with flags of its own; loops_for()
// takes the best one that the library itself uses (rlcc_isa(), so RLCC_ISA forces these too). Everything is
// computed in fp32; activations and the cache are stored as fp32 or bf16.
#pragma once

#include <cstdint>

#include "restorelcc/params.h"

namespace decode {

struct Bf16 {
  uint16_t bits;
};

constexpr int64_t kBlock = 64;         // positions whose keys stand side by side
constexpr int64_t kMostHeadDim = 512;  // sums of one head are kept on the stack

// Keys and values of one layer and one key-value head. Keys are [capacity / kBlock, D, kBlock], so that the
// scores of kBlock positions are sums side by side; values are [capacity, padded_dim], zeros behind D.
struct HeadCache {
  void* keys;
  void* values;
};

struct HeadShape {
  int64_t dim;         // D, even
  int64_t padded_dim;  // D rounded up to a multiple of 16
};

// Names say what is computed; `n` counts elements. x, y, z are of the activations' type unless they are floats.
struct Loops {
  const char* isa;
  // y[i] = x[i] / sqrt(mean(x²) + eps) · weight[i]
  void (*rms_norm)(const void* x, const float* weight, float eps, int64_t n, void* y);
  void (*rms_norm_to_float)(const void* x, const float* weight, float eps, int64_t n, float* y);
  // y [D] = scale · (x cos − rotated sin, ...): both halves of a head turned by the angles of one position
  void (*rotate_query)(const void* x, const float* cosines, const float* sines, int64_t dim, float scale,
                       float* y);
  // The same of a key, which goes to `position` of the cache with its value.
  void (*store_key_value)(const void* key, const void* value, const float* cosines, const float* sines,
                          HeadShape shape, int64_t position, HeadCache cache);
  // z [D] = Σ_s softmax_s(q · k_s) v_s over the first `positions`; q is scaled already
  void (*attend)(const float* q, HeadCache cache, HeadShape shape, int64_t positions, void* z);
  // y[i] = silu(gate[i]) · up[i]
  void (*swiglu)(const void* gate, const void* up, int64_t n, void* y);
  // The first index of the largest; −1 where one is not finite, or there is none.
  int64_t (*largest)(const float* logits, int64_t n);
};

// activations and cache: RLCC_F32 or RLCC_BF16.
const Loops& loops_for(rlcc_dtype activations, rlcc_dtype cache);

}  // namespace decode
