// C[M, columns] = A[M, depth] B[depth, columns] for many rows.
//
//   for some panels of kPanelColumns columns:      (parallel)
//     for block of depth:                          fits the first-level cache as fp32
//       expand B[block, panels]                    survivors and zeros, once per block of rows of A
//       for panel, for tile of kTileRows rows of A:
//         C[tile, panel] += A[tile, block] B[block, panel]      in registers
//     finish C[:, panels]                          compensation, bias, residual, rounding
//
// Expanding costs about a third of a cycle a weight (AVX2) and is shared by all rows of A; from a few dozen
// rows on the time is that of the dense product. Each element of C is one chain of additions in the order of
// depth, in blocks that depend on the job alone: the bits do not depend on the split.

namespace restorelcc::cpu {
namespace {

// C[Rows, kPanelColumns] (+)= A[Rows, depth] B[depth, kPanelColumns]; a is [depth, kTileRows]. Depth counts in
// units of the source: a column each, or (bf16 on both sides, with vdpbf16ps) two columns in one 32-bit lane.
// The sum over this depth is multiplied by scales[kPanelColumns] where the source is scaled.
template <class Arithmetic, int Rows>
__attribute__((noinline)) void multiply_tile(int64_t depth, const float* a, const float* b, const float* scales,
                                             float* c, bool accumulate) {
  typename Vector::F32 sum[Rows][Vector::kPanelVectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vector::kPanelVectors; ++v) sum[r][v] = Vector::zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename Vector::F32 b_row[Vector::kPanelVectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vector::kPanelVectors; ++v) b_row[v] = Vector::load(b + v * Vector::kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const typename Vector::F32 a_element = Vector::broadcast(a + r);
#pragma GCC unroll 4
      for (int v = 0; v < Vector::kPanelVectors; ++v)
        sum[r][v] = Arithmetic::multiply_add(a_element, b_row[v], sum[r][v]);
    }
    a += kTileRows;
    b += kPanelColumns;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vector::kPanelVectors; ++v) {
      float* c_rv = c + r * kPanelColumns + v * Vector::kLanes;
      if constexpr (Arithmetic::kScaled)
        sum[r][v] = Vector::mul(sum[r][v], Vector::load(scales + v * Vector::kLanes));
      Vector::store(c_rv, accumulate ? Vector::add(Vector::load(c_rv), sum[r][v]) : sum[r][v]);
    }
  }
}

// Rows at run time to Rows at compile time.
template <class Arithmetic, int Rows = kTileRows>
inline void multiply_rows(int64_t rows, int64_t depth, const float* a, const float* b, const float* scales,
                          float* c, bool accumulate) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return multiply_rows<Arithmetic, Rows - 1>(rows, depth, a, b, scales, c, accumulate);
  }
  multiply_tile<Arithmetic, Rows>(depth, a, b, scales, c, accumulate);
}

// Blocks of equal size rather than full ones and a rest.
template <class Source>
inline int64_t depth_block(const PanelJob& job) {
  const int64_t depth = Source::units(job.depth), most = Source::most_depth(job),
                multiple = Source::kDepthMultiple;
  const int64_t blocks = (depth + most - 1) / most;
  const int64_t block = blocks == 0 ? multiple : (depth + blocks - 1) / blocks;
  return (block + multiple - 1) / multiple * multiple;
}

template <class Element>
void pack_a(const PanelJob& job, int64_t tile_begin, int64_t tile_end) {
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    const int64_t rows = smaller(kTileRows, job.rows - tile * kTileRows);
    const Element* a[kTileRows];
    for (int64_t r = 0; r < kTileRows; ++r) {
      // Missing rows repeat the last one; their sums are never computed.
      a[r] = static_cast<const Element*>(job.a) + (tile * kTileRows + smaller(r, rows - 1)) * job.a_stride;
    }
    float* packed = reinterpret_cast<float*>(job.a_tiles) + tile * kTileRows * job.depth;
    for (int64_t k = 0; k < job.depth; ++k) {
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r)
        packed[k * kTileRows + r] = Vector::widen(a[r][k * job.a_depth_stride]);
    }
  }
}

void panel_pack(const PanelJob& job, int64_t tile_begin, int64_t tile_end) {
  switch (job.a_dtype) {
    case RLCC_F32: return pack_a<float>(job, tile_begin, tile_end);
    case RLCC_BF16: return pack_a<Bf16>(job, tile_begin, tile_end);
    default: return pack_a<F16>(job, tile_begin, tile_end);
  }
}

