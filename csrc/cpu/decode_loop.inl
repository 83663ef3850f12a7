// The loops around one output: tiles of rows of x, blocks of outputs, and which policy a job takes.

namespace restorelcc::cpu {
namespace {

constexpr int64_t kDecodeOutputs = 64;  // outputs finished at a time: 4 KiB of sums on the stack

// Rows at run time to Rows at compile time.
template <class Policy, int Rows = static_cast<int>(kDecodeTileRows)>
inline void decode_tile(const DecodeJob& job, int64_t rows, int64_t first, int64_t count, const char* x,
                        float* sums) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return decode_tile<Policy, Rows - 1>(job, rows, first, count, x, sums);
  }
  for (int64_t i = 0; i < count; ++i) {
    Policy::template output<Rows>(job, first + i, x, sums + i, kDecodeOutputs);
  }
}

template <class Policy>
void decode_outputs(const DecodeJob& job, const char* x, int64_t output_begin, int64_t output_end) {
  float sums[kDecodeMaxRows][kDecodeOutputs];
  const int64_t full_tile_bytes = Policy::tile_bytes(job.weight.columns, kDecodeTileRows);
  for (int64_t first = output_begin; first < output_end; first += kDecodeOutputs) {
    const int64_t count = smaller(kDecodeOutputs, output_end - first);
    for (int64_t m = 0; m < job.rows; m += kDecodeTileRows) {
      decode_tile<Policy>(job, smaller(kDecodeTileRows, job.rows - m), first, count,
                          x + m / kDecodeTileRows * full_tile_bytes, sums[m]);
    }
    for (int64_t m = 0; m < job.rows; ++m) finish_row(job.output, m, first, count, sums[m]);
  }
}

template <class Policy>
void decode_pack(const DecodeJob& job, char* x) {
  for (int64_t m = 0; m < job.rows; m += kDecodeTileRows) {
    const int64_t rows = smaller(kDecodeTileRows, job.rows - m);
    Policy::pack_tile(job, m, rows, x);
    x += Policy::tile_bytes(job.weight.columns, rows);
  }
}

template <class Policy>
int64_t decode_bytes(const DecodeJob& job) {
  const int64_t whole = job.rows / kDecodeTileRows, rest = job.rows % kDecodeTileRows;
  return whole * Policy::tile_bytes(job.weight.columns, kDecodeTileRows) +
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

template <class Value>
constexpr sparse_linear_decode_kernel sparse_linear_decode_of = {decode_x_bytes<Value>, decode_pack_x<Value>,
                                                                 decode_run<Value>};

}  // namespace
}  // namespace restorelcc::cpu
