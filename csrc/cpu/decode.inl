// sparse_linear for few rows, floating point values: y[m, n] = sum_k x[m, k] W[n, k], m < 16.
//
//   for n: for k: if mask[n, k]: y[:, n] += x[:, k] * *value++
//
// W is read once, and reading it is what takes the time: 1 bit + 2 survivors' bytes a weight. So a
// step of kColumns mask bits expands its survivors into registers, zeros between them, which then
// multiply the same columns of up to kDecodeTileRows rows of x. Pruned places are multiplied too
// (0 * Inf is NaN, as in a dense product). The order of the additions depends on K alone, never on the
// number of threads.
//
// What decode_loop.inl wants of a policy: tile_bytes and pack_tile (how x lies), output<Rows> (one output).

namespace restorelcc::cpu {
namespace {

// One line of survivors a word, about. Far enough for memory, near enough not to be evicted again; at
// the end of the values it runs past them, which a prefetch may.
constexpr int kPrefetchBytes = 1024;

template <class Value>
inline void prefetch_bytes(const Value* from, int bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + bytes));
}

inline int64_t mask_words(int64_t columns) { return (columns + 63) / 64; }

// FMA latency times throughput is 8 to 10: that many sums must be under way at once.
template <int Rows>
constexpr int kChainsOf = Rows == 1   ? 8
                          : Rows <= 3 ? 4
                          : Rows <= 5 ? 2
                                      : 1;

// Rows [first_row, first_row + rows) of x, step by step, [K rounded up / Columns, rows, Columns]. Place i of a
// step is its column place(i).
template <int Columns, class Element, class X, class Place, class Convert>
inline void interleave(const DecodeJob& job, int64_t first_row, int64_t rows, X* to, const Place& place,
                       const Convert& convert) {
  const int64_t columns = job.weight.columns, steps = mask_words(columns) * (64 / Columns);
  for (int64_t r = 0; r < rows; ++r) {
    const Element* from = static_cast<const Element*>(job.x) + (first_row + r) * job.x_stride;
    for (int64_t s = 0; s < steps; ++s) {
      X* step = to + (s * rows + r) * Columns;
      const int64_t left = columns - s * Columns;
      if (left >= Columns) {
        for (int i = 0; i < Columns; ++i) step[i] = convert(from[s * Columns + place(i)]);
      } else {
        for (int i = 0; i < Columns; ++i)
          step[i] = place(i) < left ? convert(from[s * Columns + place(i)]) : X{};
      }
    }
  }
}

// fp32 FMA. A step is one register of floats, or (bf16 with vpexpandw) two: the even columns and the odd ones.
template <class Value, class V>
struct FloatDecode {
  static constexpr int kVectors = V::template kStepVectors<Value>;
  static constexpr int kColumns = kVectors * V::kLanes;

  static int64_t tile_bytes(int64_t columns, int64_t rows) { return mask_words(columns) * 64 * rows * 4; }

  static void pack_tile(const DecodeJob& job, int64_t first_row, int64_t rows, char* x) {
    float* to = reinterpret_cast<float*>(x);
    const auto place = [](int i) { return kVectors == 1 ? i : 2 * (i % V::kLanes) + i / V::kLanes; };
    const auto convert = [](auto element) { return V::widen(element); };
    switch (job.x_dtype) {
      case RLCC_F32: return interleave<kColumns, float>(job, first_row, rows, to, place, convert);
      case RLCC_BF16: return interleave<kColumns, Bf16>(job, first_row, rows, to, place, convert);
      default: return interleave<kColumns, F16>(job, first_row, rows, to, place, convert);
    }
  }

