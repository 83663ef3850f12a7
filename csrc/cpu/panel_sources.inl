// Where the panels of B come from: B = Wᵀ for the product, B = W for the gradient of x.
//
// A panel is [depth, kPanelColumns] fp32, contiguous: what the register tile streams. Both sources
// expand mask bits straight into it; nothing dense is ever stored beyond one block of it. int8 values get their
// scale on the way: x stays as it is.

namespace restorelcc::cpu {
namespace {

// A block of B and a tile of A are to share the first-level cache.
constexpr int64_t kDepthBlock = Vector::kDepthBlock;

constexpr int kTileRows = Vector::kTileRows;
constexpr int kPanelColumns = Vector::kPanelVectors * Vector::kLanes;
static_assert(64 % kPanelColumns == 0, "a panel of columns of W lies within one mask word");

inline int64_t scale_groups(int64_t columns) { return (columns + RLCC_SCALE_COLUMNS - 1) / RLCC_SCALE_COLUMNS; }

// What an expanded value of row n, column k is to be multiplied by: 1 but for int8.
template <class Value>
inline float scale_at(const rlcc_packed_weight& weight, int64_t groups, int64_t n, int64_t k) {
  if constexpr (sizeof(Value) > 1) return 1;
  const uint16_t bf16 = weight.scales[n * groups + k / RLCC_SCALE_COLUMNS];
  return float_from_bits(static_cast<uint32_t>(bf16) << 16) * Vector::kInt8Unit;
}

// What a source of fp32 panels counts depth in, and how it multiplies.
struct SingleColumns {
  using Arithmetic = SingleColumns;       // sources that multiply alike share the register tiles
  static constexpr bool kScaled = false;  // sums over a block of depth are the products
  static constexpr int64_t units(int64_t depth) { return depth; }
  static Vector::F32 multiply_add(Vector::F32 a, Vector::F32 b, Vector::F32 sum) {
    return Vector::fma(a, b, sum);
  }
};

// B[k, i] = W[first + i, k]: depth runs along the columns of W. Each of the panel's rows of W keeps a
// cursor into its values; kLanes rows are expanded side by side (their popcount chains are independent)
// and transposed in registers.
template <class Value>
struct TransposedWeight : SingleColumns {
  static constexpr int64_t kDepthMultiple = 64;  // a block of depth is a whole number of mask words
  static int64_t panels_at_once(const PanelJob&) { return 1; }
  static int64_t most_depth(const PanelJob&) { return kDepthBlock; }

  static int64_t scratch_bytes(const PanelJob&) { return 0; }

  TransposedWeight(const PanelJob& job, char*)
      : job_(job), words_((job.weight.columns + 63) / 64), groups_(scale_groups(job.weight.columns)) {}

  void start(int64_t panel, int64_t) {
    const int64_t first = panel * kPanelColumns;
    for (int i = 0; i < kPanelColumns; ++i) {
      // Past the last row of W: that row again, with no bit kept, so columns of zeros.
      const int64_t n = smaller(first + i, job_.weight.rows - 1);
      keep_[i] = first + i < job_.weight.rows ? ~uint64_t{0} : 0;
      rows_[i] = n;
      mask_rows_[i] = job_.weight.mask + n * words_;
      cursors_[i] = static_cast<const Value*>(job_.weight.values) + job_.weight.row_offsets[n];
    }
  }

  // Rows [begin, end) of B, begin a multiple of kDepthMultiple; writes up to the next multiple.
  void expand(int64_t begin, int64_t end, float* panel, int64_t) {
    for (int v = 0; v < Vector::kPanelVectors; ++v) {
      for (int64_t k = begin; k < end; k += 64) {
        expand_word(v * Vector::kLanes, k / 64, panel + (k - begin) * kPanelColumns + v * Vector::kLanes);
      }
    }
  }

