// head_moments on the emulated device, through the C entry point, against the float64 oracle; the promises of
// restorelcc/cuda.h. The bits must not depend on the schedule.
#include "../cpp/head_moments_cases.h"

#include <algorithm>
#include <cmath>

#include "check_launch.h"
#include "cuda/head_moments.h"
#include "restorelcc/cuda.h"

using namespace restorelcc::test;

namespace {

void call(const rlcc_head_moments_params& p) {
  size_t bytes = 0;
  CHECK_STATUS(rlcc_cuda_head_moments_workspace(&p, &bytes), RLCC_OK);
  std::vector<double> workspace(bytes / 8 + 2, std::nan(""));  // one more than asked for: to align
  double* at = workspace.data();
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) ++at;
  CHECK_STATUS(rlcc_cuda_head_moments(&p, at, bytes, nullptr), RLCC_OK);
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// |gram - exact| <= 1e-6 sum |dz_i dz_j|, |total - exact| <= 1e-6 sum |dz_d|; Inf and NaN where the oracle has
// them.
void check(const rlcc_head_moments_params& given, const std::string& name,
           const std::function<void(const rlcc_head_moments_params&)>& run = call) {
  const int64_t heads = given.heads, dim = given.head_dim;
  Moments got(heads, dim), expected(heads, dim), size(heads, dim);
  // What is there already is added to; it is symmetric.
  for (int64_t i = 0; i < heads * dim; ++i) got.total[static_cast<size_t>(i)] = static_cast<double>(i % 5) - 2;
  for (int64_t i = 0; i < heads * dim * dim; ++i) {
    got.gram[static_cast<size_t>(i)] = static_cast<double>((i / dim % dim) * (i % dim) % 7) - 3;
  }
  expected = got;
  rlcc_head_moments_params p = given;
  p.total = expected.total.data();
  p.gram = expected.gram.data();
  CHECK_STATUS(rlcc_head_moments_reference(&p), RLCC_OK);
  p.total = got.total.data();
  p.gram = got.gram.data();
  run(p);

  std::vector<double> dz(static_cast<size_t>(dim));
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        const double dense =
            restorelcc::element(p.z_dense, p.dtype, t * p.dense_token_stride + h * p.dense_head_stride + d);
        const double pruned =
            restorelcc::element(p.z_pruned, p.dtype, t * p.pruned_token_stride + h * p.pruned_head_stride + d);
        size.total[static_cast<size_t>(h * dim + d)] += dz[static_cast<size_t>(d)] = std::fabs(dense - pruned);
      }
      for (int64_t i = 0; i < dim; ++i) {
        for (int64_t j = 0; j < dim; ++j) {
          size.gram[static_cast<size_t>((h * dim + i) * dim + j)] +=
              dz[static_cast<size_t>(i)] * dz[static_cast<size_t>(j)];
        }
      }
    }
    for (int64_t i = 0; i < dim; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        const double* gram = got.gram.data() + h * dim * dim;
        CHECK(same(gram[i * dim + j], gram[j * dim + i])) << name << " is not symmetric at " << i << ", " << j;
      }
    }
  }
  const auto compare = [&](const std::vector<double>& ours, const std::vector<double>& exact,
                           const std::vector<double>& sizes, const char* what) {
    for (size_t i = 0; i < ours.size(); ++i) {
      const bool good = std::isfinite(exact[i]) ? std::fabs(ours[i] - exact[i]) <= 1e-6 * sizes[i] + 1e-14
                                                : same(ours[i], exact[i]);
      CHECK(good) << name << " " << what << "[" << i << "] is " << ours[i] << ", not " << exact[i] << " (size "
                  << sizes[i] << ")";
    }
  };
  compare(got.total, expected.total, size.total, "total");
  compare(got.gram, expected.gram, size.gram, "gram");
}

std::string describe(const rlcc_head_moments_params& p) {
  std::ostringstream name;
  name << dtype_name(p.dtype) << " T=" << p.tokens << " H=" << p.heads << " D=" << p.head_dim;
  return name.str();
}

void ragged_shapes() {
  std::mt19937 random(41);
  size_t turn = 0;
  for (int64_t tokens : {0, 1, 2, 12, 13, 48, 49, 100}) {
    for (int64_t dim : {1, 2, 3, 17, 32, 33, 64, 65, 130}) {
      if (dim > 64 && tokens % 12 == 0) continue;
      for (size_t dtypes = dim < 64 && tokens > 12 ? 3 : 1; dtypes-- > 0;) {
        const Activations z(tokens, 1 + static_cast<int64_t>(turn) % 3, dim, kDtypes[turn % 3], random);
        ++turn;
        Moments unused(z.heads, dim);
        const rlcc_head_moments_params p = z.params(0, tokens, unused);
        check(p, describe(p));
      }
    }
  }
  for (const auto& [heads, dim] : {std::pair<int64_t, int64_t>{0, 8}, {2, 0}}) {
    const Activations z(3, heads, dim, RLCC_F32, random);
    Moments out(heads, dim);
    call(z.params(0, 3, out));
  }
}

