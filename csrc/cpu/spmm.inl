// Many rows of x where W has many zeros: survivors alone are multiplied.
//
//   y = x Wᵀ                                                  grad_values = (grad_yᵀ x) under the mask
//   for tile of R rows of x, transposed to x[K, R]:           for tile of R rows of both, transposed:
//     for mask word j: x[64, R] stays in the first-level cache    (likewise)
//       for output n: y[n, R] in registers                        for row n: grad_y[n, R] in registers
//         for survivor w of the word, at column k:                  for survivor of the word, at column k:
//           y[n, :] += w x[k, :]                                      its gradient += grad_y[n, :] . x[k, :]
//
// The panel loop multiplies zeros too. This one leaves them out, and pays with a load of x for each FMA: two
// loads a cycle let 8 FMAs and a broadcast take 4.5 cycles where registers alone would take 4. The same loop
// for a mask that is known at compile time: Elsen et al., Fast Sparse ConvNets (arXiv 1911.09723), and
// XNNPACK's f32-spmm. The gradient of x goes down the columns of W, whose survivors would have to be sorted
// anew in each call: a fifth to a tenth ahead of the panels at 512 rows, behind them below 256, so it is left
// to them.
//
// 0 · Inf is NaN in the product, whatever was pruned: x that is not finite goes to the panels, all rows of the
// call, whose sums round in another order.
//
// Each output is the sum, word after word, of a chain of FMAs over the survivors of each word, each gradient a
// sum of tiles in their order, whatever the split over threads. One chain over the whole row would save an
// addition per word, 3 % at a half, and has more than twice the rounding error in a real model's logits.

