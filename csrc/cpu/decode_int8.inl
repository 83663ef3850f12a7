// sparse_linear for few rows, int8 values: integers within a group of 128 columns, floats across groups.
//
//   x[m, g] ~ xs[m, g] xq[m, g],  xq in [-127, 127]          quantised here, per row and group of columns
//   y[m, n] = sum_g ws[n, g] xs[m, g] sum_k wq[n, k] xq[m, k]
//
// The inner sum is exact in int32: at most 128 * 128 * 127. A group of x that is not finite gets the scale NaN,
// one whose scale would be subnormal counts as 0.

namespace restorelcc::cpu {
namespace {

constexpr int kGroupColumns = RLCC_SCALE_COLUMNS;
constexpr int kGroupWords = kGroupColumns / 64;
static_assert(kGroupColumns % 64 == 0, "a group is a whole number of mask words");

struct Int8Decode {
  using Int8 = Vector::Int8;
  using X = Int8::X;
  static constexpr int kColumns = Int8::kColumns;
  static constexpr int kTileRows = Vector::kInt8TileRows;
  static constexpr int kTileOutputs = Vector::kInt8TileOutputs;

  static int64_t word_bytes(int64_t rows) { return 64 * rows * static_cast<int64_t>(sizeof(X)); }
  // Expanded weights and, for every word (used: every group), what add_offset summed.
  static constexpr int64_t kStepBytes = sizeof(Int8::W);
  static constexpr int64_t kWideBytes = 64 / kColumns * kStepBytes + kStepBytes;

  static int64_t groups_of(int64_t columns) { return (columns + kGroupColumns - 1) / kGroupColumns; }

  // Scales [groups, rows] fp32, then whole groups of quantised steps [steps, rows, kColumns].
  static int64_t scale_bytes(int64_t columns, int64_t rows) {
    return (groups_of(columns) * rows * 4 + 63) / 64 * 64;
  }
  static int64_t tile_bytes(int64_t columns, int64_t rows) {
    const int64_t elements = groups_of(columns) * kGroupColumns * rows;
    return scale_bytes(columns, rows) + (elements * static_cast<int64_t>(sizeof(X)) + 63) / 64 * 64;
  }

  // Quantises `count` columns of one row; returns their scale. widened is [kGroupColumns], zeros behind count.
  static float quantise(const float* widened, int32_t* quantised) {
    uint32_t largest = 0;  // of |x| as an integer: NaN and Inf are the largest of all
    for (int i = 0; i < kGroupColumns; ++i) {
      const uint32_t magnitude = bits_from_float(widened[i]) & 0x7fffffffu;
      largest = magnitude > largest ? magnitude : largest;
    }
    const float scale = float_from_bits(largest) / 127.0f;
    if (largest >= 0x7f800000u || scale < 0x1p-126f) {
      for (int i = 0; i < kGroupColumns; ++i) quantised[i] = 0;
      return largest >= 0x7f800000u ? float_from_bits(0x7fc00000u) : 0.0f;
    }
    for (int i = 0; i < kGroupColumns; ++i) {
      quantised[i] = static_cast<int32_t>(__builtin_rintf(widened[i] / scale));  // at most 127 (1 + 2^-23)
    }
    return scale;
  }

  template <class Element>
  static void pack_rows(const DecodeJob& job, int64_t first_row, int64_t rows, float* scales, X* to) {
    const int64_t columns = job.weight.columns;
    float widened[kGroupColumns];
    int32_t quantised[kGroupColumns];
    for (int64_t r = 0; r < rows; ++r) {
      const Element* from = static_cast<const Element*>(job.x) + (first_row + r) * job.x_stride;
      for (int64_t g = 0; g < groups_of(columns); ++g) {
        const int64_t count = smaller(kGroupColumns, columns - g * kGroupColumns);
        for (int64_t i = 0; i < count; ++i) widened[i] = Vector::widen(from[g * kGroupColumns + i]);
        for (int64_t i = count; i < kGroupColumns; ++i) widened[i] = 0;
        scales[g * rows + r] = quantise(widened, quantised) * Int8::kUnit;
        for (int s = 0; s < kGroupColumns / kColumns; ++s) {
          X* step = to + ((g * (kGroupColumns / kColumns) + s) * rows + r) * kColumns;
          for (int i = 0; i < kColumns; ++i) step[i] = Int8::encode(quantised[s * kColumns + i]);
        }
      }
    }
  }

  static void pack_tile(const DecodeJob& job, int64_t first_row, int64_t rows, char* x) {
    float* scales = reinterpret_cast<float*>(x);
    X* to = reinterpret_cast<X*>(x + scale_bytes(job.weight.columns, rows));
    switch (job.x_dtype) {
      case RLCC_F32: return pack_rows<float>(job, first_row, rows, scales, to);
      case RLCC_BF16: return pack_rows<Bf16>(job, first_row, rows, scales, to);
      default: return pack_rows<F16>(job, first_row, rows, scales, to);
    }
  }

