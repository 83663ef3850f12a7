// sparse_linear for few rows, floating point values: y[m, n] = sum_k x[m, k] W[n, k], m < 16.
//
//   for n: for k: if mask[n, k]: y[:, n] += x[:, k] * *value++
//
// W is read once, and reading it is what takes the time: 1 bit + 2 survivors' bytes a weight. So a
// step of kColumns mask bits expands its survivors into registers, zeros between them. One row of x multiplies
// them there (span); for several rows some outputs are expanded into the first-level cache, and a register tile
// multiplies them as dense ones (expand, multiply). Pruned places are multiplied too (0 * Inf is NaN, as in a
// dense product). The order of the additions depends on K and M alone, never on the number of threads.
//
// What decode_loop.inl wants of a policy: kTileRows, kTileOutputs; tile_bytes, word_bytes and pack_tile (how x
// lies); kWideBytes (of an expanded mask word); span, expand and multiply<Rows, Outputs>.

namespace restorelcc::cpu {
namespace {

// How far ahead survivors are asked for where one row of W follows the other, into the caches of both levels:
// at 20 GB/s a core, 8 KiB are 0.4 us, which covers a read of memory and the walk of page tables before it. At
// the end of the values it runs past them, which a prefetch may.
constexpr int64_t kPrefetchBytes = 8192;

template <class Value>
inline void prefetch_bytes(const Value* from, int64_t bytes) {
  const auto at = reinterpret_cast<uintptr_t>(from) + static_cast<uintptr_t>(bytes);
  __builtin_prefetch(reinterpret_cast<const void*>(at));
}

inline int64_t mask_words(int64_t columns) { return (columns + 63) / 64; }

// Sums of one output under way at once. Expanding takes longer than adding: a mask word some 8 cycles, a FMA 4.
constexpr int kChains = 4;

// Mask words [begin, begin + words) of some outputs, expanded.
struct Chunk {
  int64_t begin, words;
  int64_t wide_stride;     // bytes from one expanded output to the next
  int64_t partial_stride;  // floats from the sums of one output to those of the next
};

// Memory that will be read next, asked for line by line between the mask words of a multiplication.
struct Ahead {
  const char* next;
  const char* end;
  int64_t lines;  // a mask word

  void ask() {
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// Rows [first_row, first_row + rows) of x, vector by vector: [K rounded up / Columns, Vectors, rows, lanes].
// Place i of a step of Columns is its column place(i).
template <int Columns, int Vectors, class Element, class X, class Place, class Convert>
inline void interleave(const DecodeJob& job, int64_t first_row, int64_t rows, X* to, const Place& place,
                       const Convert& convert) {
  constexpr int kLanes = Columns / Vectors;
  const int64_t columns = job.weight.columns, steps = mask_words(columns) * (64 / Columns);
  for (int64_t r = 0; r < rows; ++r) {
    const Element* from = static_cast<const Element*>(job.x) + (first_row + r) * job.x_stride;
    for (int64_t s = 0; s < steps; ++s) {
      const int64_t left = columns - s * Columns;
      for (int v = 0; v < Vectors; ++v) {
        X* lanes = to + ((s * Vectors + v) * rows + r) * kLanes;
        if (left >= Columns) {
          for (int i = 0; i < kLanes; ++i) lanes[i] = convert(from[s * Columns + place(v * kLanes + i)]);
        } else {
          for (int i = 0; i < kLanes; ++i) {
            const int column = place(v * kLanes + i);
            lanes[i] = column < left ? convert(from[s * Columns + column]) : X{};
          }
        }
      }
    }
  }
}

// partial[o, r] += sum over vectors i of w[o, i] x[i, r]: vectors of expanded weights, rows of them wide_stride
// bytes apart, and of x. Policy says how many vectors a mask word has, and what a product of two is.
template <class Policy, class V, int Rows, int Outputs>
RLCC_FLAT void multiply_words(int64_t words, const char* wide, int64_t wide_stride, const char* x_tile,
                              float* partial, int64_t partial_stride, Ahead& ahead) {
  const float* x = reinterpret_cast<const float*>(x_tile);
  typename V::F32 sum[Outputs][Rows];
#pragma GCC unroll 8
  for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sum[o][r] = V::load(partial + o * partial_stride + r * V::kLanes);
  }
  Ahead asks = ahead;
  for (int64_t j = 0; j < words; ++j) {
    asks.ask();
#pragma GCC unroll 2
    for (int i = 0; i < Policy::kWordVectors; ++i, x += Rows * V::kLanes, wide += V::kLanes * sizeof(float)) {
      typename V::F32 w[Outputs];
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) w[o] = V::load(reinterpret_cast<const float*>(wide + o * wide_stride));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const typename V::F32 x_vector = V::load(x + r * V::kLanes);
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) sum[o][r] = Policy::multiply_add(w[o], x_vector, sum[o][r]);
      }
    }
  }
  ahead = asks;
#pragma GCC unroll 8
  for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) V::store(partial + o * partial_stride + r * V::kLanes, sum[o][r]);
  }
}