namespace restorelcc::cpu {
namespace {

// Vectors of a tile: 8 are chains enough to hide the latency of two FMAs a cycle; a block of rows that is no
// multiple of them is cut into equal tiles, and below 4 the loads of survivors would weigh more than those of
// x.
constexpr int kSpmmLeastVectors = 4, kSpmmMostVectors = 8;
// Outputs at a time: their sums, 128 KiB on AVX2, share the second-level cache with a tile of x.
constexpr int64_t kSpmmOutputs = 512;
// Outputs that values and mask are asked for ahead: they lie a row of W apart, which no prefetcher sees.
constexpr int64_t kSpmmAhead = 6;

inline bool is_special(float value) { return (bits_from_float(value) & 0x7f800000u) == 0x7f800000u; }
inline bool is_special(Bf16 value) { return (value.bits & 0x7f80u) == 0x7f80u; }
inline bool is_special(F16 value) { return (value.bits & 0x7c00u) == 0x7c00u; }

template <class Element>
bool finite_rows_of(const ColumnTiles& a, int64_t row_begin, int64_t row_end) {
  const Element* row = static_cast<const Element*>(a.a) + row_begin * a.a_stride;
  unsigned special = 0;
  for (int64_t m = row_begin; m < row_end; ++m, row += a.a_stride) {
    for (int64_t k = 0; k < a.depth; ++k) special |= is_special(row[k]) ? 1u : 0u;
  }
  return special == 0;
}

bool finite_rows(const ColumnTiles& a, int64_t row_begin, int64_t row_end) {
  switch (a.a_dtype) {
    case RLCC_F32: return finite_rows_of<float>(a, row_begin, row_end);
    case RLCC_BF16: return finite_rows_of<Bf16>(a, row_begin, row_end);
    default: return finite_rows_of<F16>(a, row_begin, row_end);
  }
}

template <class Element>
void pack_columns_of(const ColumnTiles& a, int64_t tile_begin, int64_t tile_end) {
  constexpr int kLanes = Vector::kLanes;
  const int64_t stride = a.tile_rows;
  for (int64_t m = tile_begin * stride; m < tile_end * stride; m += kLanes) {
    const int64_t rows = smaller(kLanes, a.rows - m);  // fewer, or none, behind the last row
    const Element* from = static_cast<const Element*>(a.a) + m * a.a_stride;
    float* to = a.tiles + m / stride * stride * a.depth + m % stride;
    int64_t k = 0;
    for (; k + kLanes <= a.depth; k += kLanes) {
      typename Vector::F32 block[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        block[r] = r < rows ? Vector::load_lanes(from + r * a.a_stride + k) : Vector::zero();
      }
      Vector::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) Vector::store(to + (k + i) * stride, block[i]);
    }
    for (; k < a.depth; ++k) {
      for (int r = 0; r < kLanes; ++r) {
        to[k * stride + r] = r < rows ? Vector::widen(from[r * a.a_stride + k]) : 0;
      }
    }
  }
}

void pack_columns(const ColumnTiles& a, int64_t tile_begin, int64_t tile_end) {
  switch (a.a_dtype) {
    case RLCC_F32: return pack_columns_of<float>(a, tile_begin, tile_end);
    case RLCC_BF16: return pack_columns_of<Bf16>(a, tile_begin, tile_end);
    default: return pack_columns_of<F16>(a, tile_begin, tile_end);
  }
}

inline const float* tile_of(const ColumnTiles& a, int64_t tile) {
  return a.tiles + tile * a.tile_rows * a.depth;
}

// The kept <= 64 values of word j of row n as fp32, to `widened`. Null where they are fp32.
using WidenWord = const float* (*)(const rlcc_packed_weight& weight, int64_t n, int64_t j, int64_t cursor,
                                   int64_t kept, float* widened);

template <class Value>
const float* widen_word(const rlcc_packed_weight& weight, int64_t n, int64_t j, int64_t cursor, int64_t kept,
                        float* widened) {
  const Value* values = static_cast<const Value*>(weight.values) + cursor;
  [[maybe_unused]] const float scale =
      scale_at<Value>(weight, scale_groups(weight.columns), n, j * 64) / Vector::kInt8Unit;
  // Reads up to kLanes - 1 values too many: hence the padding behind the last.
  for (int64_t v = 0; v < kept; v += Vector::kLanes) {
    typename Vector::F32 lanes = Vector::load_lanes(values + v);
    if constexpr (sizeof(Value) == 1) lanes = Vector::mul(lanes, Vector::broadcast(&scale));
    Vector::store(widened + v, lanes);
  }
  return widened;
}

// sums[i, :] (+)= Σ over the survivors of word j of row first + i of w x[k, :]; `x` is x[64 j, :] of the tile.
using SpmmWord = void (*)(const rlcc_packed_weight& weight, WidenWord widen, const float* x, int64_t j,
                          int64_t first, int64_t count, int64_t* cursors, float* sums);

template <int Vectors>
RLCC_FLAT void spmm_word(const rlcc_packed_weight& weight, WidenWord widen, const float* x, int64_t j,
                         int64_t first, int64_t count, int64_t* cursors, float* sums) {
  constexpr int kStride = Vectors * Vector::kLanes;
  const int64_t words = mask_words(weight.columns);
  const int64_t value_bytes = weight.dtype == RLCC_F32 ? 4 : weight.dtype == RLCC_I8 ? 1 : 2;
  const uint64_t* mask = weight.mask + first * words + j;
  const char* values = static_cast<const char*>(weight.values);
  alignas(64) float widened[64];
  for (int64_t i = 0; i < count; ++i, sums += kStride) {
    const int64_t ahead = smaller(i + kSpmmAhead, count - 1);
    prefetch_bytes(mask + ahead * words, 0);
    prefetch_bytes(values, cursors[ahead] * value_bytes);
    prefetch_bytes(values, cursors[ahead] * value_bytes + 64);
    uint64_t bits = mask[i * words];
    const int64_t kept = Vector::popcount(bits);
    const float* w = widen == nullptr ? static_cast<const float*>(weight.values) + cursors[i]
                                      : widen(weight, first + i, j, cursors[i], kept, widened);
    cursors[i] += kept;
    typename Vector::F32 sum[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) sum[v] = Vector::zero();
    for (; bits != 0; bits &= bits - 1) {
      const typename Vector::F32 weight_k = Vector::broadcast(w++);
      const float* x_k = x + __builtin_ctzll(bits) * kStride;
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) {
        sum[v] = Vector::fma(weight_k, Vector::load(x_k + v * Vector::kLanes), sum[v]);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      float* of_row = sums + v * Vector::kLanes;
      Vector::store(of_row, j == 0 ? sum[v] : Vector::add(Vector::load(of_row), sum[v]));
    }
  }
}

// By vectors of a tile, from kSpmmLeastVectors on.
constexpr SpmmWord kSpmmWords[] = {spmm_word<4>, spmm_word<5>, spmm_word<6>, spmm_word<7>, spmm_word<8>};

// Outputs [first, first + count), at most 64, of rows m.. of x, from sums [count, tile_rows].
__attribute__((noinline)) void spmm_finish(const SpmmJob& job, int64_t m, int64_t first, int64_t count,
                                           const float* sums, float* rows) {
  constexpr int kLanes = Vector::kLanes;
  const int64_t tile_rows = job.x.tile_rows;
  for (int64_t i = 0; i < count; i += kLanes) {  // zeros behind the last output are never stored
    for (int64_t r = 0; r < tile_rows; r += kLanes) {
      typename Vector::F32 block[kLanes];
#pragma GCC unroll 16
      for (int o = 0; o < kLanes; ++o) {
        block[o] = i + o < count ? Vector::load(sums + (i + o) * tile_rows + r) : Vector::zero();
      }
      Vector::transpose(block);
#pragma GCC unroll 16
      for (int o = 0; o < kLanes; ++o) Vector::store(rows + (r + o) * 64 + i, block[o]);
    }
  }
  for (int64_t r = 0; r < smaller(tile_rows, job.x.rows - m); ++r) {
    finish_row(job.output, m + r, first, count, rows + r * 64);
  }
}

// Scratch: sums [kSpmmOutputs, tile_rows] | rows of some of them [tile_rows, 64] | cursors [kSpmmOutputs].
int64_t spmm_scratch_bytes(const SpmmJob& job) {
  return (kSpmmOutputs + 64) * job.x.tile_rows * 4 + kSpmmOutputs * 8;
}

__attribute__((noinline)) void spmm_tile(const SpmmJob& job, WidenWord widen, int64_t begin, int64_t end,
                                         int64_t tile, char* scratch) {
  const int64_t tile_rows = job.x.tile_rows, count = end - begin;
  const SpmmWord word = kSpmmWords[tile_rows / Vector::kLanes - kSpmmLeastVectors];
  float* sums = reinterpret_cast<float*>(scratch);
  float* rows = sums + kSpmmOutputs * tile_rows;
  int64_t* cursors = reinterpret_cast<int64_t*>(rows + 64 * tile_rows);
  for (int64_t i = 0; i < count; ++i) cursors[i] = job.weight.row_offsets[begin + i];
  const float* x = tile_of(job.x, tile);
  for (int64_t j = 0; j < mask_words(job.weight.columns); ++j, x += 64 * tile_rows) {
    word(job.weight, widen, x, j, begin, count, cursors, sums);
  }
  for (int64_t i = 0; i < count; i += 64) {
    spmm_finish(job, tile * tile_rows, begin + i, smaller(64, count - i), sums + i * tile_rows, rows);
  }
}

template <class Value>
void spmm_run(const SpmmJob& job, int64_t begin, int64_t end, int64_t tile_begin, int64_t tile_end,
              char* scratch) {
  WidenWord widen = nullptr;
  if constexpr (sizeof(Value) < 4) widen = widen_word<Value>;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) spmm_tile(job, widen, begin, end, tile, scratch);
}

