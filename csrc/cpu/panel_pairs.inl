// Panels of bf16 pairs, where both W and x are bf16: one 32-bit lane holds two neighbours in depth, and
// vdpbf16ps multiplies and adds both. Half the panel, half the multiplications; products exact, sums fp32.

#if defined(RLCC_DOT_BF16)
namespace restorelcc::cpu {
namespace {

struct PairsOfColumns {
  static constexpr int64_t units(int64_t depth) { return (depth + 1) / 2; }
};

template <bool Scaled>
struct PairArithmetic {
  static constexpr bool kScaled = Scaled;
  static Vector::F32 multiply_add(Vector::F32 a, Vector::F32 b, Vector::F32 sum) {
    return Vector::dot_lanes(a, b, sum);
  }
};

// B[u, i] = (W[first + i, 2 u], W[first + i, 2 u + 1]). As TransposedWeight, 32 columns of W at a time. Of int8
// values without their scales: integers up to 127 are exact in bf16, and the scale of a row and group of
// columns multiplies the group's sum.
template <class Value>
struct PairedTransposedWeight : PairsOfColumns {
  static constexpr bool kScaled = sizeof(Value) == 1;
  using Arithmetic = PairArithmetic<kScaled>;
  static constexpr int64_t kDepthMultiple =
      kScaled ? RLCC_SCALE_COLUMNS / 2 : 32;  // whole mask words, or a group
  static int64_t panels_at_once(const PanelJob&) { return 1; }
  static int64_t most_depth(const PanelJob&) { return kScaled ? RLCC_SCALE_COLUMNS / 2 : kDepthBlock; }

  static int64_t scratch_bytes(const PanelJob&) { return 0; }

  PairedTransposedWeight(const PanelJob& job, char*)
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

  // Units [begin, end) of B, begin a multiple of kDepthMultiple; writes up to the next multiple.
  void expand(int64_t begin, int64_t end, float* panel, int64_t) {
    for (int v = 0; v < Vector::kPanelVectors; ++v) {
      for (int64_t u = begin; u < end; u += 32) {
        expand_word(v * Vector::kLanes, u / 32, panel + (u - begin) * kPanelColumns + v * Vector::kLanes);
      }
    }
    if constexpr (kScaled) {
      for (int i = 0; i < kPanelColumns; ++i) {
        // Without columns there are no scales either, and the sums are empty.
        scales_[i] = begin < end ? scale_at<Value>(job_.weight, groups_, rows_[i], 2 * begin) : 0;
      }
    }
  }
  const float* scales() const { return scales_; }

 private:
  void expand_word(int first, int64_t j, float* panel) {
    for (int half = 0; half < 2; ++half) {
      typename Vector::F32 block[Vector::kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < Vector::kLanes; ++r) {
        const uint64_t word = mask_rows_[first + r][j] & keep_[first + r];
        const uint32_t bits = static_cast<uint32_t>(word >> (32 * half));
        block[r] = Vector::as_lanes(Vector::expand_pairs(bits, cursors_[first + r]));
        cursors_[first + r] += Vector::popcount(bits);
      }
      Vector::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < Vector::kLanes; ++i) {
        Vector::store(panel + (half * Vector::kLanes + i) * kPanelColumns, block[i]);
      }
    }
  }

  const PanelJob& job_;
  const int64_t words_, groups_;
  int64_t rows_[kPanelColumns];
  const uint64_t* mask_rows_[kPanelColumns];
  const Value* cursors_[kPanelColumns];
  alignas(64) float scales_[kPanelColumns];  // of the last block expanded, if scaled
  uint64_t keep_[kPanelColumns];
};

// B[u, i] = (W[2 u, first + i], W[2 u + 1, first + i]): two rows of W, woven.
struct PairedPlainWeight : PairsOfColumns {
  using Rows = PlainWeight<Bf16>;
  static constexpr bool kScaled = false;
  using Arithmetic = PairArithmetic<false>;
  static constexpr int64_t kDepthMultiple = 1;
  static int64_t panels_at_once(const PanelJob& job) { return Rows::panels_at_once(job); }
  static_assert(kPanelColumns == 32, "a panel's row is one expansion");
  static int64_t most_depth(const PanelJob& job) { return Rows::most_depth(job); }

  static int64_t scratch_bytes(const PanelJob& job) { return Rows::scratch_bytes(job); }

  PairedPlainWeight(const PanelJob& job, char* scratch) : job_(job), rows_(job, scratch) {}

  void start(int64_t panel, int64_t panels) { rows_.start(panel, panels); }

  void expand(int64_t begin, int64_t end, float* b, int64_t stride) {
    for (int64_t u = begin; u < end; ++u, b += kPanelColumns) {
      const int64_t n = 2 * u;
      const bool last = n + 1 == job_.weight.rows;  // then its partner is that row again, with no bit kept
      const int64_t partner = last ? n : n + 1;
      const uint32_t keep = last ? 0 : ~uint32_t{0};
      const Bf16 *even = rows_.cursor(n), *odd = rows_.cursor(partner);
      const Bf16 *const first_even = even, *const first_odd = odd;
      const Bf16 *const even_ahead = rows_.cursor_ahead(n), *const odd_ahead = rows_.cursor_ahead(partner);
      for (int64_t p = 0; p < rows_.panels(); ++p) {
        prefetch_bytes(even_ahead + (even - first_even), 0);
        prefetch_bytes(odd_ahead + (odd - first_odd), 0);
        const uint32_t even_bits = static_cast<uint32_t>(rows_.bits(n, p));
        const uint32_t odd_bits = static_cast<uint32_t>(rows_.bits(partner, p)) & keep;
        const Vector::Pairs low = Vector::expand_pairs(even_bits, even),
                            high = Vector::expand_pairs(odd_bits, odd);
        even += Vector::popcount(even_bits);
        odd += Vector::popcount(odd_bits);
        Vector::store(b + p * stride, Vector::weave_low(low, high));
        Vector::store(b + p * stride + Vector::kLanes, Vector::weave_high(low, high));
      }
      if (!last) rows_.taken(partner, odd);
      rows_.taken(n, even);
    }
  }

 private:
  const PanelJob& job_;
  Rows rows_;
};

// Pairs of columns of A, each row's side by side in 32 bits; zero behind an odd last column.
void pack_a_pairs(const PanelJob& job, int64_t tile_begin, int64_t tile_end) {
  constexpr int64_t kRows = Vector::kTileRows;
  const int64_t units = PairsOfColumns::units(job.depth);
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    uint32_t* packed = reinterpret_cast<uint32_t*>(job.a_tiles) + tile * kRows * units;
    for (int64_t r = 0; r < kRows; ++r) {
      // Missing rows repeat the last one; their sums are never computed.
      const Bf16* a = static_cast<const Bf16*>(job.a) + smaller(tile * kRows + r, job.rows - 1) * job.a_stride;
      for (int64_t u = 0; u < units; ++u) {
        const uint32_t low = a[2 * u * job.a_depth_stride].bits;
        const uint32_t high = 2 * u + 1 < job.depth ? a[(2 * u + 1) * job.a_depth_stride].bits : 0;
        packed[u * kRows + r] = low | (high << 16);
      }
    }
  }
}

}  // namespace
}  // namespace restorelcc::cpu
#endif
