// head_moments: with dz = z_dense - z_pruned,
//
//   total[h, d] += sum_t dz[t, h, d]        gram[h, i, j] += sum_t dz[t, h, i] dz[t, h, j]
//
//   block (head, tile on or below the diagonal, chunk of the tokens):
//     for slab of kGramSlab tokens:
//       dz[slab, 64 rows' columns], dz[slab, 64 columns]   fp32, in shared memory
//       for run of kGramRun tokens:
//         sum[8 rows, 4 columns of a thread] in fp32, one fma after the other
//         pair += sum                                     two floats, see add_to_pair
//     high + low in fp64 -> gram, or with more than one chunk -> the workspace
//   then, with more than one chunk, chunks are added in order in fp64.
//
// On an A100 the products of a tile cost about twice the time of its bytes at D = 64 (D / 8 fma per byte of
// bf16, a bandwidth's worth being 5), so nothing here is copied ahead: three blocks on a multiprocessor hide
// one another's loads. Tensor cores would be faster, but tf32 and bf16 products keep 11 and 8 bits; here 1e-6
// is asked for.
//
// One thread owns an element of the lower triangle and adds the same sum to its mirror image, so that the
// matrix is exactly symmetric; there are no atomics, and the order of additions is given by the shape alone.
#include "cuda/device.cuh"
#include "cuda/head_moments.h"

namespace restorelcc::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPart = 32;  // a warp's share of a tile is kPart x kPart
constexpr int kRows = 8;   // of a thread: 4 x 8 lanes of 8 x 4 elements
constexpr int kColumns = 4;
static_assert(kThreads / 32 * kPart * kPart == kGramTile * kGramTile, "four warps make a tile");

// An unevaluated sum of two floats: 48 bits, at fp32's speed. (fp64 additions and conversions run at 1/64 of
// fp32's rate on a consumer's GPU: after every run of 12 they would take five times as long as the products.)
struct Pair {
  float high, low;
};

// high + value exactly (Knuth's two-sum, six additions, for any magnitudes), then one rounding of 2^-24 of low.
// n of them err by at most (n 2^-24)^2 of the sum of magnitudes: 1.6e-7, what 14 * 2^-24 leave of 1e-6, after
// 80,000 tokens.
__device__ __forceinline__ void add_to_pair(Pair& pair, float value) {
  const float sum = __fadd_rn(pair.high, value);
  const float value_part = __fadd_rn(sum, -pair.high);
  const float high_part = __fadd_rn(sum, -value_part);
  pair.low = __fadd_rn(pair.low, __fadd_rn(__fadd_rn(pair.high, -high_part), __fadd_rn(value, -value_part)));
  pair.high = sum;
}

// Where high is Inf or NaN so is the sum; low is NaN then.
__device__ __forceinline__ double value_of(Pair pair) {
  const bool finite = fabsf(pair.high) <= 3.402823466e38f;
  return static_cast<double>(pair.high) + (finite ? static_cast<double>(pair.low) : 0.0);
}

// What the kernels read and write, and how it is cut.
struct Problem {
  rlcc_head_moments_params p;
  int64_t tile_rows, tiles, slabs, chunks;
  double* partials;  // [chunks, H, head_partial], or null: one chunk, added to total and gram at once
  int64_t head_partial;
};

struct Tile {
  int64_t row, column;  // of the first element, multiples of kGramTile; column <= row
};

__device__ __forceinline__ Tile tile_of(int64_t index) {
  int64_t row = 0;
  while (index > row) index -= ++row;
  return {row * kGramTile, index * kGramTile};
}

// ---- Inputs: 16 bytes of a row, widened.