// sums[i, survivors of word j of row first + i] (+)= Σ_m grad_y[m, first + i] x[m, k].
using SddmmWord = void (*)(const SddmmJob& job, const float* x, const float* grad_y, int64_t j, int64_t first,
                           int64_t count, int64_t* cursors, bool accumulate);

template <int Vectors>
RLCC_FLAT void sddmm_word(const SddmmJob& job, const float* x, const float* grad_y, int64_t j, int64_t first,
                          int64_t count, int64_t* cursors, bool accumulate) {
  constexpr int kLanes = Vector::kLanes, kStride = Vectors * kLanes;
  const int64_t words = mask_words(job.weight.columns);
  const uint64_t* mask = job.weight.mask + first * words + j;
  for (int64_t i = 0; i < count; ++i, grad_y += kStride) {
    const int64_t ahead = smaller(i + kSpmmAhead, count - 1);
    prefetch_bytes(mask + ahead * words, 0);
    prefetch_bytes(job.grad_values + cursors[ahead], 0);
    prefetch_bytes(job.grad_values + cursors[ahead], 64);
    typename Vector::F32 g[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) g[v] = Vector::load(grad_y + v * kLanes);
    const auto product = [&](const float* x_k) {
      typename Vector::F32 sum = Vector::zero();  // +0, so that -0 comes out only where the reference has it
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum = Vector::fma(g[v], Vector::load(x_k + v * kLanes), sum);
      return sum;
    };
    uint64_t bits = mask[i * words];
    int64_t left = Vector::popcount(bits);
    float* to = job.grad_values + cursors[i];
    cursors[i] += left;
    for (; left >= kLanes; left -= kLanes, to += kLanes) {
      typename Vector::F32 sums[kLanes];
#pragma GCC unroll 16
      for (int s = 0; s < kLanes; ++s, bits &= bits - 1) sums[s] = product(x + __builtin_ctzll(bits) * kStride);
      const typename Vector::F32 added = Vector::lane_sums(sums);
      Vector::store(to, accumulate ? Vector::add(Vector::load(to), added) : added);
    }
    for (; bits != 0; bits &= bits - 1, ++to) {
      const float added = Vector::sum(product(x + __builtin_ctzll(bits) * kStride));
      *to = accumulate ? *to + added : added;
    }
  }
}

