// dense_linear: y[m, n] = sum_k x[m, k] W[n, k] of a dense W.
//
//   few rows    for some outputs: for line of 64 bytes of their rows of W: sums += line of W * x      (decode)
//   many rows   the panels of dense_panels.inl, multiplied by the register tile of panels.inl         (panel)
//
// Few rows: reading W is what takes the time. Some rows of W side by side make independent chains and share
// what is loaded of x; the lines of the rows that come next are asked for at the pace at which these are read,
// for the hardware looks ahead within a stream but not from one short row to the next. The order of the
// additions depends on K and M alone.

namespace restorelcc::cpu {
namespace {

// What a vector of W is, and of x: values widened to fp32.
template <class Element>
struct SingleDots {
  using Value = Element;
  static constexpr int kPerLane = 1;
  static Vector::F32 load(const Value* w) { return Vector::load_lanes(w); }
  static Vector::F32 multiply_add(Vector::F32 w, Vector::F32 x, Vector::F32 sum) {
    return Vector::fma(w, x, sum);
  }
};

#if defined(RLCC_DOT_BF16)
// Pairs of bf16 neighbours in a lane, on both sides.
struct PairDots {
  using Value = Bf16;
  static constexpr int kPerLane = 2;
  static Vector::F32 load(const Value* w) { return Vector::as_lanes(Vector::load_pairs(w)); }
  static Vector::F32 multiply_add(Vector::F32 w, Vector::F32 x, Vector::F32 sum) {
    return Vector::dot_lanes(w, x, sum);
  }
};
#endif

// A step is a line of each row of W, or (vectors of four, whose widening is many instructions) two vectors.
template <class Dots>
struct DenseSteps {
  using Value = typename Dots::Value;
  static constexpr int kVectorElements = Vector::kLanes * Dots::kPerLane;
  static constexpr int kVectors =
      Vector::kLanes < 8 ? 2 : 64 / static_cast<int>(sizeof(Value)) / kVectorElements;
  static constexpr int kElements = kVectors * kVectorElements;  // of W and x
  static constexpr int kTileRows = Vector::kDecodeTileRows;

  static int64_t steps(int64_t columns) { return (columns + kElements - 1) / kElements; }
  static int64_t tile_bytes(int64_t columns, int64_t rows) {
    return steps(columns) * kVectors * rows * Vector::kLanes * 4;
  }
  // What a tile of x is filled up to with rows of zeros: half a tile costs little more than fewer rows, for W
  // is what takes the time, and each number of rows would be a loop of its own.
  static constexpr int padded_rows(int64_t rows) {
    return static_cast<int>(rows <= 1 ? rows : rows <= kTileRows / 2 ? kTileRows / 2 : kTileRows);
  }
  // One row of x leaves registers for more outputs, and for two chains each.
  static constexpr int outputs(int rows) { return rows == 1 ? 4 : Vector::kDecodeTileOutputs; }
  static constexpr int chains(int rows) { return rows == 1 && kVectors > 1 ? 2 : 1; }
};

// sums[r, o] = row r of the tile of x times row first + o of W, for outputs below `end`.
template <class Dots, int Rows>
RLCC_FLAT void dense_dots(const DenseDecodeJob& job, int64_t first, int64_t end, const char* x_tile,
                          float* sums, int64_t sum_stride) {
  using Steps = DenseSteps<Dots>;
  using Value = typename Dots::Value;
  constexpr int kOutputs = Steps::outputs(Rows), kChains = Steps::chains(Rows);
  typename Vector::F32 sum[kOutputs][Rows][kChains];
  const Value* w[kOutputs];
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
    // Past the last output: that one again; its sums are not stored.
    w[o] = job.weight.columns > 0 ? dense_row<Value>(job.weight, smaller(first + o, end - 1)) : nullptr;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < kChains; ++c) sum[o][r][c] = Vector::zero();
    }
  }
  const float* x = reinterpret_cast<const float*>(x_tile);
  const auto step = [&](const Value* const(&line)[kOutputs]) {
#pragma GCC unroll 16
    for (int v = 0; v < Steps::kVectors; ++v) {
      typename Vector::F32 w_vector[kOutputs];
#pragma GCC unroll 8
      for (int o = 0; o < kOutputs; ++o) w_vector[o] = Dots::load(line[o] + v * Steps::kVectorElements);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r, x += Vector::kLanes) {
        const typename Vector::F32 x_vector = Vector::load(x);
#pragma GCC unroll 8
        for (int o = 0; o < kOutputs; ++o) {
          typename Vector::F32& to = sum[o][r][v % kChains];
          to = Dots::multiply_add(w_vector[o], x_vector, to);
        }
      }
    }
  };
  // Unsigned: the stride of a single row may be any number.
  const int64_t bytes_ahead =
      static_cast<int64_t>(kOutputs * sizeof(Value) * static_cast<uint64_t>(job.weight.stride));
  int64_t k = 0;
  for (; k + Steps::kElements <= job.weight.columns; k += Steps::kElements) {
    const Value* line[kOutputs];
#pragma GCC unroll 8
    for (int o = 0; o < kOutputs; ++o) {
      line[o] = w[o] + k;
      prefetch_bytes(line[o], bytes_ahead);  // may run past the last row, which a prefetch may
    }
    step(line);
  }
  if (k < job.weight.columns) {
    PaddedElements<Value, Steps::kElements> padded[kOutputs];
    const Value* line[kOutputs];
    for (int o = 0; o < kOutputs; ++o) line[o] = padded[o].of(w[o], k, job.weight.columns - k);
    step(line);
  }