struct F32 {
  using Storage = float;
  static __device__ __forceinline__ float widen(float v) { return v; }
  static __device__ __forceinline__ void widen(uint4 v, float (&out)[4]) {
    out[0] = __uint_as_float(v.x);
    out[1] = __uint_as_float(v.y);
    out[2] = __uint_as_float(v.z);
    out[3] = __uint_as_float(v.w);
  }
};
struct Bf16 {
  using Storage = uint16_t;
  static __device__ __forceinline__ float widen(uint16_t v) { return float_of_bf16(v); }
  static __device__ __forceinline__ void widen(uint4 v, float (&out)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = float_of_bf16_low(words[i]);
      out[2 * i + 1] = float_of_bf16_high(words[i]);
    }
  }
};
struct F16 {
  using Storage = uint16_t;
  static __device__ __forceinline__ float widen(uint16_t v) { return float_of_f16(v); }
  static __device__ __forceinline__ void widen(uint4 v, float (&out)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = float_of_f16_low(words[i]);
      out[2 * i + 1] = float_of_f16_high(words[i]);
    }
  }
};

// dz of one head, tokens [token, token + kGramSlab), columns [column, column + kGramTile); zeros outside of the
// array. kWide: rows may be read 16 bytes at a time.
template <class Element, bool kWide>
__device__ __forceinline__ void load_slab(const rlcc_head_moments_params& p, int64_t head, int64_t token,
                                          int64_t column, float* slab) {
  using Storage = typename Element::Storage;
  constexpr int kElements = kWide ? 16 / static_cast<int>(sizeof(Storage)) : 1;  // at a time
  constexpr int kLanes = kGramTile / kElements;                                  // of one token
  constexpr int kTokens = kThreads / kLanes;                                     // in one round
  static_assert(kGramSlab % kTokens == 0, "whole rounds");
  const int t0 = static_cast<int>(threadIdx.x) / kLanes, d = static_cast<int>(threadIdx.x) % kLanes * kElements;
  const Storage* const dense = static_cast<const Storage*>(p.z_dense) + head * p.dense_head_stride + column;
  const Storage* const pruned = static_cast<const Storage*>(p.z_pruned) + head * p.pruned_head_stride + column;
  const bool column_inside = column + d < p.head_dim;
#pragma unroll kWide ? 3 : 8
  for (int t = t0; t < kGramSlab; t += kTokens) {
    float* const to = slab + t * kGramTile + d;
    float a[kElements] = {}, b[kElements] = {};
    if (column_inside && token + t < p.tokens) {
      const Storage* const from_dense = dense + (token + t) * p.dense_token_stride + d;
      const Storage* const from_pruned = pruned + (token + t) * p.pruned_token_stride + d;
      if constexpr (kWide) {
        Element::widen(ptx::load_cached_16(from_dense), a);
        Element::widen(ptx::load_cached_16(from_pruned), b);
      } else {
        a[0] = Element::widen(*from_dense);
        b[0] = Element::widen(*from_pruned);
      }
    }
    if constexpr (kWide) {
#pragma unroll
      for (int i = 0; i < kElements; i += 4) {
        *reinterpret_cast<float4*>(to + i) =
            make_float4(a[i] - b[i], a[i + 1] - b[i + 1], a[i + 2] - b[i + 2], a[i + 3] - b[i + 3]);
      }
    } else {
      *to = a[0] - b[0];
    }
  }
}