int64_t panel_tile_bytes(const PanelJob& job) { return kTileRows * job.depth * 4; }

// Scratch: B block | C panels | what the source keeps.
template <class Source>
int64_t panel_b_bytes(const PanelJob& job) {
  return Source::panels_at_once(job) * depth_block<Source>(job) * kPanelColumns * 4;
}
template <class Source>
int64_t panel_c_bytes(const PanelJob& job, int64_t tiles) {
  return Source::panels_at_once(job) * tiles * kTileRows * kPanelColumns * 4;
}

template <class Source>
int64_t panel_scratch_bytes(const PanelJob& job, int64_t tiles) {
  return panel_b_bytes<Source>(job) + panel_c_bytes<Source>(job, tiles) + Source::scratch_bytes(job);
}

// finish(row, first, count, c): what becomes of one row of a panel of C.
template <class Source, class Finish>
inline void panel_products(const PanelJob& job, int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
                           int64_t tile_end, char* scratch, const Finish& finish) {
  float* b = reinterpret_cast<float*>(scratch);
  float* c = reinterpret_cast<float*>(scratch + panel_b_bytes<Source>(job));
  Source source(job, scratch + panel_b_bytes<Source>(job) + panel_c_bytes<Source>(job, tile_end - tile_begin));
  const int64_t units = Source::units(job.depth);
  const int64_t at_once = Source::panels_at_once(job);
  const int64_t block = depth_block<Source>(job), b_stride = block * kPanelColumns;
  const int64_t row_begin = tile_begin * kTileRows, row_end = smaller(tile_end * kTileRows, job.rows);
  const int64_t c_stride = (tile_end - tile_begin) * kTileRows * kPanelColumns;
  const float* a_tiles = reinterpret_cast<const float*>(job.a_tiles);

  for (int64_t panel = panel_begin; panel < panel_end; panel += at_once) {
    const int64_t panels = smaller(at_once, panel_end - panel);
    source.start(panel, panels);
    int64_t k = 0;
    do {  // once even if depth is 0: C is then the empty sum
      const int64_t depth = smaller(block, units - k);
      source.expand(k, k + depth, b, b_stride);
      const float* scales = nullptr;
      if constexpr (Source::kScaled) scales = source.scales();
      for (int64_t p = 0; p < panels; ++p) {
        for (int64_t m = row_begin; m < row_end; m += kTileRows) {
          multiply_rows<typename Source::Arithmetic>(
              smaller(kTileRows, row_end - m), depth, a_tiles + m * units + k * kTileRows, b + p * b_stride,
              scales, c + p * c_stride + (m - row_begin) * kPanelColumns, k > 0);
        }
      }
      k += block;
    } while (k < units);

    for (int64_t p = 0; p < panels; ++p) {
      const int64_t first = (panel + p) * kPanelColumns, count = smaller(kPanelColumns, job.columns - first);
      for (int64_t m = row_begin; m < row_end; ++m) {
        finish(m, first, count, c + p * c_stride + (m - row_begin) * kPanelColumns);
      }
    }
  }
}

template <class Source>
void panel_run(const PanelJob& job, int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
               int64_t tile_end, char* scratch) {
  panel_products<Source>(
      job, panel_begin, panel_end, tile_begin, tile_end, scratch,
      [&](int64_t m, int64_t first, int64_t count, float* c) { finish_row(job.output, m, first, count, c); });
}

int64_t grad_values_scratch_bytes(const PanelJob& job, int64_t tiles) {
  return panel_scratch_bytes<DenseRows>(job, tiles) + tiles * kTileRows * static_cast<int64_t>(sizeof(int64_t));
}

