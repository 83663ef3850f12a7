// sparse_linear for few rows: y[m, n] = sum_k x[m, k] W[n, k], m < 16.
//
//   for n: for k: if mask[n, k]: y[:, n] += x[:, k] * *value++
//
// W is read once, and reading it is what takes the time: 1 bit + 2 survivors' bytes a weight. So a
// group of kLanes mask bits expands its survivors into a register, zeros between them, which then
// multiplies the same columns of up to kDecodeTileRows rows of x. Pruned places are multiplied too
// (0 * Inf is NaN, as in a dense product). The order of the additions depends on K alone, never on the
// number of threads.

namespace restorelcc::cpu {
namespace {

constexpr int64_t kDecodeOutputs = 64;  // outputs finished at a time: 4 KiB of sums on the stack

// One line of survivors a word, about. Far enough for memory, near enough not to be evicted again; at
// the end of the values it runs past them, which a prefetch may.
constexpr int kPrefetchBytes = 1024;

template <class Value>
inline void prefetch_bytes(const Value* from, int bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + bytes));
}

// sums[r] = sum_k x[r, k] W[n, k]; x is one tile, [64 words / kLanes, Rows, kLanes].
template <class Value, int Rows>
inline void decode_output(const DecodeJob& job, int64_t n, const float* x, float* sums, int64_t sums_stride) {
  // FMA latency times throughput is 8 to 10: that many sums must be under way at once.
  constexpr int kChains = Rows == 1 ? 8 : Rows <= 3 ? 4 : Rows <= 5 ? 2 : 1;
  constexpr int kGroups = 64 / Vector::kLanes;

  const int64_t words = (job.weight.columns + 63) / 64;
  const uint64_t* mask_row = job.weight.mask + n * words;
  const Value* values = static_cast<const Value*>(job.weight.values);
  // An index rather than a pointer: adding to it is the chain that all groups hang on, one cycle a link;
  // scaling it by the size of a value is left to the address of the load.
  int64_t cursor = job.weight.row_offsets[n];
  typename Vector::F32 sum[Rows][kChains];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < kChains; ++c) sum[r][c] = Vector::zero();
  }
  for (int64_t j = 0; j < words; ++j) {
    const uint64_t word = mask_row[j];
    const float* x_word = x + j * (Rows * 64);
    prefetch_bytes(values + cursor, kPrefetchBytes);
    if constexpr (sizeof(Value) == 4) prefetch_bytes(values + cursor, kPrefetchBytes + 64);
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      const typename Vector::Pattern pattern = Vector::pattern(word, g);
      const typename Vector::F32 w = Vector::expand(pattern, values + cursor);
      cursor += Vector::popcount(pattern);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const typename Vector::F32 x_group = Vector::load(x_word + (g * Rows + r) * Vector::kLanes);
        sum[r][g % kChains] = Vector::fma(w, x_group, sum[r][g % kChains]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    typename Vector::F32 total = sum[r][0];
    for (int c = 1; c < kChains; ++c) total = Vector::add(total, sum[r][c]);
    sums[r * sums_stride] = Vector::sum(total);
  }
}

template <class Value, int Rows>
inline void decode_outputs(const DecodeJob& job, int64_t first, int64_t count, const float* x, float* sums) {
  for (int64_t i = 0; i < count; ++i) decode_output<Value, Rows>(job, first + i, x, sums + i, kDecodeOutputs);
}

// Rows at run time to Rows at compile time.
template <class Value, int Rows = static_cast<int>(kDecodeTileRows)>
inline void decode_tile(const DecodeJob& job, int64_t rows, int64_t first, int64_t count, const float* x,
                        float* sums) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return decode_tile<Value, Rows - 1>(job, rows, first, count, x, sums);
  }
  decode_outputs<Value, Rows>(job, first, count, x, sums);
}

template <class Value>
void decode_run(const DecodeJob& job, int64_t output_begin, int64_t output_end) {
  float sums[kDecodeMaxRows][kDecodeOutputs];
  const int64_t words = (job.weight.columns + 63) / 64;
  for (int64_t first = output_begin; first < output_end; first += kDecodeOutputs) {
    const int64_t count = smaller(kDecodeOutputs, output_end - first);
    for (int64_t m = 0; m < job.rows; m += kDecodeTileRows) {
      decode_tile<Value>(job, smaller(kDecodeTileRows, job.rows - m), first, count, job.x + m * words * 64,
                         sums[m]);
    }
    for (int64_t m = 0; m < job.rows; ++m) finish_row(job.output, m, first, count, sums[m]);
  }
}

template <class Value>
constexpr sparse_linear_decode_kernel sparse_linear_decode_of = {Vector::kLanes, decode_run<Value>};

}  // namespace
}  // namespace restorelcc::cpu
