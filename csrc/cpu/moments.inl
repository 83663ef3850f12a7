// head_moments: with dz = z_dense - z_pruned widened to fp64 before the subtraction,
//   total[d] += sum_t dz[t, d],    gram[i, j] += sum_t dz[t, i] dz[t, j]      for one head.
//
//   for block of kTokenBlock tokens:
//     dz[block, D] in fp64                             64 KiB at D = 64
//     for 4 x kGramColumns tile on or below the diagonal:
//       sums in registers over the block's tokens, then added to gram[i, j] and to gram[j, i]
//
// Only the lower triangle is computed, and one sum goes to both places: the matrix is exactly
// symmetric. The additions of an element happen in an order given by T alone.

namespace restorelcc::cpu {
namespace {

constexpr int64_t kTokenBlock = 128;
constexpr int kGramRows = 4;
constexpr int kGramColumns = Vector::kGramVectors * Vector::kDoubleLanes;

// Row stride of dz: head_dim rounded up so that whole tiles may be read. The excess is zeros.
inline int64_t dz_stride(int64_t head_dim) {
  constexpr int64_t kMultiple = kGramColumns > kGramRows ? kGramColumns : kGramRows;
  static_assert(kMultiple % kGramRows == 0 && kMultiple % kGramColumns == 0, "tiles end together");
  return (head_dim + kMultiple - 1) / kMultiple * kMultiple;
}

int64_t moments_scratch_bytes(int64_t head_dim) { return kTokenBlock * dz_stride(head_dim) * 8; }

template <class Element>
void widen_differences(const rlcc_head_moments_params& p, int64_t head, int64_t token, int64_t tokens,
                       double* dz) {
  const int64_t stride = dz_stride(p.head_dim);
  for (int64_t t = 0; t < tokens; ++t, dz += stride) {
    const Element* dense = static_cast<const Element*>(p.z_dense) + (token + t) * p.dense_token_stride +
                           head * p.dense_head_stride;
    const Element* pruned = static_cast<const Element*>(p.z_pruned) + (token + t) * p.pruned_token_stride +
                            head * p.pruned_head_stride;
    for (int64_t d = 0; d < p.head_dim; ++d)
      dz[d] = double{Vector::widen(dense[d])} - double{Vector::widen(pruned[d])};
    for (int64_t d = p.head_dim; d < stride; ++d) dz[d] = 0;
  }
}

inline void add_gram_tile(int64_t tokens, const double* dz, int64_t stride, int64_t i0, int64_t j0,
                          int64_t i_end, double* gram, int64_t head_dim) {
  typename Vector::F64 sum[kGramRows][Vector::kGramVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kGramRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < Vector::kGramVectors; ++v) sum[r][v] = Vector::zero64();
  }
  for (int64_t t = 0; t < tokens; ++t, dz += stride) {
    typename Vector::F64 row[Vector::kGramVectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vector::kGramVectors; ++v) row[v] = Vector::load64(dz + j0 + v * Vector::kDoubleLanes);
#pragma GCC unroll 4
    for (int r = 0; r < kGramRows; ++r) {
      const typename Vector::F64 element = Vector::broadcast64(dz + i0 + r);
#pragma GCC unroll 4
      for (int v = 0; v < Vector::kGramVectors; ++v) sum[r][v] = Vector::fma64(element, row[v], sum[r][v]);
    }
  }
  double tile[kGramRows][kGramColumns];
  for (int r = 0; r < kGramRows; ++r) {
    for (int v = 0; v < Vector::kGramVectors; ++v) {
      Vector::store64(&tile[r][v * Vector::kDoubleLanes], sum[r][v]);
    }
  }
  for (int64_t i = i0; i < smaller(i0 + kGramRows, i_end); ++i) {
    for (int64_t j = j0; j < smaller(j0 + kGramColumns, i + 1); ++j) {
      gram[i * head_dim + j] += tile[i - i0][j - j0];
      if (j < i) gram[j * head_dim + i] += tile[i - i0][j - j0];
    }
  }
}

template <class Element>
void moments_run(const rlcc_head_moments_params& p, int64_t head, int64_t row_begin, int64_t row_end,
                 char* scratch) {
  double* dz = reinterpret_cast<double*>(scratch);
  double* total = p.total + head * p.head_dim;
  double* gram = p.gram + head * p.head_dim * p.head_dim;
  const int64_t stride = dz_stride(p.head_dim);
  for (int64_t token = 0; token < p.tokens; token += kTokenBlock) {
    const int64_t tokens = smaller(kTokenBlock, p.tokens - token);
    widen_differences<Element>(p, head, token, tokens, dz);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t d = row_begin; d < row_end; ++d) total[d] += dz[t * stride + d];
    }
    for (int64_t i0 = row_begin; i0 < row_end; i0 += kGramRows) {
      for (int64_t j0 = 0; j0 < smaller(i0 + kGramRows, row_end); j0 += kGramColumns) {
        add_gram_tile(tokens, dz, stride, i0, j0, row_end, gram, p.head_dim);
      }
    }
  }
}

template <class Element>
constexpr head_moments_block_kernel head_moments_block_of = {moments_scratch_bytes, moments_run<Element>,
                                                             kGramRows};

}  // namespace
}  // namespace restorelcc::cpu