  // sum_k x[k] W[n, k]
  RLCC_FLAT static float span(const DecodeJob& job, int64_t n, const char* x_tile) {
    const int64_t words = mask_words(job.weight.columns), groups = groups_of(job.weight.columns);
    const float* x_scales = reinterpret_cast<const float*>(x_tile);
    const X* x = reinterpret_cast<const X*>(x_tile + scale_bytes(job.weight.columns, 1));
    const uint64_t* mask_row = job.weight.mask + n * words;
    const uint16_t* scales = job.weight.scales + n * groups;
    const int8_t* values = static_cast<const int8_t*>(job.weight.values);
    int64_t cursor = job.weight.row_offsets[n];
    Vector::F32 total = Vector::zero();
    for (int64_t g = 0; g < groups; ++g, x += kGroupColumns) {
      const int64_t group_words = smaller(kGroupWords, words - g * kGroupWords);
      Int8::Sum sum = Int8::zero(), offset = Int8::zero();
      prefetch_bytes(values + cursor, kPrefetchBytes);
      // A constant bound and a break, not group_words as the bound: measured, half the time of the other way.
#pragma GCC unroll 2
      for (int w = 0; w < kGroupWords; ++w) {
        if (w == group_words) break;  // the last group may be half a group
        const uint64_t word = mask_row[g * kGroupWords + w];
#pragma GCC unroll 16
        for (int s = 0; s < 64 / kColumns; ++s) {
          const Int8::W wide = Int8::expand(word, s, values + cursor);
          cursor += Int8::taken(word, s);
          offset = Int8::add_offset(offset, wide);
          sum = Int8::dot(sum, wide, x + w * 64 + s * kColumns);
        }
      }
      const float scale = scale_of(scales[g]) * x_scales[g];
      total = Vector::fma(Int8::to_float(sum, offset), Vector::broadcast(&scale), total);
    }
    return Vector::sum(total);
  }

  // As FloatDecode::expand; begin is the first word of a group.
  RLCC_FLAT static void expand(const DecodeJob& job, int64_t n, int64_t begin, int64_t end, int64_t& cursor,
                               char* wide) {
    const uint64_t* mask_row = job.weight.mask + n * mask_words(job.weight.columns);
    const int8_t* values = static_cast<const int8_t*>(job.weight.values);
    int64_t at = cursor;
    for (int64_t j = begin; j < end; j += kGroupWords) {
      Int8::Sum offset = Int8::zero();
#pragma GCC unroll 2
      for (int w = 0; w < kGroupWords; ++w) {
        // Half a group at the end: its other half is zeros.
        const uint64_t word = j + w < end ? mask_row[j + w] : 0;
#pragma GCC unroll 16
        for (int s = 0; s < 64 / kColumns; ++s, wide += kStepBytes) {
          const Int8::W step = Int8::expand(word, s, values + at);
          at += Int8::taken(word, s);
          offset = Int8::add_offset(offset, step);
          std::memcpy(wide, &step, sizeof(step));
        }
      }
      std::memcpy(wide, &offset, sizeof(offset));
      wide += 2 * kStepBytes;
    }
    cursor = at;
  }

  template <int Rows, int Outputs>
  RLCC_FLAT static void multiply(const DecodeJob& job, const Chunk& chunk, int64_t n, const char* wide,
                                 const char* x_tile, float* partial, Ahead& ahead) {
    constexpr int kGroupSteps = kGroupColumns / kColumns;
    const int64_t groups = groups_of(job.weight.columns), first_group = chunk.begin / kGroupWords;
    const float* x_scales = reinterpret_cast<const float*>(x_tile) + first_group * Rows;
    const X* x = reinterpret_cast<const X*>(x_tile + scale_bytes(job.weight.columns, Rows) +
                                            chunk.begin * word_bytes(Rows));
    const uint16_t* scales = job.weight.scales + n * groups + first_group;
    Vector::F32 total[Outputs][Rows];
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        total[o][r] = Vector::load(partial + o * chunk.partial_stride + r * Vector::kLanes);
      }
    }
    Ahead asks = ahead;
    for (int64_t g = 0; g < groups_of(chunk.words * 64); ++g, x_scales += Rows) {
      Int8::Sum sum[Outputs][Rows];
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) sum[o][r] = Int8::zero();
      }
#pragma GCC unroll 2
      for (int s = 0; s < kGroupSteps; ++s, wide += kStepBytes, x += Rows * kColumns) {
        if (s % (64 / kColumns) == 0) asks.ask();
        Int8::W w[Outputs];
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) std::memcpy(&w[o], wide + o * chunk.wide_stride, sizeof(w[o]));
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
          for (int o = 0; o < Outputs; ++o) sum[o][r] = Int8::dot(sum[o][r], w[o], x + r * kColumns);
        }
      }
#pragma GCC unroll 8
      for (int o = 0; o < Outputs; ++o) {
        Int8::Sum offset;
        std::memcpy(&offset, wide + o * chunk.wide_stride, sizeof(offset));
        const float w_scale = scale_of(scales[o * groups + g]);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
          const float scale = w_scale * x_scales[r];
          total[o][r] = Vector::fma(Int8::to_float(sum[o][r], offset), Vector::broadcast(&scale), total[o][r]);
        }
      }
      wide += 2 * kStepBytes;
    }
    ahead = asks;
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        Vector::store(partial + o * chunk.partial_stride + r * Vector::kLanes, total[o][r]);
      }
    }
  }

 private:
  static float scale_of(uint16_t bf16) { return float_from_bits(static_cast<uint32_t>(bf16) << 16); }
};

}  // namespace
}  // namespace restorelcc::cpu