  // sums[r] = sum_k x[r, k] W[n, k]
  template <int Rows>
  static inline void output(const DecodeJob& job, int64_t n, const char* x_tile, float* sums,
                            int64_t sums_stride) {
    constexpr int kChains = kChainsOf<Rows>;
    const float* x = reinterpret_cast<const float*>(x_tile);
    const int64_t words = mask_words(job.weight.columns);
    const uint64_t* mask_row = job.weight.mask + n * words;
    const Value* values = static_cast<const Value*>(job.weight.values);
    // An index rather than a pointer: adding to it is the chain that all groups hang on, one cycle a link;
    // scaling it by the size of a value is left to the address of the load.
    int64_t cursor = job.weight.row_offsets[n];
    typename V::F32 sum[Rows][kChains];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) sum[r][c] = V::zero();
    }
    for (int64_t j = 0; j < words; ++j) {
      const uint64_t word = mask_row[j];
      const float* x_word = x + j * (Rows * 64);
      prefetch_bytes(values + cursor, kPrefetchBytes);
      if constexpr (sizeof(Value) == 4) prefetch_bytes(values + cursor, kPrefetchBytes + 64);
#pragma GCC unroll 16
      for (int s = 0; s < 64 / kColumns; ++s) {
        typename V::F32 w[kVectors];
        cursor += V::expand_step(word, s, values + cursor, w);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const typename V::F32 x_group = V::load(x_word + (s * Rows + r) * kColumns + v * V::kLanes);
            const int chain = (s * kVectors + v) % kChains;
            sum[r][chain] = V::fma(w[v], x_group, sum[r][chain]);
          }
        }
      }
    }
    for (int r = 0; r < Rows; ++r) {
      typename V::F32 total = sum[r][0];
      for (int c = 1; c < kChains; ++c) total = V::add(total, sum[r][c]);
      sums[r * sums_stride] = V::sum(total);
    }
  }
};

// bf16 values and bf16 x: pairs of columns by vdpbf16ps, whose products are exact and whose sums are fp32.
template <class V>
struct DotDecode {
  static constexpr int kColumns = 2 * V::kLanes;

  static int64_t tile_bytes(int64_t columns, int64_t rows) { return mask_words(columns) * 64 * rows * 2; }

  static void pack_tile(const DecodeJob& job, int64_t first_row, int64_t rows, char* x) {
    interleave<kColumns, Bf16>(
        job, first_row, rows, reinterpret_cast<Bf16*>(x), [](int i) { return i; },
        [](Bf16 element) { return element; });
  }

  // One mask word, into chains kFirst and kFirst + 1; returns where the next word's values are.
  template <int Rows, int kChains, int kFirst>
  static inline int64_t add_word(uint64_t word, const Bf16* values, int64_t cursor, const Bf16* x,
                                 typename V::F32 (&sum)[Rows][kChains]) {
    prefetch_bytes(values + cursor, kPrefetchBytes);
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      const uint32_t bits = static_cast<uint32_t>(word >> (32 * s));
      const auto pairs = V::expand_pairs(bits, values + cursor);
      cursor += V::popcount(bits);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const int chain = (kFirst + s) % kChains;
        sum[r][chain] = V::dot_pairs(sum[r][chain], pairs, x + (s * Rows + r) * kColumns);
      }
    }
    return cursor;
  }

  template <int Rows>
  static inline void output(const DecodeJob& job, int64_t n, const char* x_tile, float* sums,
                            int64_t sums_stride) {
    constexpr int kChains = kChainsOf<Rows> < 4 ? kChainsOf<Rows> : 4;
    const Bf16* x = reinterpret_cast<const Bf16*>(x_tile);
    const int64_t words = mask_words(job.weight.columns);
    const uint64_t* mask_row = job.weight.mask + n * words;
    const Bf16* values = static_cast<const Bf16*>(job.weight.values);
    int64_t cursor = job.weight.row_offsets[n];
    typename V::F32 sum[Rows][kChains];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) sum[r][c] = V::zero();
    }
    // Two words a turn: four masks whose popcounts do not wait for each other, and four chains.
    int64_t j = 0;
    for (; j + 2 <= words; j += 2) {
      cursor = add_word<Rows, kChains, 0>(mask_row[j], values, cursor, x + j * (Rows * 64), sum);
      cursor = add_word<Rows, kChains, 2>(mask_row[j + 1], values, cursor, x + (j + 1) * (Rows * 64), sum);
    }
    if (j < words) add_word<Rows, kChains, 0>(mask_row[j], values, cursor, x + j * (Rows * 64), sum);
    for (int r = 0; r < Rows; ++r) {
      typename V::F32 total = sum[r][0];
      for (int c = 1; c < kChains; ++c) total = V::add(total, sum[r][c]);
      sums[r * sums_stride] = V::sum(total);
    }
  }
};

}  // namespace
}  // namespace restorelcc::cpu