// Runs the tokens in this many chunks, whatever the plan says.
void call_in_chunks(const rlcc_head_moments_params& p, int64_t chunks) {
  restorelcc::cuda::HeadMomentsPlan plan = restorelcc::cuda::plan_head_moments(p.tokens, p.heads, p.head_dim);
  CHECK(plan.chunks >= chunks);
  plan.chunks = chunks;
  std::vector<double> workspace(restorelcc::cuda::head_moments_workspace_bytes(plan, p.heads) / 8,
                                std::nan(""));
  CHECK_LAUNCHED(launch_head_moments(p, plan, workspace.data(), nullptr));
}

// One chunk of several slabs, chunks of one slab, and chunks of unequal numbers of slabs; more heads than a
// plan splits.
void every_plan() {
  std::mt19937 random(42);
  const int64_t tokens = 48 * 7 - 5, heads = 2, dim = 72;
  const Activations z(tokens, heads, dim, RLCC_BF16, random);
  for (int64_t chunks : {1, 2, 3, 7}) {
    Moments unused(heads, dim);
    const rlcc_head_moments_params given = z.params(0, tokens, unused);
    check(given, describe(given) + " chunks " + std::to_string(chunks),
          [&](const rlcc_head_moments_params& p) { call_in_chunks(p, chunks); });
  }
  const Activations many(50, 513, 1, RLCC_F16, random);
  Moments unused(513, 1);
  const rlcc_head_moments_params p = many.params(0, 50, unused);
  CHECK(restorelcc::cuda::plan_head_moments(50, 513, 1).chunks == 1);
  check(p, describe(p));
}

// 16-byte loads where they are allowed, and where they are not; heads outside of tokens, and overlapping
// (stride 0).
void layouts() {
  std::mt19937 random(43);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t dim : {8, 72, 12}) {
      for (int64_t gap : {0, 4, 1}) {
        const Activations z(60, 2, dim, dtype, random, gap);
        Moments unused(2, dim);
        rlcc_head_moments_params p = z.params(0, 60, unused);
        check(p, describe(p) + " gap " + std::to_string(gap));
        p = z.params(1, 59, unused);  // begins in the middle
        check(p, describe(p) + " from token 1, gap " + std::to_string(gap));
        p.z_dense = static_cast<const char*>(p.z_dense) + dtype_bytes(dtype);  // and off 16 bytes
        p.tokens = 40;
        check(p, describe(p) + " misaligned, gap " + std::to_string(gap));
      }
    }
    const Activations z(90, 1, 16, dtype, random, 0);
    Moments unused(3, 16);
    rlcc_head_moments_params p = z.params(0, 30, unused);
    p.heads = 3;  // [H, T, D]
    p.dense_head_stride = p.pruned_head_stride = 30 * 16;
    check(p, describe(p) + " heads outermost");
    p.dense_token_stride = 0;
    check(p, describe(p) + " one dense token");
  }
}

// Where rounding to nearest errs the same way again and again: equal tokens, which a plain fp32 sum of 19200
// would get wrong by 1e-5; falling and rising ones; and 1 followed by squares just below half a unit in its
// last place, which a run of more than 16 in plain fp32 would lose too many of.
void rounding_at_its_worst() {
  const auto size_of = [](int shape, int64_t t, int64_t d) {
    if (shape == 3) return t % 48 == 0 ? 1.0 : 0x1p-12 * 0.999;
    const double step = shape == 0 ? 0 : static_cast<double>(t % 12) * (shape == 1 ? -1.3 : 1.3);
    return 0.1 * static_cast<double>(d + 3) * std::exp2(step);
  };
  for (const int shape : {0, 1, 2, 3}) {
    for (int64_t tokens : {12, 19200}) {
      Matrix dense(tokens, 8, RLCC_F32), pruned(tokens, 8, RLCC_F32);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t d = 0; d < 8; ++d) {
          dense.set(t, d, static_cast<float>(size_of(shape, t, d)));
          pruned.set(t, d, shape == 3 ? 0.0f : 1e-9f * static_cast<float>(d));
        }
      }
      Moments out(1, 8);
      rlcc_head_moments_params p{};
      p.z_dense = dense.data();
      p.z_pruned = pruned.data();
      p.tokens = tokens;
      p.heads = 1;
      p.head_dim = 8;
      p.dense_token_stride = p.pruned_token_stride = 8;
      p.total = out.total.data();
      p.gram = out.gram.data();
      check(p, describe(p) + " shape " + std::to_string(shape),
            [](const rlcc_head_moments_params& given) { call_in_chunks(given, 1); });
    }
  }
  // Differences of numbers that differ much.
  for (rlcc_dtype dtype : kDtypes) {
    Matrix dense(1, 1, dtype), pruned(1, 1, dtype);
    dense.set(0, 0, dtype == RLCC_F16 ? 3e4f : 1e8f);
    pruned.set(0, 0, 1.25f);
    Moments out(1, 1);
    rlcc_head_moments_params p{};
    p.z_dense = dense.data();
    p.z_pruned = pruned.data();
    p.tokens = p.heads = p.head_dim = 1;
    p.dtype = dtype;
    p.total = out.total.data();
    p.gram = out.gram.data();
    check(p, "1e8 - 1.25");
  }
}