// Of C [N, K] only what the mask keeps, at the survivors' places. Panels are visited left to right, and each
// row of W keeps a cursor into its values.
template <class Value>
void grad_values_run(const PanelJob& job, int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
                     int64_t tile_end, char* scratch) {
  Value* values = static_cast<Value*>(job.output.y);
  const int64_t words = (job.weight.columns + 63) / 64, row_begin = tile_begin * kTileRows;
  const int64_t tiles = tile_end - tile_begin;
  int64_t* cursors = reinterpret_cast<int64_t*>(scratch + panel_scratch_bytes<DenseRows>(job, tiles));
  for (int64_t row = row_begin; row < smaller(tile_end * kTileRows, job.rows); ++row) {
    cursors[row - row_begin] = cursor_at(job.weight, job.first_row + row, panel_begin * kPanelColumns);
  }
  panel_products<DenseRows>(
      job, panel_begin, panel_end, tile_begin, tile_end, scratch,
      [&](int64_t row, int64_t first, int64_t count, float* c) {
        const uint64_t in_panel = count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
        uint64_t word =
            (job.weight.mask[(job.first_row + row) * words + first / 64] >> (first % 64)) & in_panel;
        Value* value = values + cursors[row - row_begin];
        cursors[row - row_begin] += Vector::popcount(word);
        // By set bits: asking each place whether it survived is a branch that nobody can predict.
        for (; word != 0; word &= word - 1) narrow(c[__builtin_ctzll(word)], value++);
      });
}

#if defined(RLCC_DOT_BF16)
// Where x is bf16 too, two columns of depth at a time; else as for other values.
inline bool in_pairs(const PanelJob& job) { return job.a_dtype == RLCC_BF16; }

void paired_panel_pack(const PanelJob& job, int64_t tile_begin, int64_t tile_end) {
  in_pairs(job) ? pack_a_pairs(job, tile_begin, tile_end) : panel_pack(job, tile_begin, tile_end);
}
int64_t paired_panel_tile_bytes(const PanelJob& job) {
  return in_pairs(job) ? kTileRows * PairsOfColumns::units(job.depth) * 4 : panel_tile_bytes(job);
}
template <class Single, class Paired>
int64_t paired_panel_scratch_bytes(const PanelJob& job, int64_t tiles) {
  return in_pairs(job) ? panel_scratch_bytes<Paired>(job, tiles) : panel_scratch_bytes<Single>(job, tiles);
}
template <class Single, class Paired>
void paired_panel_run(const PanelJob& job, int64_t panel_begin, int64_t panel_end, int64_t tile_begin,
                      int64_t tile_end, char* scratch) {
  in_pairs(job) ? panel_run<Paired>(job, panel_begin, panel_end, tile_begin, tile_end, scratch)
                : panel_run<Single>(job, panel_begin, panel_end, tile_begin, tile_end, scratch);
}
template <class Single, class Paired>
constexpr panel_kernel paired_panel_kernel_of = {kTileRows,
                                                 kPanelColumns,
                                                 Single::panels_at_once,
                                                 paired_panel_tile_bytes,
                                                 paired_panel_scratch_bytes<Single, Paired>,
                                                 paired_panel_pack,
                                                 paired_panel_run<Single, Paired>};
#endif

template <class Source>
constexpr panel_kernel panel_kernel_of = {
    kTileRows,  kPanelColumns,    Source::panels_at_once, panel_tile_bytes, panel_scratch_bytes<Source>,
    panel_pack, panel_run<Source>};
template <class Value>
constexpr panel_kernel sparse_linear_grad_values_panel_of = {
    kTileRows,  kPanelColumns,         DenseRows::panels_at_once, panel_tile_bytes, grad_values_scratch_bytes,
    panel_pack, grad_values_run<Value>};

#if defined(RLCC_DOT_BF16)
template <class Value>
constexpr panel_kernel sparse_linear_panel_of = panel_kernel_of<TransposedWeight<Value>>;
template <>
constexpr panel_kernel sparse_linear_panel_of<Bf16> =
    paired_panel_kernel_of<TransposedWeight<Bf16>, PairedTransposedWeight<Bf16>>;
template <>
constexpr panel_kernel sparse_linear_panel_of<int8_t> =
    paired_panel_kernel_of<TransposedWeight<int8_t>, PairedTransposedWeight<int8_t>>;
template <class Value>
constexpr panel_kernel sparse_linear_grad_x_panel_of =
    kIsBf16<Value> ? paired_panel_kernel_of<PlainWeight<Value>, PairedPlainWeight>
                   : panel_kernel_of<PlainWeight<Value>>;
#else
template <class Value>
constexpr panel_kernel sparse_linear_panel_of = panel_kernel_of<TransposedWeight<Value>>;
template <class Value>
constexpr panel_kernel sparse_linear_grad_x_panel_of = panel_kernel_of<PlainWeight<Value>>;
#endif

}  // namespace
}  // namespace restorelcc::cpu
