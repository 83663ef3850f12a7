// Cases of head_moments that the CPU's and the CUDA kernels' tests share.
#pragma once

#include "matrices.h"

namespace restorelcc::test {

struct Moments {
  std::vector<double> total, gram;

  Moments(int64_t heads, int64_t dim)
      : total(static_cast<size_t>(heads * dim)), gram(static_cast<size_t>(heads * dim * dim)) {}
  bool operator==(const Moments& other) const { return total == other.total && gram == other.gram; }
};

struct Activations {
  Matrix dense, pruned;  // [T, H D]
  int64_t heads, dim;

  Activations(int64_t tokens, int64_t h, int64_t d, rlcc_dtype dtype, std::mt19937& random,
              int64_t dense_gap = 3)
      : dense(tokens, h * d, dtype, dense_gap), pruned(tokens, h * d, dtype, 0), heads(h), dim(d) {
    fill_normal(dense, random);
    fill_normal(pruned, random);
  }

  rlcc_head_moments_params params(int64_t begin, int64_t end, Moments& out) const {
    const int64_t bytes = static_cast<int64_t>(dtype_bytes(dense.dtype()));
    rlcc_head_moments_params p{};
    p.z_dense = static_cast<const char*>(dense.data()) + begin * dense.stride() * bytes;
    p.z_pruned = static_cast<const char*>(pruned.data()) + begin * pruned.stride() * bytes;
    p.tokens = end - begin;
    p.heads = heads;
    p.head_dim = dim;
    p.dense_token_stride = dense.stride();
    p.pruned_token_stride = pruned.stride();
    p.dense_head_stride = p.pruned_head_stride = dim;
    p.dtype = dense.dtype();
    p.total = out.total.data();
    p.gram = out.gram.data();
    return p;
  }
};

// Relative to the diagonal: |sum a b| <= sqrt(sum a^2 sum b^2).
inline void close(const Moments& got, const Moments& expected, int64_t heads, int64_t dim, double relative,
                  const std::string& name) {
  for (int64_t h = 0; h < heads; ++h) {
    const double* g = got.gram.data() + h * dim * dim;
    const double* e = expected.gram.data() + h * dim * dim;
    for (int64_t i = 0; i < dim; ++i) {
      const double spread = std::sqrt(e[i * dim + i]);
      const double sum_error = std::fabs(got.total[static_cast<size_t>(h * dim + i)] -
                                         expected.total[static_cast<size_t>(h * dim + i)]);
      CHECK(sum_error <= 100 * relative * (spread + 1e-300)) << name;
      for (int64_t j = 0; j < dim; ++j) {
        CHECK(std::fabs(g[i * dim + j] - e[i * dim + j]) <= relative * spread * std::sqrt(e[j * dim + j]))
            << name << " head " << h << " at " << i << ", " << j;
        CHECK(g[i * dim + j] == g[j * dim + i]) << name << " is not symmetric";
      }
    }
  }
}

// A call that must be refused, and leave its outputs as they were.
inline const std::function<void(rlcc_head_moments_params&)> kRefusedMoments[] = {
    [](rlcc_head_moments_params& p) { p.z_dense = nullptr; },
    [](rlcc_head_moments_params& p) { p.z_pruned = nullptr; },
    [](rlcc_head_moments_params& p) { p.total = nullptr; },
    [](rlcc_head_moments_params& p) { p.gram = nullptr; },
    [](rlcc_head_moments_params& p) { p.tokens = -1; },
    [](rlcc_head_moments_params& p) { p.heads = -1; },
    [](rlcc_head_moments_params& p) { p.head_dim = int64_t{1} << 40; },
    [](rlcc_head_moments_params& p) { p.tokens = INT64_MAX; },
    [](rlcc_head_moments_params& p) { p.dense_token_stride = -1; },
    [](rlcc_head_moments_params& p) { p.dtype = static_cast<rlcc_dtype>(5); },
};

}  // namespace restorelcc::test