// The sum of all lanes of all chains.
template <class V, int Chains>
inline float sum_chains(const typename V::F32 (&sum)[Chains]) {
  typename V::F32 total = sum[0];
#pragma GCC unroll 8
  for (int c = 1; c < Chains; ++c) total = V::add(total, sum[c]);
  return V::sum(total);
}

// fp32 FMA. A step is one register of floats, or (16-bit values with vpexpandw) two.
template <class Value, class V>
struct FloatDecode {
  static constexpr int kVectors = V::template kStepVectors<Value>;
  static constexpr int kColumns = kVectors * V::kLanes;
  static constexpr int kTileRows = V::kDecodeTileRows;
  static constexpr int kTileOutputs = V::kDecodeTileOutputs;

  // A mask word's columns, of x in `rows` rows and of one expanded output.
  static int64_t word_bytes(int64_t rows) { return 64 * rows * 4; }
  static constexpr int64_t kWideBytes = 64 * 4;
  static constexpr int kWordVectors = 64 / V::kLanes;
  static int64_t tile_bytes(int64_t columns, int64_t rows) { return mask_words(columns) * word_bytes(rows); }

  static void pack_tile(const DecodeJob& job, int64_t first_row, int64_t rows, char* x) {
    float* to = reinterpret_cast<float*>(x);
    const auto place = [](int i) { return V::template step_column<Value>(i); };
    const auto convert = [](auto element) { return V::widen(element); };
    switch (job.x_dtype) {
      case RLCC_F32: return interleave<kColumns, kVectors, float>(job, first_row, rows, to, place, convert);
      case RLCC_BF16: return interleave<kColumns, kVectors, Bf16>(job, first_row, rows, to, place, convert);
      default: return interleave<kColumns, kVectors, F16>(job, first_row, rows, to, place, convert);
    }
  }

  // sum_k x[k] W[n, k]
  RLCC_FLAT static float span(const DecodeJob& job, int64_t n, const char* x_tile) {
    const float* x = reinterpret_cast<const float*>(x_tile);
    const int64_t words = mask_words(job.weight.columns);
    const uint64_t* mask_row = job.weight.mask + n * words;
    const Value* values = static_cast<const Value*>(job.weight.values);
    // An index rather than a pointer: adding to it is the chain that all groups hang on, one cycle a link;
    // scaling it by the size of a value is left to the address of the load.
    int64_t cursor = job.weight.row_offsets[n];
    typename V::F32 sum[kChains];
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) sum[c] = V::zero();
    for (int64_t j = 0; j < words; ++j, x += 64) {
      const uint64_t word = mask_row[j];
      prefetch_bytes(values + cursor, kPrefetchBytes);
      if constexpr (sizeof(Value) == 4) prefetch_bytes(values + cursor, kPrefetchBytes + 64);
#pragma GCC unroll 16
      for (int s = 0; s < 64 / kColumns; ++s) {
        typename V::F32 w[kVectors];
        cursor += V::expand_step(word, s, values + cursor, w);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const int vector = s * kVectors + v, chain = vector % kChains;
          sum[chain] = V::fma(w[v], V::load(x + vector * V::kLanes), sum[chain]);
        }
      }
    }
    return sum_chains<V>(sum);
  }

  // Words [begin, end) of row n, to `wide`; the cursor moves behind their survivors.
  RLCC_FLAT static void expand(const DecodeJob& job, int64_t n, int64_t begin, int64_t end, int64_t& cursor,
                               char* wide) {
    const uint64_t* mask_row = job.weight.mask + n * mask_words(job.weight.columns);
    const Value* values = static_cast<const Value*>(job.weight.values);
    float* to = reinterpret_cast<float*>(wide);
    int64_t at = cursor;
    for (int64_t j = begin; j < end; ++j) {
      const uint64_t word = mask_row[j];
#pragma GCC unroll 16
      for (int s = 0; s < 64 / kColumns; ++s, to += kColumns) {
        typename V::F32 w[kVectors];
        at += V::expand_step(word, s, values + at, w);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) V::store(to + v * V::kLanes, w[v]);
      }
    }
    cursor = at;
  }

  static typename V::F32 multiply_add(typename V::F32 w, typename V::F32 x, typename V::F32 sum) {
    return V::fma(w, x, sum);
  }

  // Of words [begin, begin + words), Outputs rows of `wide`.
  template <int Rows, int Outputs>
  static void multiply(const DecodeJob&, const Chunk& chunk, int64_t, const char* wide, const char* x_tile,
                       float* partial, Ahead& ahead) {
    multiply_words<FloatDecode, V, Rows, Outputs>(chunk.words, wide, chunk.wide_stride,
                                                  x_tile + chunk.begin * word_bytes(Rows), partial,
                                                  chunk.partial_stride, ahead);
  }
};

