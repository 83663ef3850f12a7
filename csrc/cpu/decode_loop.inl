// The loops around the policies: blocks of outputs, chunks of columns, tiles of rows of x; and which policy a
// job takes.

namespace restorelcc::cpu {
namespace {

constexpr int64_t kDecodeOutputs = 64;  // outputs finished at a time: 4 KiB of sums on the stack

// With several rows of x: outputs expanded side by side.
constexpr int64_t kBlockOutputs = 4;
// x and the expanded outputs of one chunk of columns. Measured on Zen 4: of an x of 32 KiB that is read again
// for every output the first-level cache keeps little while the survivors stream by, and the product takes
// twice the time.
constexpr int64_t kChunkBytes = 24576;
constexpr int64_t kMostWideBytes = 8192;

using MultiplyFunction = void (*)(const DecodeJob&, const Chunk&, int64_t, const char*, const char*, float*,
                                  Ahead&);

// Rows at run time to Rows at compile time.
template <class Policy, int Outputs, int Rows = Policy::kTileRows>
inline MultiplyFunction multiply_of(int64_t rows) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_of<Policy, Outputs, Rows - 1>(rows);
  }
  return Policy::template multiply<Rows, Outputs>;
}

// Mask words a chunk: a multiple of 2, so that each begins with an int8 group, and never more than fit.
template <class Policy>
inline int64_t chunk_words(int64_t words, int64_t rows) {
  static_assert(2 * kBlockOutputs * Policy::kWideBytes <= kMostWideBytes, "two words of a block must fit");
  const int64_t fit = smaller(kChunkBytes / (Policy::word_bytes(rows) + kBlockOutputs * Policy::kWideBytes),
                              kMostWideBytes / (kBlockOutputs * Policy::kWideBytes));
  const int64_t most = fit < 2 ? 2 : fit / 2 * 2, chunks = words == 0 ? 1 : (words + most - 1) / most;
  return (words + 2 * chunks - 1) / (2 * chunks) * 2;
}

// Two to kDecodeMostRows rows of x:
//
//   for kBlockOutputs outputs:                    their survivors were asked for while the last block was
//   multiplied
//     for chunk of columns:                       of x and expanded W, fits the first-level cache
//       expand W[block, chunk]
//       for tile of rows of x: sums[block, tile] += x[tile, chunk] W[block, chunk]ᵀ      in registers
template <class Policy>
struct SeveralRows {
  static constexpr int64_t kTile = Policy::kTileRows, kOutputs = Policy::kTileOutputs, kLanes = Vector::kLanes;

  const DecodeJob& job;
  const char* x;
  const int64_t words = mask_words(job.weight.columns), most_words = chunk_words<Policy>(words, job.rows);
  const int64_t value_bytes = job.weight.dtype == RLCC_F32 ? 4 : job.weight.dtype == RLCC_I8 ? 1 : 2;
  const int64_t tile_bytes = Policy::tile_bytes(job.weight.columns, kTile),
                last_rows = (job.rows - 1) % kTile + 1;
  const MultiplyFunction full_tile = multiply_of<Policy, kOutputs>(kTile);
  const MultiplyFunction last_tile = multiply_of<Policy, kOutputs>(last_rows);
  const MultiplyFunction full_tile_one = multiply_of<Policy, 1>(kTile);
  const MultiplyFunction last_tile_one = multiply_of<Policy, 1>(last_rows);

  // partial[i, m, lanes] = the products of output first + i and row m of x, i < count <= kBlockOutputs
  void block(int64_t first, int64_t count, float* partial) const {
    alignas(64) char wide[kMostWideBytes];
    int64_t cursor[kBlockOutputs];
    const int64_t* offsets = job.weight.row_offsets;
    for (int64_t i = 0; i < count; ++i) cursor[i] = offsets[first + i];
    std::memset(partial, 0, static_cast<size_t>(count * job.rows * kLanes) * sizeof(float));

    // The survivors of the next block are asked for while this one is multiplied.
    const int64_t next = smaller(first + count, job.weight.rows);
    const int64_t next_end = smaller(next + kBlockOutputs, job.weight.rows);
    const char* values = static_cast<const char*>(job.weight.values);
    Ahead ahead{values + offsets[next] * value_bytes, values + offsets[next_end] * value_bytes, 0};
    const int64_t tiles = (job.rows + kTile - 1) / kTile, output_tiles = (count + kOutputs - 1) / kOutputs;
    const int64_t steps = words * tiles * output_tiles;
    if (steps > 0) ahead.lines = ((ahead.end - ahead.next) / 64 + steps - 1) / steps;

    for (int64_t word = 0; word < words; word += most_words) {
      const int64_t end = smaller(word + most_words, words);
      const Chunk chunk{word, end - word, most_words * Policy::kWideBytes, job.rows * kLanes};
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t* next_mask = job.weight.mask + smaller(next + i, job.weight.rows - 1) * words;
        for (int64_t j = word; j < end; j += 8) prefetch_bytes(next_mask + j, 0);
        Policy::expand(job, first + i, word, end, cursor[i], wide + i * chunk.wide_stride);
      }
      const char* x_tile = x;
      float* partial_tile = partial;
      for (int64_t m = 0; m < job.rows; m += kTile) {
        const bool full = m + kTile <= job.rows;
        int64_t i = 0;
        for (; i + kOutputs <= count; i += kOutputs) {
          (full ? full_tile : last_tile)(job, chunk, first + i, wide + i * chunk.wide_stride, x_tile,
                                         partial_tile + i * chunk.partial_stride, ahead);
        }
        for (; i < count; ++i) {
          (full ? full_tile_one : last_tile_one)(job, chunk, first + i, wide + i * chunk.wide_stride, x_tile,
                                                 partial_tile + i * chunk.partial_stride, ahead);
        }
        x_tile += tile_bytes;
        partial_tile += kTile * kLanes;
      }
    }
  }
};

