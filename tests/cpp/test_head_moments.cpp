// head_moments against the float64 oracle; chunks and merges; exact symmetry.
#include <algorithm>

#include "head_moments_cases.h"

using namespace restorelcc::test;

namespace {

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
  for (const auto& wrong : kRefusedMoments) {
    Moments out(2, 8);
    rlcc_head_moments_params p = z.params(0, 4, out);
    wrong(p);
    CHECK_STATUS(rlcc_head_moments(&p), RLCC_INVALID_ARGUMENT);
    CHECK(out == Moments(2, 8));
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