void special_values() {
  std::mt19937 random(44);
  const float specials[] = {INFINITY, -INFINITY, NAN};
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t tokens : {5, 100}) {  // one chunk and several
      Activations z(tokens, 2, 40, dtype, random);
      for (int64_t i = 0; i < 3; ++i) z.dense.set(i, 20 * i + 3, specials[i]);
      z.dense.set(4, 50, INFINITY);
      z.pruned.set(4, 50, INFINITY);
      Moments unused(2, 40);
      const rlcc_head_moments_params p = z.params(0, tokens, unused);
      check(p, describe(p) + " special");
    }
  }
}

// Calls that accumulate differ from one call by rounding alone.
void chunked_calls() {
  std::mt19937 random(45);
  const Activations z(300, 2, 20, RLCC_F16, random);
  Moments whole(2, 20), parts(2, 20);
  call(z.params(0, 300, whole));
  for (int64_t begin = 0; begin < 300;) {
    const int64_t end = std::min<int64_t>(300, begin + 1 + begin / 2);
    call(z.params(begin, end, parts));
    begin = end;
  }
  close(parts, whole, 2, 20, 2e-6, "chunked");
}

void the_bits_are_the_same() {
  std::mt19937 random(46);
  for (const auto& [tokens, heads, dim] : {std::tuple<int64_t, int64_t, int64_t>{100, 2, 72}, {60, 1, 64}}) {
    for (rlcc_dtype dtype : {RLCC_F32, RLCC_BF16}) {
      const Activations z(tokens, heads, dim, dtype, random, 8);
      Moments first(heads, dim);
      call(z.params(0, tokens, first));
      under_every_schedule(3, [&, t = tokens, h = heads, d = dim](const std::string& schedule) {
        Moments again(h, d);
        call(z.params(0, t, again));
        CHECK(again == first) << schedule;
      });
    }
  }
}

void refused() {
  std::mt19937 random(47);
  const Activations z(100, 2, 8, RLCC_F32, random);
  for (const auto& wrong : kRefusedMoments) {
    Moments out(2, 8);
    rlcc_head_moments_params p = z.params(0, 100, out);
    size_t bytes = 0;
    CHECK_STATUS(rlcc_cuda_head_moments_workspace(&p, &bytes), RLCC_OK);
    CHECK(bytes > 0);
    std::vector<double> workspace(bytes / 8 + 2);
    double* const aligned = workspace.data() + reinterpret_cast<uintptr_t>(workspace.data()) % 16 / 8;
    CHECK_STATUS(rlcc_cuda_head_moments(&p, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_cuda_head_moments(&p, aligned, bytes - 1, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK_STATUS(rlcc_cuda_head_moments(&p, aligned + 1, bytes, nullptr), RLCC_INVALID_ARGUMENT);
    wrong(p);
    CHECK_STATUS(rlcc_cuda_head_moments(&p, aligned, bytes, nullptr), RLCC_INVALID_ARGUMENT);
    CHECK(out == Moments(2, 8));  // untouched
  }
  CHECK_STATUS(rlcc_cuda_head_moments(nullptr, nullptr, 0, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_cuda_head_moments_workspace(nullptr, nullptr), RLCC_INVALID_ARGUMENT);
}

}  // namespace

int main() {
  ragged_shapes();
  every_plan();
  layouts();
  rounding_at_its_worst();
  special_values();
  chunked_calls();
  the_bits_are_the_same();
  refused();
  return report("head_moments on the emulated device");
}
