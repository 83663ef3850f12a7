// Panels and tiles of dense matrices, for the register tile of panels.inl: what linear_cross_entropy
// multiplies.
//
//   B transposed   B[u, i] = X[first + i, u]     logits = h Wᵀ: X = W
//   B plain        B[u, i] = X[u, first + i]     gradients: X = W, or h
//   A              [tile][u][kTileRows]          rows of h; exponentials
//
// u counts columns, or pairs of them where both sides are bf16 and vdpbf16ps multiplies (PairsOfColumns).

namespace restorelcc::cpu {
namespace {

// Values widened to fp32.
template <class Element>
struct SinglePanels : SingleColumns {
  using Value = Element;
  static constexpr int64_t kPerUnit = 1;

  static Vector::F32 load(const Value* row) { return Vector::load_lanes(row); }
  static void plain_row(const Value* row, const Value*, float* b) {
    for (int v = 0; v < Vector::kPanelVectors; ++v) {
      Vector::store(b + v * Vector::kLanes, Vector::load_lanes(row + v * Vector::kLanes));
    }
  }
  // kLanes units of A from as many units' worth of floats.
  static Vector::F32 from_floats(const float* p) { return Vector::load(p); }
};

#if defined(RLCC_DOT_BF16)
// Two bf16 a unit.
struct PairPanels : PairsOfColumns {
  using Value = Bf16;
  static constexpr bool kScaled = false;
  using Arithmetic = PairArithmetic<false>;
  static constexpr int64_t kPerUnit = 2;

  static Vector::F32 load(const Value* row) { return Vector::as_lanes(Vector::load_pairs(row)); }
  static void plain_row(const Value* row, const Value* next, float* b) {
    const Vector::Pairs even = Vector::load_pairs(row), odd = Vector::load_pairs(next);
    Vector::store(b, Vector::weave_low(even, odd));
    Vector::store(b + Vector::kLanes, Vector::weave_high(even, odd));
  }
  static Vector::F32 from_floats(const float* p) {
    return Vector::narrow_to_pairs(Vector::load(p), Vector::load(p + Vector::kLanes));
  }
};
#endif

template <class Value>
inline const Value* dense_row(const DenseMatrix& x, int64_t i) {
  return static_cast<const Value*>(x.data) + (x.offsets != nullptr ? x.offsets[i] : i * x.stride);
}

// Elements [first, first + count) of a row, zeros behind them up to kSome; nothing behind them is read.
template <class Value, int kSome>
struct PaddedElements {
  Value elements[kSome];

