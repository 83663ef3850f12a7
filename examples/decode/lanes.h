// A register of floats in the compiler's own vector extension, as wide as the flags of the file that includes
// this allow. All of it is local to that file: an inline function that the linker shares could carry AVX-512 to
// a CPU without it.
#pragma once

#include <cstdint>
#include <cstring>

#include "loops.h"

namespace decode {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntLanes __attribute__((vector_size(kLanes * 4)));
typedef uint32_t BitLanes __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfLanes __attribute__((vector_size(kLanes * 2)));

template <class To, class From>
inline To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen(float value) { return value; }
inline float widen(Bf16 value) { return same_bits<float>(static_cast<uint32_t>(value.bits) << 16); }
inline void narrow(float value, float* to) { *to = value; }
// To nearest, ties to even; a NaN stays a (quiet) NaN.
inline void narrow(float value, Bf16* to) {
  const uint32_t bits = same_bits<uint32_t>(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

inline Lanes all(float value) { return Lanes{} + value; }
inline Lanes load(const float* p) {
  Lanes v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Lanes load(const Bf16* p) {
  HalfLanes half;
  std::memcpy(&half, p, sizeof(half));
  return same_bits<Lanes>(__builtin_convertvector(half, BitLanes) << 16);
}
inline void store(float* p, Lanes v) { std::memcpy(p, &v, sizeof(v)); }
// As narrow(), lane by lane.
inline void store(Bf16* p, Lanes v) {
  const BitLanes bits = same_bits<BitLanes>(v), upper = bits >> 16;
  const BitLanes rounded = (bits + 0x7fffu + (upper & 1u)) >> 16;
  const HalfLanes half =
      __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? upper | 0x40u : rounded, HalfLanes);
  std::memcpy(p, &half, sizeof(half));
}
// The first `count` lanes, zeros behind them.
template <class Element>
inline Lanes load_part(const Element* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Element part[kLanes] = {};
  std::memcpy(part, p, static_cast<size_t>(count) * sizeof(Element));
  return load(part);
}
template <class Element>
inline void store_part(Element* p, Lanes v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  Element part[kLanes];
  store(part, v);
  std::memcpy(p, part, static_cast<size_t>(count) * sizeof(Element));
}

// Of a and a NaN in b: NaN.
inline Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }
inline Lanes smaller(Lanes a, Lanes b) { return a < b ? a : b; }
inline float sum(Lanes v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}
inline float largest_lane(Lanes v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = most > v[i] ? most : v[i];
  return most;
}

// exp(x) = 2^n exp(r), n whole and |r| <= ln(2) / 2, by the series of exp to r^7: what is left out is below
// 6e-9 of it. x is held to [-87, 88], where the result is a normal float; NaN stays NaN.
inline Lanes exponential(Lanes x) {
  constexpr float kToWhole = 12582912.0f;                              // 1.5 · 2^23: adding it rounds
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // ln 2; n kLn2High is exact
  x = smaller(all(88.0f), larger(all(-87.0f), x));
  const Lanes n = (x * 1.44269504f + kToWhole) - kToWhole;
  const Lanes r = (x - n * kLn2High) - n * kLn2Low;
  constexpr float kFactors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Lanes p = all(1.0f / 5040);
  for (const float factor : kFactors) p = p * r + factor;
  const IntLanes exponent = (__builtin_convertvector(n, IntLanes) + 127) << 23;
  return p * same_bits<Lanes>(exponent);
}

}  // namespace
}  // namespace decode
