// Panels of bf16 pairs, where both W and x are bf16: one 32-bit lane holds two neighbours in depth, and
// vdpbf16ps multiplies and adds both. Half the panel, half the multiplications; products exact, sums fp32.

#if defined(RLCC_DOT_BF16)
namespace restorelcc::cpu {
namespace {

struct PairsOfColumns {
  static constexpr int64_t units(int64_t depth) { return (depth + 1) / 2; }
  static Vector::F32 multiply_add(Vector::F32 a, Vector::F32 b, Vector::F32 sum) {
    return Vector::dot_lanes(a, b, sum);
  }
};

// B[u, i] = (W[first + i, 2 u], W[first + i, 2 u + 1]). As TransposedWeight, 32 columns of W at a time.
struct PairedTransposedWeight : PairsOfColumns {
  static constexpr int64_t kDepthMultiple = 32;  // a block of depth is a whole number of mask words

  static int64_t scratch_bytes(const PanelJob&) { return 0; }

  PairedTransposedWeight(const PanelJob& job, char*) : job_(job), words_((job.weight.columns + 63) / 64) {}

  void start_panel(int64_t panel) {
    const int64_t first = panel * kPanelColumns;
    for (int i = 0; i < kPanelColumns; ++i) {
      // Past the last row of W: that row again, with no bit kept, so columns of zeros.
      const int64_t n = smaller(first + i, job_.weight.rows - 1);
      keep_[i] = first + i < job_.weight.rows ? ~uint64_t{0} : 0;
      mask_rows_[i] = job_.weight.mask + n * words_;
      cursors_[i] = static_cast<const Bf16*>(job_.weight.values) + job_.weight.row_offsets[n];
    }
  }

  // Units [begin, end) of B, begin a multiple of kDepthMultiple; writes up to the next multiple.
  void expand(int64_t begin, int64_t end, float* panel) {
    for (int v = 0; v < Vector::kPanelVectors; ++v) {
      for (int64_t u = begin; u < end; u += 32) {
        expand_word(v * Vector::kLanes, u / 32, panel + (u - begin) * kPanelColumns + v * Vector::kLanes);
      }
    }
  }

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
  const int64_t words_;
  const uint64_t* mask_rows_[kPanelColumns];
  const Bf16* cursors_[kPanelColumns];
  uint64_t keep_[kPanelColumns];
};

// B[u, i] = (W[2 u, first + i], W[2 u + 1, first + i]): two rows of PlainWeight's panel, woven.
struct PairedPlainWeight : PairsOfColumns {
  static constexpr int64_t kDepthMultiple = 1;

  static int64_t scratch_bytes(const PanelJob& job) {
    return PlainWeight<Bf16>::scratch_bytes(job) + 2 * kPanelColumns * static_cast<int64_t>(sizeof(float));
  }

  PairedPlainWeight(const PanelJob& job, char* scratch)
      : job_(job),
        rows_(job, scratch),
        woven_(reinterpret_cast<float*>(scratch + PlainWeight<Bf16>::scratch_bytes(job))) {}

  void start_panel(int64_t panel) { rows_.start_panel(panel); }

  void expand(int64_t begin, int64_t end, float* panel) {
    for (int64_t u = begin; u < end; ++u, panel += kPanelColumns) {
      const int64_t n = 2 * u, n_end = smaller(n + 2, job_.weight.rows);
      rows_.expand(n, n_end, woven_);
      for (int v = 0; v < Vector::kPanelVectors; ++v) {
        const float* row = woven_ + v * Vector::kLanes;
        const Vector::F32 odd = n_end == n + 2 ? Vector::load(row + kPanelColumns) : Vector::zero();
        Vector::store(panel + v * Vector::kLanes, Vector::weave(Vector::load(row), odd));
      }
    }
  }

 private:
  const PanelJob& job_;
  PlainWeight<Bf16> rows_;
  float* woven_;  // [2, kPanelColumns]
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