#if defined(RLCC_DOT_BF16)
// bf16 values and bf16 x: pairs of columns by vdpbf16ps, whose products are exact and whose sums are fp32.
template <class V>
struct DotDecode {
  static constexpr int kColumns = 2 * V::kLanes;
  static constexpr int kTileRows = V::kDecodeTileRows;
  static constexpr int kTileOutputs = V::kDecodeTileOutputs;

  static int64_t word_bytes(int64_t rows) { return 64 * rows * 2; }
  static constexpr int64_t kWideBytes = 64 * 2;
  static constexpr int kWordVectors = 2;
  static int64_t tile_bytes(int64_t columns, int64_t rows) { return mask_words(columns) * word_bytes(rows); }

  static void pack_tile(const DecodeJob& job, int64_t first_row, int64_t rows, char* x) {
    interleave<kColumns, 1, Bf16>(
        job, first_row, rows, reinterpret_cast<Bf16*>(x), [](int i) { return i; },
        [](Bf16 element) { return element; });
  }

  // As FloatDecode::span. Two words a turn: four masks whose popcounts do not wait for each other, four chains.
  RLCC_FLAT static float span(const DecodeJob& job, int64_t n, const char* x_tile) {
    const Bf16* x = reinterpret_cast<const Bf16*>(x_tile);
    const int64_t words = mask_words(job.weight.columns);
    const uint64_t* mask_row = job.weight.mask + n * words;
    const Bf16* values = static_cast<const Bf16*>(job.weight.values);
    int64_t cursor = job.weight.row_offsets[n];
    typename V::F32 sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    int64_t j = 0;
    for (; j + 2 <= words; j += 2, x += 128) {
      add_word(mask_row[j], values, cursor, x, sum[0], sum[1]);
      add_word(mask_row[j + 1], values, cursor, x + 64, sum[2], sum[3]);
    }
    if (j < words) add_word(mask_row[j], values, cursor, x, sum[0], sum[1]);
    return sum_chains<V>(sum);
  }

  RLCC_FLAT static void expand(const DecodeJob& job, int64_t n, int64_t begin, int64_t end, int64_t& cursor,
                               char* wide) {
    const uint64_t* mask_row = job.weight.mask + n * mask_words(job.weight.columns);
    const Bf16* values = static_cast<const Bf16*>(job.weight.values);
    float* to = reinterpret_cast<float*>(wide);
    int64_t at = cursor;
    for (int64_t j = begin; j < end; ++j, to += 2 * V::kLanes) {
      const uint64_t word = mask_row[j];
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const uint32_t bits = static_cast<uint32_t>(word >> (32 * s));
        V::store(to + s * V::kLanes, V::as_lanes(V::expand_pairs(bits, values + at)));
        at += V::popcount(bits);
      }
    }
    cursor = at;
  }

  static typename V::F32 multiply_add(typename V::F32 w, typename V::F32 x, typename V::F32 sum) {
    return V::dot_lanes(w, x, sum);
  }

  template <int Rows, int Outputs>
  static void multiply(const DecodeJob&, const Chunk& chunk, int64_t, const char* wide, const char* x_tile,
                       float* partial, Ahead& ahead) {
    multiply_words<DotDecode, V, Rows, Outputs>(chunk.words, wide, chunk.wide_stride,
                                                x_tile + chunk.begin * word_bytes(Rows), partial,
                                                chunk.partial_stride, ahead);
  }

 private:
  static inline void add_word(uint64_t word, const Bf16* values, int64_t& cursor, const Bf16* x,
                              typename V::F32& low, typename V::F32& high) {
    prefetch_bytes(values + cursor, kPrefetchBytes);
    const uint32_t low_bits = static_cast<uint32_t>(word), high_bits = static_cast<uint32_t>(word >> 32);
    low = V::dot_pairs(low, V::expand_pairs(low_bits, values + cursor), x);
    cursor += V::popcount(low_bits);
    high = V::dot_pairs(high, V::expand_pairs(high_bits, values + cursor), x + kColumns);
    cursor += V::popcount(high_bits);
  }
};
#endif

}  // namespace
}  // namespace restorelcc::cpu