 private:
  void expand_word(int first, int64_t j, float* panel) {
    uint64_t words[Vector::kLanes];
    const Value* cursor[Vector::kLanes];
    [[maybe_unused]] float scales[Vector::kLanes];
    for (int r = 0; r < Vector::kLanes; ++r) {
      words[r] = mask_rows_[first + r][j] & keep_[first + r];
      cursor[r] = cursors_[first + r];
      scales[r] = scale_at<Value>(job_.weight, groups_, rows_[first + r], j * 64);
    }
    for (int g = 0; g < 64 / Vector::kLanes; ++g) {
      typename Vector::F32 block[Vector::kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < Vector::kLanes; ++r) {
        const typename Vector::Pattern pattern = Vector::pattern(words[r], 0);
        words[r] >>= Vector::kLanes;
        block[r] = Vector::expand(pattern, cursor[r]);
        if constexpr (sizeof(Value) == 1) block[r] = Vector::mul(block[r], Vector::broadcast(scales + r));
        cursor[r] += Vector::popcount(pattern);
      }
      Vector::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < Vector::kLanes; ++i) {
        Vector::store(panel + (g * Vector::kLanes + i) * kPanelColumns, block[i]);
      }
    }
    for (int r = 0; r < Vector::kLanes; ++r) cursors_[first + r] = cursor[r];
  }

  const PanelJob& job_;
  const int64_t words_, groups_;
  int64_t rows_[kPanelColumns];
  const uint64_t* mask_rows_[kPanelColumns];
  const Value* cursors_[kPanelColumns];
  uint64_t keep_[kPanelColumns];
};

// Where in the values the first survivor of row n at or behind column k is. k < columns.
inline int64_t cursor_at(const rlcc_packed_weight& weight, int64_t n, int64_t k) {
  const uint64_t* mask_row = weight.mask + n * ((weight.columns + 63) / 64);
  int64_t cursor = weight.row_offsets[n];
  for (int64_t j = 0; j < k / 64; ++j) cursor += Vector::popcount(mask_row[j]);
  const uint64_t earlier_bits = (uint64_t{1} << (k % 64)) - 1;
  return cursor + Vector::popcount(mask_row[k / 64] & earlier_bits);
}

// B[n, i] = W[n, first + i]: depth runs along the rows of W. Some panels side by side, so that what is read of
// a row are whole lines one after the other. Panels are visited left to right, and each row of W keeps a
// cursor, found once by counting the bits before the first panel.
template <class Value>
struct PlainWeight : SingleColumns {
  static constexpr int64_t kDepthMultiple = 1;
  // As many as leave their sums in the second-level cache; a block of B then in the first, nearly.
  static int64_t panels_at_once(const PanelJob& job) {
    const int64_t sums = (job.most_rows + kTileRows - 1) / kTileRows * kTileRows * kPanelColumns * 4;
    const int64_t fit = kSumBytes / sums;
    return fit < 8 ? 8 : fit > 64 ? 64 : fit;
  }
  static int64_t most_depth(const PanelJob& job) {
    return kBlockBytes / (panels_at_once(job) * kPanelColumns * 4);
  }

  static int64_t scratch_bytes(const PanelJob& job) {
    return job.weight.rows * static_cast<int64_t>(sizeof(int64_t));
  }

  PlainWeight(const PanelJob& job, char* scratch)
      : job_(job),
        words_((job.weight.columns + 63) / 64),
        groups_(scale_groups(job.weight.columns)),
        cursors_(reinterpret_cast<int64_t*>(scratch)) {}

  void start(int64_t panel, int64_t panels) {
    const int64_t first = panel * kPanelColumns;
    if (first != next_column_) {
      for (int64_t n = 0; n < job_.weight.rows; ++n) cursors_[n] = cursor_at(job_.weight, n, first);
    }
    panels_ = panels;
    column_ = first;
    next_column_ = first + panels * kPanelColumns;
  }

