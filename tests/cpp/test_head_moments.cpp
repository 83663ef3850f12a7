// head_moments against the float64 oracle; chunks and merges; exact symmetry.
#include <algorithm>

#include "matrices.h"

using namespace restorelcc::test;

namespace {

struct Moments {
  std::vector<double> total, gram;

  Moments(int64_t heads, int64_t dim)
      : total(static_cast<size_t>(heads * dim)), gram(static_cast<size_t>(heads * dim * dim)) {}
};

struct Activations {
  Matrix dense, pruned;  // [T, H D]
  int64_t heads, dim;

  Activations(int64_t tokens, int64_t h, int64_t d, rlcc_dtype dtype, std::mt19937& random)
      : dense(tokens, h * d, dtype, 3), pruned(tokens, h * d, dtype, 0), heads(h), dim(d) {
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
void close(const Moments& got, const Moments& expected, int64_t heads, int64_t dim, double relative,
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

void against_oracle(const char* isa) {
  std::mt19937 random(21);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t tokens : {0, 1, 2, 127, 129, 300}) {
      for (int64_t dim : {1, 2, 3, 17, 64, 65}) {
        for (int64_t heads : {1, 3, 9}) {
          const Activations z(tokens, heads, dim, dtype, random);
          Moments got(heads, dim), expected(heads, dim);
          const rlcc_head_moments_params ours = z.params(0, tokens, got),
                                         oracle = z.params(0, tokens, expected);
          CHECK_STATUS(rlcc_head_moments(&ours), RLCC_OK);
          CHECK_STATUS(rlcc_head_moments_reference(&oracle), RLCC_OK);
          close(got, expected, heads, dim, 1e-13, isa);

          Moments chunked(heads, dim);  // accumulated over uneven calls
          for (int64_t begin = 0; begin < tokens;) {
            const int64_t end = std::min(tokens, begin + 1 + begin / 2);
            const rlcc_head_moments_params part = z.params(begin, end, chunked);
            CHECK_STATUS(rlcc_head_moments(&part), RLCC_OK);
            begin = end;
          }
          close(chunked, got, heads, dim, 1e-12, std::string(isa) + " chunked");

          Moments merged(heads, dim), rest(heads, dim);  // two accumulators, added
          const rlcc_head_moments_params one = z.params(0, tokens / 3, merged),
                                         two = z.params(tokens / 3, tokens, rest);
          CHECK_STATUS(rlcc_head_moments(&one), RLCC_OK);
          CHECK_STATUS(rlcc_head_moments(&two), RLCC_OK);
          for (size_t i = 0; i < merged.gram.size(); ++i) merged.gram[i] += rest.gram[i];
          for (size_t i = 0; i < merged.total.size(); ++i) merged.total[i] += rest.total[i];
          close(merged, got, heads, dim, 1e-12, std::string(isa) + " merged");
        }
      }
    }
  }
}

// Differences of nearly equal numbers: widened before the subtraction, nothing is lost.
void widened_first(const char* isa) {
  Matrix dense(1, 1, RLCC_F32), pruned(1, 1, RLCC_F32);
  dense.set(0, 0, 1e8f);
  pruned.set(0, 0, 1.25f);
  double total = 0, gram = 0;
  rlcc_head_moments_params p{};
  p.z_dense = dense.data();
  p.z_pruned = pruned.data();
  p.tokens = p.heads = p.head_dim = 1;
  p.total = &total;
  p.gram = &gram;
  CHECK_STATUS(rlcc_head_moments(&p), RLCC_OK);
  CHECK(total == 1e8 - 1.25) << isa;
  CHECK(gram == (1e8 - 1.25) * (1e8 - 1.25)) << isa;
}

void refused() {
  std::mt19937 random(22);
  const Activations z(4, 2, 8, RLCC_F32, random);
  const std::function<void(rlcc_head_moments_params&)> wrongs[] = {
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
  for (const auto& wrong : wrongs) {
    Moments out(2, 8);
    rlcc_head_moments_params p = z.params(0, 4, out);
    wrong(p);
    CHECK_STATUS(rlcc_head_moments(&p), RLCC_INVALID_ARGUMENT);
    CHECK(out.total == Moments(2, 8).total && out.gram == Moments(2, 8).gram);
  }
}

}  // namespace

int main() {
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    against_oracle(isa);
    widened_first(isa);
  }
  refused();
  return report("head_moments");
}