// The products of one slab, kRows x kColumns of them per thread, into pairs.
__device__ __forceinline__ void add_products(const float* rows, const float* columns,
                                             Pair (&pairs)[kRows][kColumns]) {
#pragma unroll 1
  for (int run = 0; run < kGramSlab; run += kGramRun) {
    float sum[kRows][kColumns] = {};
#pragma unroll
    for (int t = run; t < run + kGramRun; ++t) {
      const float4 c = *reinterpret_cast<const float4*>(columns + t * kGramTile);
      const float4 r0 = *reinterpret_cast<const float4*>(rows + t * kGramTile);
      const float4 r1 = *reinterpret_cast<const float4*>(rows + t * kGramTile + 4);
      const float row[kRows] = {r0.x, r0.y, r0.z, r0.w, r1.x, r1.y, r1.z, r1.w};
      const float column[kColumns] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sum[i][j] = fmaf(row[i], column[j], sum[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) add_to_pair(pairs[i][j], sum[i][j]);
    }
  }
}

// Two neighbouring columns' sums of one slab.
__device__ __forceinline__ void add_columns(const float* columns, Pair (&totals)[2]) {
#pragma unroll 1
  for (int run = 0; run < kGramSlab; run += kGramRun) {
    float sum[2] = {};
#pragma unroll
    for (int t = run; t < run + kGramRun; ++t) {
      const float2 c = *reinterpret_cast<const float2*>(columns + t * kGramTile);
      sum[0] += c.x;
      sum[1] += c.y;
    }
    add_to_pair(totals[0], sum[0]);
    add_to_pair(totals[1], sum[1]);
  }
}

__device__ __forceinline__ void add_to_gram(const rlcc_head_moments_params& p, int64_t head, int64_t i,
                                            int64_t j, double sum) {
  double* const gram = p.gram + head * p.head_dim * p.head_dim;
  gram[i * p.head_dim + j] += sum;
  if (i != j) gram[j * p.head_dim + i] += sum;
}

// Grid: heads x tiles, chunks. 96 registers are sums; at 128, for a fourth block, some would spill.
template <class Element, bool kWide>
__global__ void __launch_bounds__(kThreads, 3) head_moments_tile(const __grid_constant__ Problem problem) {
  RLCC_SHARED(float4, slabs, 2 * kGramSlab * kGramTile / 4);  // float4: aligned for 16-byte accesses
  const rlcc_head_moments_params& p = problem.p;
  const int64_t head = blockIdx.x / problem.tiles, tile_index = blockIdx.x % problem.tiles;
  const int64_t chunk = blockIdx.y;
  const Tile tile = tile_of(tile_index);
  const bool diagonal = tile.row == tile.column;
  float* const columns = reinterpret_cast<float*>(slabs);
  float* const rows = diagonal ? columns : columns + kGramSlab * kGramTile;

  // A part of a tile on the diagonal lies above it: its warp sums the columns instead. A part that holds no
  // element of the matrix is left out.
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int part_row = warp / 2 * kPart, part_column = warp % 2 * kPart;
  const bool sums_columns = diagonal && part_row < part_column;
  const bool multiplies =
      !sums_columns && tile.row + part_row < p.head_dim && tile.column + part_column < p.head_dim;
  const int row = part_row + lane / 8 * kRows, column = part_column + lane % 8 * kColumns;

  Pair pairs[kRows][kColumns] = {};
  Pair totals[2] = {};
  const int64_t end = (chunk + 1) * problem.slabs / problem.chunks;
  for (int64_t slab = chunk * problem.slabs / problem.chunks; slab < end; ++slab) {
    __syncthreads();  // the slab before has been read
    load_slab<Element, kWide>(p, head, slab * kGramSlab, tile.column, columns);
    if (!diagonal) load_slab<Element, kWide>(p, head, slab * kGramSlab, tile.row, rows);
    __syncthreads();
    if (multiplies) add_products(rows + row, columns + column, pairs);
    if (sums_columns) add_columns(columns + lane * 2, totals);
  }

  double* const partial = problem.partials == nullptr
                              ? nullptr
                              : problem.partials + (chunk * p.heads + head) * problem.head_partial;
  if (multiplies) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int64_t m = tile.row + row + i, n = tile.column + column + j;
        if (m >= p.head_dim || n > m) continue;
        const double sum = value_of(pairs[i][j]);
        if (partial == nullptr) {
          add_to_gram(p, head, m, n, sum);
        } else {
          partial[tile_index * kGramTile * kGramTile + (row + i) * kGramTile + column + j] = sum;
        }
      }
    }
  }
  if (sums_columns) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t d = tile.column + lane * 2 + j;
      if (d >= p.head_dim) continue;
      if (partial == nullptr) {
        p.total[head * p.head_dim + d] += value_of(totals[j]);
      } else {
        partial[problem.tiles * kGramTile * kGramTile + d] = value_of(totals[j]);
      }
    }
  }
}

