// The loops of loops.h for one instruction set; the including file defines DECODE_LOOPS, the name of the table,
// and DECODE_ISA. Where a sum needs an order it is lane by lane, so bits differ between instruction sets but
// depend on nothing else.
#include "lanes.h"

namespace decode {
namespace {

template <class From, class To>
inline void rms_norm_of(const From* x, const float* weight, float eps, int64_t n, To* y) {
  Lanes squares[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int c = 0; c < 4; ++c) {
      const Lanes v = load(x + i + c * kLanes);
      squares[c] += v * v;
    }
  }
  for (; i < n; i += kLanes) {
    const Lanes v = load_part(x + i, n - i);
    squares[0] += v * v;
  }
  const float mean = sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / static_cast<float>(n);
  const float factor = 1.0f / __builtin_sqrtf(mean + eps);
  for (i = 0; i < n; ++i) narrow(widen(x[i]) * factor * weight[i], y + i);
}

template <class A>
void rms_norm(const void* x, const float* weight, float eps, int64_t n, void* y) {
  rms_norm_of(static_cast<const A*>(x), weight, eps, n, static_cast<A*>(y));
}
template <class A>
void rms_norm_to_float(const void* x, const float* weight, float eps, int64_t n, float* y) {
  rms_norm_of(static_cast<const A*>(x), weight, eps, n, y);
}

template <class A>
inline void rotate(const A* x, const float* cosines, const float* sines, int64_t dim, float scale,
                   float* __restrict y) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = widen(x[i]), second = widen(x[i + half]);
    y[i] = (first * cosines[i] - second * sines[i]) * scale;
    y[i + half] = (second * cosines[i] + first * sines[i]) * scale;
  }
}

template <class A>
void rotate_query(const void* x, const float* cosines, const float* sines, int64_t dim, float scale, float* y) {
  rotate(static_cast<const A*>(x), cosines, sines, dim, scale, y);
}

template <class A, class C>
void store_key_value(const void* key, const void* value, const float* cosines, const float* sines,
                     HeadShape shape, int64_t position, HeadCache cache) {
  float rotated[kMostHeadDim];
  rotate(static_cast<const A*>(key), cosines, sines, shape.dim, 1.0f, rotated);
  C* keys = static_cast<C*>(cache.keys) + position / kBlock * kBlock * shape.dim + position % kBlock;
  for (int64_t d = 0; d < shape.dim; ++d) narrow(rotated[d], keys + d * kBlock);
  C* values = static_cast<C*>(cache.values) + position * shape.padded_dim;
  for (int64_t d = 0; d < shape.dim; ++d) narrow(widen(static_cast<const A*>(value)[d]), values + d);
}

// scores[kBlock] = q · keys [D, kBlock]
template <class C>
inline void block_scores(const float* q, const C* keys, int64_t dim, float* scores) {
  constexpr int kTogether = kBlock / kLanes < 8 ? kBlock / kLanes : 8;  // sums in registers
  for (int64_t first = 0; first < kBlock; first += kTogether * kLanes) {
    Lanes sums[kTogether] = {};
    for (int64_t d = 0; d < dim; ++d) {
      const Lanes q_d = all(q[d]);
#pragma GCC unroll 8
      for (int v = 0; v < kTogether; ++v) sums[v] += q_d * load(keys + d * kBlock + first + v * kLanes);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kTogether; ++v) store(scores + first + v * kLanes, sums[v]);
  }
}

// out[Vectors of lanes] = out · shrink + Σ_s weights[s] values[s]
template <int Vectors, class C>
inline void add_values(const C* values, int64_t stride, const float* weights, int64_t count, float shrink,
                       float* out) {
  Lanes sums[Vectors];
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) sums[v] = load(out + v * kLanes) * shrink;
  for (int64_t s = 0; s < count; ++s, values += stride) {
    const Lanes weight = all(weights[s]);
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sums[v] += weight * load(values + v * kLanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < Vectors; ++v) store(out + v * kLanes, sums[v]);
}

// A block of positions after the other; what was summed before shrinks when a larger score comes. So no memory
// is needed that grows with the text.
template <class A, class C>
void attend(const float* q, HeadCache cache, HeadShape shape, int64_t positions, void* z) {
  constexpr float kNothing = -__builtin_huge_valf();
  constexpr int kTogether = 64 / kLanes < 8 ? 64 / kLanes : 8;
  alignas(64) float scores[kBlock];
  alignas(64) float out[kMostHeadDim];
  std::memset(out, 0, static_cast<size_t>(shape.padded_dim) * sizeof(float));
  float most = kNothing, total = 0;
  for (int64_t first = 0; first < positions; first += kBlock) {
    const int64_t count = positions - first < kBlock ? positions - first : kBlock;
    block_scores(q, static_cast<const C*>(cache.keys) + first * shape.dim, shape.dim, scores);
    for (int64_t s = count; s < kBlock; ++s) scores[s] = kNothing;
    Lanes most_lanes = all(most);
    for (int64_t s = 0; s < kBlock; s += kLanes) most_lanes = larger(most_lanes, load(scores + s));
    const float now = largest_lane(most_lanes);
    Lanes sums = {};
    for (int64_t s = 0; s < kBlock; s += kLanes) {
      const Lanes e = exponential(load(scores + s) - now);
      store(scores + s, e);
      sums += e;
    }
    const float shrink = exponential(all(most - now))[0];
    total = total * shrink + sum(sums);
    most = now;
    const C* values = static_cast<const C*>(cache.values) + first * shape.padded_dim;
    int64_t d = 0;
    for (; d + kTogether * kLanes <= shape.padded_dim; d += kTogether * kLanes) {
      add_values<kTogether>(values + d, shape.padded_dim, scores, count, shrink, out + d);
    }
    for (; d < shape.padded_dim; d += kLanes) {
      add_values<1>(values + d, shape.padded_dim, scores, count, shrink, out + d);
    }
  }
  const float factor = 1.0f / total;
  for (int64_t d = 0; d < shape.dim; ++d) narrow(out[d] * factor, static_cast<A*>(z) + d);
}

template <class A>
void swiglu(const void* gate, const void* up, int64_t n, void* y) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes g = load_part(static_cast<const A*>(gate) + i, n - i);
    const Lanes u = load_part(static_cast<const A*>(up) + i, n - i);
    store_part(static_cast<A*>(y) + i, g / (1.0f + exponential(-g)) * u, n - i);
  }
}

int64_t largest(const float* logits, int64_t n) {
  if (n <= 0) return -1;
  Lanes most = all(logits[0]), wrong = {};  // wrong: 0, or NaN where one is not finite
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Lanes v = load(logits + i);
    most = larger(v, most);
    wrong += v * 0.0f;
  }
  float found = largest_lane(most), rest = sum(wrong);
  for (; i < n; ++i) {
    found = logits[i] > found ? logits[i] : found;
    rest += logits[i] * 0.0f;
  }
  if (rest != 0.0f) return -1;
  for (i = 0; logits[i] != found; ++i) {
  }
  return i;
}

template <class A, class C>
constexpr Loops loops_of() {
  return {DECODE_ISA, rms_norm<A>, rms_norm_to_float<A>, rotate_query<A>, store_key_value<A, C>, attend<A, C>,
          swiglu<A>,  largest};
}

}  // namespace

extern const Loops DECODE_LOOPS[2][2];
const Loops DECODE_LOOPS[2][2] = {{loops_of<float, float>(), loops_of<float, Bf16>()},
                                  {loops_of<Bf16, float>(), loops_of<Bf16, Bf16>()}};

}  // namespace decode