constexpr int kSddmmVectorMultiple = 2;  // each number of vectors is a kilobyte of code
constexpr SddmmWord kSddmmWords[] = {sddmm_word<4>, sddmm_word<6>, sddmm_word<8>};

constexpr int64_t kSddmmRows = 128;  // of W, whose gradients share the second-level cache with a tile of x

int64_t sddmm_scratch_bytes() { return kSddmmRows * 8; }

void sddmm_run(const SddmmJob& job, int64_t begin, int64_t end, char* scratch) {
  const int64_t tile_rows = job.x.tile_rows;
  const SddmmWord word = kSddmmWords[(tile_rows / Vector::kLanes - kSpmmLeastVectors) / kSddmmVectorMultiple];
  int64_t* cursors = reinterpret_cast<int64_t*>(scratch);
  const int64_t tiles = (job.x.rows + tile_rows - 1) / tile_rows;
  for (int64_t first = begin; first < end; first += kSddmmRows) {
    const int64_t count = smaller(kSddmmRows, end - first);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      for (int64_t i = 0; i < count; ++i) cursors[i] = job.weight.row_offsets[first + i];
      const float *x = tile_of(job.x, tile), *grad_y = tile_of(job.grad_y, tile) + first * tile_rows;
      for (int64_t j = 0; j < mask_words(job.weight.columns); ++j, x += 64 * tile_rows) {
        word(job, x, grad_y, j, first, count, cursors, job.accumulate || tile > 0);
      }
    }
  }
}

constexpr int64_t kSpmmLeastRows = kSpmmLeastVectors * Vector::kLanes;
constexpr int64_t kSpmmMostRows = kSpmmMostVectors * Vector::kLanes;

template <class Value>
constexpr sparse_linear_spmm_kernel sparse_linear_spmm_of = {Vector::kLanes,     kSpmmLeastRows, kSpmmMostRows,
                                                             kSpmmOutputs,       finite_rows,    pack_columns,
                                                             spmm_scratch_bytes, spmm_run<Value>};

template <class Value>
constexpr sparse_linear_grad_values_sddmm_kernel sparse_linear_grad_values_sddmm_of = {
    kSddmmVectorMultiple * Vector::kLanes,
    kSpmmLeastRows,
    kSpmmMostRows,
    kSddmmRows / 2,
    pack_columns,
    sddmm_scratch_bytes,
    sddmm_run};

}  // namespace
}  // namespace restorelcc::cpu