  const Value* of(const Value* row, int64_t first, int64_t count) {
    if (count >= kSome) return row + first;
    std::memset(elements, 0, sizeof(elements));
    if (count > 0) std::memcpy(elements, row + first, static_cast<size_t>(count) * sizeof(Value));
    return elements;
  }
};

// Units [u, u + kLanes) of kLanes rows of X, transposed: block[i], lane r = unit u + i of row first + r. Rows
// past the last repeat it; units past the last are zero.
template <class Panels>
inline void transposed_units(const DenseMatrix& x, int64_t first, int64_t u,
                             Vector::F32 (&block)[Vector::kLanes]) {
  using Value = typename Panels::Value;
  constexpr int kElements = static_cast<int>(Vector::kLanes * Panels::kPerUnit);
  const int64_t column = u * Panels::kPerUnit, left = x.columns - column;
  if (left >= kElements) {
#pragma GCC unroll 16
    for (int r = 0; r < Vector::kLanes; ++r) {
      block[r] = Panels::load(dense_row<Value>(x, smaller(first + r, x.rows - 1)) + column);
    }
  } else {
    PaddedElements<Value, kElements> padded;
#pragma GCC unroll 16
    for (int r = 0; r < Vector::kLanes; ++r) {
      block[r] = Panels::load(padded.of(dense_row<Value>(x, smaller(first + r, x.rows - 1)), column, left));
    }
  }
  Vector::transpose(block);
}

// B transposed: units [begin, end) of rows first .. first + kPanelColumns of X. Writes whole blocks of kLanes
// units.
template <class Panels>
inline void expand_transposed(const DenseMatrix& x, int64_t first, int64_t begin, int64_t end, float* b) {
  typename Vector::F32 block[Vector::kLanes];
  for (int v = 0; v < Vector::kPanelVectors; ++v) {
    for (int64_t u = begin; u < end; u += Vector::kLanes) {
      transposed_units<Panels>(x, first + v * Vector::kLanes, u, block);
      float* to = b + (u - begin) * kPanelColumns + v * Vector::kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < Vector::kLanes; ++i) Vector::store(to + i * kPanelColumns, block[i]);
    }
  }
}

// B plain: units [begin, end) of columns first .. first + kPanelColumns of X.
template <class Panels>
inline void expand_plain(const DenseMatrix& x, int64_t first, int64_t begin, int64_t end, float* b) {
  using Value = typename Panels::Value;
  const int64_t left = x.columns - first;
  PaddedElements<Value, kPanelColumns> row, next;
  for (int64_t u = begin; u < end; ++u, b += kPanelColumns) {
    const int64_t i = u * Panels::kPerUnit;
    const bool paired = Panels::kPerUnit == 2 && i + 1 < x.rows;
    const Value* const partner = paired ? dense_row<Value>(x, i + 1) : nullptr;
    Panels::plain_row(row.of(dense_row<Value>(x, i), first, left), next.of(partner, first, paired ? left : 0),
                      b);
  }
}

// Units [u, u + kLanes) of one tile of A, held as block[i], lane r = row r.
inline void store_tile(const Vector::F32 (&block)[Vector::kLanes], int64_t units, float* tile) {
  for (int64_t i = 0; i < smaller(Vector::kLanes, units); ++i) {
    Vector::store_tile_rows(tile + i * kTileRows, block[i]);
  }
}

// A from rows of X: missing rows repeat the last one; their sums are never used.
template <class Panels>
inline void pack_dense_tiles(const DenseMatrix& x, char* tiles, int64_t tile_begin, int64_t tile_end) {
  const int64_t units = Panels::units(x.columns);
  typename Vector::F32 block[Vector::kLanes];
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    float* packed = reinterpret_cast<float*>(tiles) + tile * kTileRows * units;
    for (int64_t u = 0; u < units; u += Vector::kLanes) {
      transposed_units<Panels>(x, tile * kTileRows, u, block);
      store_tile(block, units - u, packed + u * kTileRows);
    }
  }
}

// Blocks of equal size rather than full ones and a rest; whole transposed blocks.
inline int64_t dense_depth_block(int64_t units) {
  const int64_t blocks = smaller(1, units) + (units > 0 ? (units - 1) / kDepthBlock : 0);
  const int64_t block = blocks == 0 ? 1 : (units + blocks - 1) / blocks;
  return (block + Vector::kLanes - 1) / Vector::kLanes * Vector::kLanes;
}
constexpr int64_t kDensePanelBytes = (kDepthBlock + Vector::kLanes) * kPanelColumns * 4;

// c [rows, kPanelColumns] (+)= A B for one panel; expand(begin, end, b) gives units of B.
template <class Panels, class Expand>
inline void dense_product(const char* a_tiles, int64_t units, int64_t rows, float* c, bool accumulate, float* b,
                          const Expand& expand) {
  const int64_t block = dense_depth_block(units);
  int64_t u = 0;
  do {  // once even if there is no depth: C is then the empty sum
    const int64_t depth = smaller(block, units - u);
    expand(u, u + depth, b);
    const float* a = reinterpret_cast<const float*>(a_tiles) + u * kTileRows;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      multiply_rows<typename Panels::Arithmetic>(smaller(kTileRows, rows - m), depth, a + m * units, b, nullptr,
                                                 c + m * kPanelColumns, accumulate || u > 0);
    }
    u += block;
  } while (u < units);
}

}  // namespace
}  // namespace restorelcc::cpu
