// The loops around one output: tiles of rows of x, blocks of outputs, and which policy a job takes.

namespace restorelcc::cpu {
namespace {

constexpr int64_t kDecodeOutputs = 64;  // outputs finished at a time: 4 KiB of sums on the stack

constexpr int64_t kTile = Vector::kDecodeTileRows;

// Rows at run time to Rows at compile time.
template <class Policy, int Rows = static_cast<int>(kTile)>
inline void decode_tile(const DecodeJob& job, int64_t rows, int64_t first, int64_t count, const char* x,
                        float* sums) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return decode_tile<Policy, Rows - 1>(job, rows, first, count, x, sums);
  }
  int64_t i = 0;
  for (; i + kOutputsOf<Rows> <= count; i += kOutputsOf<Rows>) {
    Policy::template outputs<Rows, kOutputsOf<Rows>>(job, first + i, x, sums + i, kDecodeOutputs);
  }
  if constexpr (kOutputsOf<Rows> > 1) {
    if (i < count) Policy::template outputs<Rows, 1>(job, first + i, x, sums + i, kDecodeOutputs);
  }
}

template <class Policy>
void decode_outputs(const DecodeJob& job, const char* x, int64_t output_begin, int64_t output_end) {
  float sums[kDecodeMostRows][kDecodeOutputs];
  const int64_t full_tile_bytes = Policy::tile_bytes(job.weight.columns, kTile);
  for (int64_t first = output_begin; first < output_end; first += kDecodeOutputs) {
    const int64_t count = smaller(kDecodeOutputs, output_end - first);
    for (int64_t m = 0; m < job.rows; m += kTile) {
      decode_tile<Policy>(job, smaller(kTile, job.rows - m), first, count, x + m / kTile * full_tile_bytes,
                          sums[m]);
    }
    for (int64_t m = 0; m < job.rows; ++m) finish_row(job.output, m, first, count, sums[m]);
  }
}

template <class Policy>
void decode_pack(const DecodeJob& job, char* x) {
  for (int64_t m = 0; m < job.rows; m += kTile) {
    const int64_t rows = smaller(kTile, job.rows - m);
    Policy::pack_tile(job, m, rows, x);
    x += Policy::tile_bytes(job.weight.columns, rows);
  }
}

template <class Policy>
int64_t decode_bytes(const DecodeJob& job) {
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