#pragma GCC unroll 8
  for (int o = 0; o < kOutputs; ++o) {
    if (first + o >= end) break;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sums[r * sum_stride + o] = sum_chains<Vector>(sum[o][r]);
  }
}

using DenseFunction = void (*)(const DenseDecodeJob&, int64_t, int64_t, const char*, float*, int64_t);

// The loop for a tile of that many rows; sums of the rows that fill it up are written too.
template <class Dots>
inline DenseFunction dense_dots_of(int64_t rows) {
  constexpr int kTile = DenseSteps<Dots>::kTileRows;
  if (rows == 1) return dense_dots<Dots, 1>;
  return rows <= kTile / 2 ? dense_dots<Dots, kTile / 2> : dense_dots<Dots, kTile>;
}

template <class Dots>
void dense_outputs(const DenseDecodeJob& job, const char* x, int64_t output_begin, int64_t output_end) {
  using Steps = DenseSteps<Dots>;
  constexpr int64_t kTile = Steps::kTileRows;
  constexpr int64_t kTogether =
      Steps::outputs(1);  // whose rows of W stay in the first-level cache for all of x
  static_assert(kDecodeOutputs % kTogether == 0 && kTogether % Steps::outputs(2) == 0,
                "sums stay in their row");
  float sums[kDecodeMostRows + kTile][kDecodeOutputs];
  for (int64_t first = output_begin; first < output_end; first += kDecodeOutputs) {
    const int64_t end = smaller(first + kDecodeOutputs, output_end);
    for (int64_t n = first; n < end; n += kTogether) {
      const char* x_tile = x;
      for (int64_t m = 0; m < job.rows; m += kTile) {
        const int64_t rows = smaller(kTile, job.rows - m);
        for (int64_t o = n; o < smaller(n + kTogether, end); o += Steps::outputs(static_cast<int>(rows))) {
          dense_dots_of<Dots>(rows)(job, o, end, x_tile, &sums[m][o - first], kDecodeOutputs);
        }
        x_tile += Steps::tile_bytes(job.weight.columns, Steps::padded_rows(rows));
      }
    }
    for (int64_t m = 0; m < job.rows; ++m) finish_row(job.output, m, first, end - first, sums[m]);
  }
}

// Tiles of x: [vectors of K, rows, lanes] of X, fp32 or (pairs) bf16 as it is; zeros behind column K. The same
// for all values of W but for the number of vectors, which is rounded up to whole steps, so there is one copy
// for all.
template <class Element, class X>
__attribute__((noinline)) void pack_dense_x(const DenseDecodeJob& job, char* to, int64_t vectors) {
  using Steps = DenseSteps<SingleDots<float>>;  // whose rows are everyone's
  constexpr int kElements = Vector::kLanes * 4 / static_cast<int>(sizeof(X));
  for (int64_t m = 0; m < job.rows; m += Steps::kTileRows) {
    const int64_t rows = smaller(Steps::kTileRows, job.rows - m), padded = Steps::padded_rows(rows);
    for (int64_t r = 0; r < padded; ++r) {
      const Element* from = static_cast<const Element*>(job.x) + (m + smaller(r, rows - 1)) * job.x_stride;
      for (int64_t v = 0; v < vectors; ++v) {
        X* lanes = reinterpret_cast<X*>(to) + (v * padded + r) * kElements;
        const int64_t left = r < rows ? smaller(kElements, job.weight.columns - v * kElements) : 0;
        const int64_t count = left < 0 ? 0 : left;
        for (int64_t i = 0; i < count; ++i) {
          if constexpr (sizeof(X) == 4) {
            lanes[i] = Vector::widen(from[v * kElements + i]);
          } else {
            lanes[i] = from[v * kElements + i];
          }
        }
        for (int64_t i = count; i < kElements; ++i) lanes[i] = X{};
      }
    }
    to += vectors * padded * Vector::kLanes * 4;
  }
}