template <class Policy>
void decode_outputs(const DecodeJob& job, const char* x, int64_t output_begin, int64_t output_end) {
  float sums[kDecodeMostRows][kDecodeOutputs];
  alignas(64) float partial[kBlockOutputs * kDecodeMostRows * Vector::kLanes];
  const SeveralRows<Policy> several{job, x};
  for (int64_t first = output_begin; first < output_end; first += kDecodeOutputs) {
    const int64_t count = smaller(kDecodeOutputs, output_end - first);
    if (job.rows == 1) {
      for (int64_t i = 0; i < count; ++i) sums[0][i] = Policy::span(job, first + i, x);
    } else {
      for (int64_t done = 0; done < count; done += kBlockOutputs) {
        const int64_t block = smaller(kBlockOutputs, count - done);
        several.block(first + done, block, partial);
        for (int64_t i = 0; i < block; ++i) {
          for (int64_t m = 0; m < job.rows; ++m) {
            sums[m][done + i] = Vector::sum(Vector::load(partial + (i * job.rows + m) * Vector::kLanes));
          }
        }
      }
    }
    for (int64_t m = 0; m < job.rows; ++m) finish_row(job.output, m, first, count, sums[m]);
  }
}

template <class Policy>
void decode_pack(const DecodeJob& job, char* x) {
  constexpr int64_t kTile = Policy::kTileRows;
  for (int64_t m = 0; m < job.rows; m += kTile) {
    const int64_t rows = smaller(kTile, job.rows - m);
    Policy::pack_tile(job, m, rows, x);
    x += Policy::tile_bytes(job.weight.columns, rows);
  }
}

template <class Policy>
int64_t decode_bytes(const DecodeJob& job) {
  constexpr int64_t kTile = Policy::kTileRows;
  const int64_t whole = job.rows / kTile, rest = job.rows % kTile;
  return whole * Policy::tile_bytes(job.weight.columns, kTile) +
         (rest == 0 ? 0 : Policy::tile_bytes(job.weight.columns, rest));
}

// run(policy) with the policy for these values and this x.
template <class Value>
struct DecodeChoice {
  template <class Run>
  static auto of(const DecodeJob&, const Run& run) {
    return run(FloatDecode<Value, Vector>{});
  }
};
template <>
struct DecodeChoice<int8_t> {
  template <class Run>
  static auto of(const DecodeJob&, const Run& run) {
    return run(Int8Decode{});
  }
};
#if defined(RLCC_DOT_BF16)
template <>
struct DecodeChoice<Bf16> {
  template <class Run>
  static auto of(const DecodeJob& job, const Run& run) {
    return job.x_dtype == RLCC_BF16 ? run(DotDecode<Vector>{}) : run(FloatDecode<Bf16, Vector>{});
  }
};
#endif

template <class Value>
int64_t decode_x_bytes(const DecodeJob& job) {
  return DecodeChoice<Value>::of(job, [&](auto policy) { return decode_bytes<decltype(policy)>(job); });
}
template <class Value>
void decode_pack_x(const DecodeJob& job, char* x) {
  DecodeChoice<Value>::of(job, [&](auto policy) { decode_pack<decltype(policy)>(job, x); });
}
template <class Value>
void decode_run(const DecodeJob& job, const char* x, int64_t output_begin, int64_t output_end) {
  DecodeChoice<Value>::of(
      job, [&](auto policy) { decode_outputs<decltype(policy)>(job, x, output_begin, output_end); });
}

// int8 stays ahead of the panels longer: its products cost half, and panels widen it to fp32.
template <class Value>
constexpr sparse_linear_decode_kernel sparse_linear_decode_of = {
    sizeof(Value) == 1 ? kDecodeMostRows : Vector::kDecodeMaxRows, decode_x_bytes<Value>, decode_pack_x<Value>,
    decode_run<Value>};

}  // namespace
}  // namespace restorelcc::cpu