// One thread per double of a head's partial; chunks in order. Grid: ceil(head_partial / kThreads) x heads.
__global__ void __launch_bounds__(kThreads) head_moments_chunks(const __grid_constant__ Problem problem) {
  const rlcc_head_moments_params& p = problem.p;
  const int64_t blocks = (problem.head_partial + kThreads - 1) / kThreads;
  const int64_t head = blockIdx.x / blocks, at = blockIdx.x % blocks * kThreads + threadIdx.x;
  const int64_t tiles_end = problem.tiles * kGramTile * kGramTile;
  int64_t m = at - tiles_end, n = 0;  // of a total: its column
  if (at < tiles_end) {
    const Tile tile = tile_of(at / (kGramTile * kGramTile));
    m = tile.row + at / kGramTile % kGramTile;
    n = tile.column + at % kGramTile;
  }
  if (at >= problem.head_partial || m >= p.head_dim || n > m) return;
  double sum = 0;
  for (int64_t chunk = 0; chunk < problem.chunks; ++chunk) {
    sum += problem.partials[(chunk * p.heads + head) * problem.head_partial + at];
  }
  if (at < tiles_end) {
    add_to_gram(p, head, m, n, sum);
  } else {
    p.total[head * p.head_dim + m] += sum;
  }
}

// Every row of every head begins at, and is, a multiple of 16 bytes.
bool rows_are_wide(const rlcc_head_moments_params& p) {
  const int64_t elements = p.dtype == RLCC_F32 ? 4 : 8;
  const bool strides =
      (p.dense_token_stride | p.dense_head_stride | p.pruned_token_stride | p.pruned_head_stride | p.head_dim) %
          elements ==
      0;
  return strides &&
         (reinterpret_cast<uintptr_t>(p.z_dense) | reinterpret_cast<uintptr_t>(p.z_pruned)) % 16 == 0;
}

template <class Element>
LaunchError launch_tiles(const Problem& problem, void* stream) {
  const dim3 grid(static_cast<unsigned>(problem.p.heads * problem.tiles),
                  static_cast<unsigned>(problem.chunks));
  return rows_are_wide(problem.p)
             ? launch(head_moments_tile<Element, true>, grid, kThreads, 0, stream, problem)
             : launch(head_moments_tile<Element, false>, grid, kThreads, 0, stream, problem);
}

}  // namespace

LaunchError launch_head_moments(const rlcc_head_moments_params& p, const HeadMomentsPlan& plan,
                                double* workspace, void* stream) {
  Problem problem{p,
                  plan.tile_rows,
                  plan.tiles,
                  (p.tokens + kGramSlab - 1) / kGramSlab,
                  plan.chunks,
                  nullptr,
                  head_moments_partial(plan)};
  if (plan.chunks > 1) problem.partials = workspace;
  switch (p.dtype) {
    case RLCC_F32: RLCC_RETURN_IF_NOT_LAUNCHED(launch_tiles<F32>(problem, stream)); break;
    case RLCC_BF16: RLCC_RETURN_IF_NOT_LAUNCHED(launch_tiles<Bf16>(problem, stream)); break;
    default: RLCC_RETURN_IF_NOT_LAUNCHED(launch_tiles<F16>(problem, stream));
  }
  if (plan.chunks == 1) return nullptr;
  const int64_t blocks = (problem.head_partial + kThreads - 1) / kThreads * p.heads;
  return launch(head_moments_chunks, static_cast<unsigned>(blocks), kThreads, 0, stream, problem);
}

}  // namespace restorelcc::cuda