// run(dots) with the way to multiply these values and this x.
template <class Value, class Run>
inline auto with_dots(const DenseDecodeJob& job, const Run& run) {
#if defined(RLCC_DOT_BF16)
  if constexpr (kIsBf16<Value>) {
    if (job.x_dtype == RLCC_BF16) return run(PairDots{});
  }
#endif
  (void)job;
  return run(SingleDots<Value>{});
}

template <class Value>
int64_t dense_x_bytes(const DenseDecodeJob& job) {
  return with_dots<Value>(job, [&](auto dots) {
    using Steps = DenseSteps<decltype(dots)>;
    const int64_t whole = job.rows / Steps::kTileRows, rest = job.rows % Steps::kTileRows;
    return whole * Steps::tile_bytes(job.weight.columns, Steps::kTileRows) +
           Steps::tile_bytes(job.weight.columns, Steps::padded_rows(rest));
  });
}
template <class Value>
void dense_pack_x(const DenseDecodeJob& job, char* x) {
  with_dots<Value>(job, [&](auto dots) {
    using Steps = DenseSteps<decltype(dots)>;
    const int64_t vectors = Steps::steps(job.weight.columns) * Steps::kVectors;
    if constexpr (decltype(dots)::kPerLane == 2) {
      pack_dense_x<Bf16, Bf16>(job, x, vectors);
    } else {
      switch (job.x_dtype) {
        case RLCC_F32: return pack_dense_x<float, float>(job, x, vectors);
        case RLCC_BF16: return pack_dense_x<Bf16, float>(job, x, vectors);
        default: return pack_dense_x<F16, float>(job, x, vectors);
      }
    }
  });
}
template <class Value>
void dense_run(const DenseDecodeJob& job, const char* x, int64_t output_begin, int64_t output_end) {
  with_dots<Value>(job, [&](auto dots) { dense_outputs<decltype(dots)>(job, x, output_begin, output_end); });
}

template <class Value>
constexpr dense_linear_decode_kernel dense_linear_decode_of = {Vector::kDecodeMaxRows, dense_x_bytes<Value>,
                                                               dense_pack_x<Value>, dense_run<Value>};

// B[u, i] = W[first + i, u], a source of panels.inl.
template <class Panels>
struct TransposedDense : Panels {
  static constexpr int64_t kDepthMultiple = Vector::kLanes;  // whole transposed blocks
  static int64_t panels_at_once(const PanelJob&) { return 1; }
  static int64_t most_depth(const PanelJob&) { return kDepthBlock; }
  static int64_t scratch_bytes(const PanelJob&) { return 0; }

  TransposedDense(const PanelJob& job, char*) : weight_{job.b, job.b_stride, nullptr, job.columns, job.depth} {}

  void start(int64_t panel, int64_t) { first_ = panel * kPanelColumns; }
  void expand(int64_t begin, int64_t end, float* b, int64_t) {
    expand_transposed<Panels>(weight_, first_, begin, end, b);
  }

 private:
  const DenseMatrix weight_;
  int64_t first_ = 0;
};

template <class Value>
constexpr panel_kernel dense_linear_panel_of = panel_kernel_of<TransposedDense<SinglePanels<Value>>>;
#if defined(RLCC_DOT_BF16)
template <>
constexpr panel_kernel dense_linear_panel_of<Bf16> =
    paired_panel_kernel_of<TransposedDense<SinglePanels<Bf16>>, TransposedDense<PairPanels>>;
#endif

}  // namespace
}  // namespace restorelcc::cpu