  // Rows [begin, end) of B, of panel p at b + p * stride.
  void expand(int64_t begin, int64_t end, float* b, int64_t stride) {
    for (int64_t n = begin; n < end; ++n, b += kPanelColumns) {
      const Value *cursor = this->cursor(n), *const first = cursor, *const ahead = cursor_ahead(n);
      for (int64_t p = 0; p < panels_; ++p) {
        prefetch_bytes(ahead + (cursor - first), 0);
        const uint64_t bits = this->bits(n, p);
        [[maybe_unused]] const float scale =
            scale_at<Value>(job_.weight, groups_, n, column_ + p * kPanelColumns);
#pragma GCC unroll 4
        for (int v = 0; v < Vector::kPanelVectors; ++v) {
          const typename Vector::Pattern pattern = Vector::pattern(bits, v);
          typename Vector::F32 w = Vector::expand(pattern, cursor);
          if constexpr (sizeof(Value) == 1) w = Vector::mul(w, Vector::broadcast(&scale));
          Vector::store(b + p * stride + v * Vector::kLanes, w);
          cursor += Vector::popcount(pattern);
        }
      }
      taken(n, cursor);
    }
  }

  int64_t panels() const { return panels_; }
  // Row n's mask bits of panel p, and where its survivors in these panels begin.
  uint64_t bits(int64_t n, int64_t p) const {
    const int64_t column = column_ + p * kPanelColumns;
    return job_.weight.mask[n * words_ + column / 64] >> (column % 64);
  }
  const Value* cursor(int64_t n) const { return static_cast<const Value*>(job_.weight.values) + cursors_[n]; }
  void taken(int64_t n, const Value* cursor) {
    cursors_[n] = cursor - static_cast<const Value*>(job_.weight.values);
  }
  // The survivors of a row that comes some hundred cycles later, to be asked for at the pace of row n's; its
  // mask is asked for here.
  const Value* cursor_ahead(int64_t n) const {
    const int64_t row = smaller(n + kPanelsAhead / panels_, job_.weight.rows - 1);
    const uint64_t* mask = job_.weight.mask + row * words_ + column_ / 64;
    for (int64_t j = 0; j < panels_ * kPanelColumns / 64; j += 8) prefetch_bytes(mask + j, 0);
    return cursor(row);
  }

 private:
  const PanelJob& job_;
  const int64_t words_, groups_;
  static constexpr int64_t kSumBytes = 262144, kBlockBytes = 65536, kPanelsAhead = 128;

  int64_t* cursors_;  // [N] into values
  int64_t panels_ = 1, column_ = 0;
  int64_t next_column_ = -1;  // where the cursors stand
};

// Rows [begin, end) of x, `count` columns from `first` on, as a panel. One function for all dtypes of the
// values.
template <class Element>
__attribute__((noinline)) void widen_rows(const PanelJob& job, int64_t begin, int64_t end, int64_t first,
                                          int64_t count, float* panel) {
  for (int64_t m = begin; m < end; ++m, panel += kPanelColumns) {
    const Element* row = static_cast<const Element*>(job.b) + m * job.b_stride + first;
    for (int64_t i = 0; i < count; ++i) panel[i] = Vector::widen(row[i]);
    for (int64_t i = count; i < kPanelColumns; ++i) panel[i] = 0;
  }
}

// B[m, i] = x[m, first + i], for the gradient of the values: depth runs along the rows of x.
struct DenseRows : SingleColumns {
  static constexpr int64_t kDepthMultiple = 1;
  static int64_t panels_at_once(const PanelJob&) { return 1; }
  static int64_t most_depth(const PanelJob&) { return kDepthBlock; }

  static int64_t scratch_bytes(const PanelJob&) { return 0; }
  DenseRows(const PanelJob& job, char*) : job_(job) {}

  void start(int64_t panel, int64_t) { first_ = panel * kPanelColumns; }

  void expand(int64_t begin, int64_t end, float* panel, int64_t) {
    const int64_t count = smaller(kPanelColumns, job_.columns - first_);
    switch (job_.a_dtype) {
      case RLCC_F32: return widen_rows<float>(job_, begin, end, first_, count, panel);
      case RLCC_BF16: return widen_rows<Bf16>(job_, begin, end, first_, count, panel);
      default: return widen_rows<F16>(job_, begin, end, first_, count, panel);
    }
  }

 private:
  const PanelJob& job_;
  int64_t first_ = 0;
};

}  // namespace
}  // namespace restorelcc::cpu
