// sparse_linear for few rows, floating point values: y[m, n] = sum_k x[m, k] W[n, k], m < 16.
//
//   for n: for k: if mask[n, k]: y[:, n] += x[:, k] * *value++
//
// W is read once, and reading it is what takes the time: 1 bit + 2 survivors' bytes a weight. So a
// step of kColumns mask bits expands its survivors into registers, zeros between them, which then
// multiply the same columns of up to a tile of rows of x. Pruned places are multiplied too
// (0 * Inf is NaN, as in a dense product). The order of the additions depends on K alone, never on the
// number of threads.
//
// What decode_loop.inl wants of a policy: tile_bytes and pack_tile (how x lies), outputs<Rows, Outputs> (some
// outputs).

namespace restorelcc::cpu {
namespace {

// One line of survivors a word, about. Far enough for memory, near enough not to be evicted again; at
// the end of the values it runs past them, which a prefetch may.
constexpr int kPrefetchBytes = 2048;

template <class Value>
inline void prefetch_bytes(const Value* from, int bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + bytes));
}

inline int64_t mask_words(int64_t columns) { return (columns + 63) / 64; }

// Outputs summed side by side. With several rows their number of loads of x is what limits a single output: two
// share them. With one row a second output only takes registers.
template <int Rows>
constexpr int kOutputsOf = Rows == 1 ? 1 : 2;

// FMA latency times throughput is 8 to 10: that many sums must be under way at once.
template <int Sums>
constexpr int kChainsOf = Sums == 1   ? 8
                          : Sums <= 3 ? 4
                          : Sums <= 5 ? 2
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

// sums[r, o] = the sum of all lanes of all chains of sum[o][r].
template <class V, int Outputs, int Rows, int Chains>
inline void store_sums(const typename V::F32 (&sum)[Outputs][Rows][Chains], float* sums, int64_t sums_stride) {
  for (int o = 0; o < Outputs; ++o) {
    for (int r = 0; r < Rows; ++r) {
      typename V::F32 total = sum[o][r][0];
      for (int c = 1; c < Chains; ++c) total = V::add(total, sum[o][r][c]);
      sums[r * sums_stride + o] = V::sum(total);
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

  // sums[r, o] = sum_k x[r, k] W[n + o, k] for o < Outputs
  template <int Rows, int Outputs>
  RLCC_FLAT static void outputs(const DecodeJob& job, int64_t n, const char* x_tile, float* sums,
                                int64_t sums_stride) {
    constexpr int kChains = kChainsOf<Rows * Outputs>;
    const float* x = reinterpret_cast<const float*>(x_tile);
    const int64_t words = mask_words(job.weight.columns);
    const uint64_t* mask_rows = job.weight.mask + n * words;
    const Value* values = static_cast<const Value*>(job.weight.values);
    // An index rather than a pointer: adding to it is the chain that all groups hang on, one cycle a link;
    // scaling it by the size of a value is left to the address of the load.
    int64_t cursor[Outputs];
    typename V::F32 sum[Outputs][Rows][kChains];
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) {
      cursor[o] = job.weight.row_offsets[n + o];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
        for (int c = 0; c < kChains; ++c) sum[o][r][c] = V::zero();
      }
    }
    for (int64_t j = 0; j < words; ++j) {
      const float* x_word = x + j * (Rows * 64);
      uint64_t word[Outputs];
#pragma GCC unroll 2
      for (int o = 0; o < Outputs; ++o) {
        word[o] = mask_rows[o * words + j];
        prefetch_bytes(values + cursor[o], kPrefetchBytes);
        if constexpr (sizeof(Value) == 4) prefetch_bytes(values + cursor[o], kPrefetchBytes + 64);
      }
#pragma GCC unroll 16
      for (int s = 0; s < 64 / kColumns; ++s) {
        typename V::F32 w[Outputs][kVectors];
#pragma GCC unroll 2
        for (int o = 0; o < Outputs; ++o) cursor[o] += V::expand_step(word[o], s, values + cursor[o], w[o]);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const typename V::F32 x_group = V::load(x_word + (s * Rows + r) * kColumns + v * V::kLanes);
            const int chain = (s * kVectors + v) % kChains;
#pragma GCC unroll 2
            for (int o = 0; o < Outputs; ++o) sum[o][r][chain] = V::fma(w[o][v], x_group, sum[o][r][chain]);
          }
        }
      }
    }
    store_sums<V>(sum, sums, sums_stride);
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

  // sums[r, o] = sum_k x[r, k] W[n + o, k] for o < Outputs
  template <int Rows, int Outputs>
  RLCC_FLAT static void outputs(const DecodeJob& job, int64_t n, const char* x_tile, float* sums,
                                int64_t sums_stride) {
    constexpr int kChains = kChainsOf<Rows * Outputs> < 4 ? kChainsOf<Rows * Outputs> : 4;
    const Bf16* x = reinterpret_cast<const Bf16*>(x_tile);
    const int64_t words = mask_words(job.weight.columns);
    const uint64_t* mask_rows = job.weight.mask + n * words;
    const Bf16* values = static_cast<const Bf16*>(job.weight.values);
    int64_t cursor[Outputs];
    typename V::F32 sum[Outputs][Rows][kChains];
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) {
      cursor[o] = job.weight.row_offsets[n + o];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) sum[o][r][c] = V::zero();
      }
    }
    // Two words a turn: four masks whose popcounts do not wait for each other, and up to four chains.
    int64_t j = 0;
    for (; j + 2 <= words; j += 2) {
      add_word<0>(mask_rows + j, words, values, cursor, x + j * (Rows * 64), sum);
      add_word<2>(mask_rows + j + 1, words, values, cursor, x + (j + 1) * (Rows * 64), sum);
    }
    if (j < words) add_word<0>(mask_rows + j, words, values, cursor, x + j * (Rows * 64), sum);
    store_sums<V>(sum, sums, sums_stride);
  }

 private:
  // One mask word of each output, into chains First and First + 1.
  template <int First, int Outputs, int Rows, int Chains>
  static inline void add_word(const uint64_t* mask, int64_t mask_stride, const Bf16* values,
                              int64_t (&cursor)[Outputs], const Bf16* x,
                              typename V::F32 (&sum)[Outputs][Rows][Chains]) {
#pragma GCC unroll 2
    for (int o = 0; o < Outputs; ++o) prefetch_bytes(values + cursor[o], kPrefetchBytes);
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      typename V::Pairs w[Outputs];
#pragma GCC unroll 2
      for (int o = 0; o < Outputs; ++o) {
        const uint32_t bits = static_cast<uint32_t>(mask[o * mask_stride] >> (32 * s));
        w[o] = V::expand_pairs(bits, values + cursor[o]);
        cursor[o] += V::popcount(bits);
      }
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const int chain = (First + s) % Chains;
#pragma GCC unroll 2
        for (int o = 0; o < Outputs; ++o) {
          sum[o][r][chain] = V::dot_pairs(sum[o][r][chain], w[o], x + (s * Rows + r) * kColumns);
        }
      }
    }
  }
};

}  // namespace
}  // namespace restorelcc::cpu
