// Sizes that the header names: the largest is taken, and one more is RLCC_UNSUPPORTED with a sentence, in the
// _workspace function and in the op. Nothing of these sizes is allocated or launched: the bytes are asked for.
#include <cstring>
#include <functional>

#include "../cpp/check.h"
#include "cuda/grad_comp.h"
#include "cuda/plan.h"
#include "restorelcc/cuda.h"

using namespace restorelcc::test;

namespace {

constexpr int64_t kMostRows = (int64_t{1} << 31) - 257, kMostColumns = int64_t{1} << 30,
                  kMostAcross = 4'194'240;
alignas(16) const int64_t kSomething[8] = {};
alignas(16) double output[8] = {};

rlcc_packed_weight weight_of(int64_t rows, int64_t columns) {
  return {rows, columns, reinterpret_cast<const uint64_t*>(kSomething), kSomething, 32, kSomething, RLCC_BF16,
          1,    nullptr};
}

// set(params, size) -> `ask` takes `most` and refuses most + 1, as `op` does.
template <class Params, class Ask, class Op>
void limit(const char* name, Params params, int64_t most, const std::function<void(Params&, int64_t)>& set,
           Ask ask, Op op) {
  size_t bytes = 7;
  set(params, most);
  CHECK_STATUS(ask(params, &bytes), RLCC_OK);
  set(params, most + 1);
  bytes = 7;
  for (int call = 0; call < 2; ++call) {
    const rlcc_status status = call == 0 ? ask(params, &bytes) : op(params);
    CHECK(status == RLCC_UNSUPPORTED) << name << ": " << status << ": " << rlcc_last_error();
    if (status == RLCC_OK) return;  // the op would run
    CHECK(std::strstr(rlcc_last_error(), "at most") != nullptr ||
          std::strstr(rlcc_last_error(), "more than") != nullptr)
        << name << ": " << rlcc_last_error();
  }
  CHECK(bytes == 7) << name << ": untouched";
}

// The two functions of an op that have the same signatures.
template <class Params>
void limit_of(const char* name, const Params& params, int64_t most,
              const std::function<void(Params&, int64_t)>& set, rlcc_status (*ask)(const Params*, size_t*),
              rlcc_status (*op)(const Params*, void*, size_t, void*)) {
  limit<Params>(
      name, params, most, set, [=](const Params& p, size_t* bytes) { return ask(&p, bytes); },
      [=](const Params& p) { return op(&p, nullptr, 0, nullptr); });
}

void sparse_linear() {
  using Params = rlcc_sparse_linear_params;
  Params p{};
  p.weight = weight_of(1, 1);
  p.x = kSomething;
  p.y = output;
  p.x_rows = 1;
  p.x_dtype = RLCC_BF16;
  const auto test = [&](const char* name, int64_t most, const std::function<void(Params&, int64_t)>& set) {
    limit_of<Params>(name, p, most, set, rlcc_cuda_sparse_linear_workspace, rlcc_cuda_sparse_linear);
  };
  const auto set_rows = [](Params& q, int64_t n) { q.weight.rows = q.y_stride = n; };
  const auto set_columns = [](Params& q, int64_t k) { q.weight.columns = q.x_stride = k; };
  p.x_stride = p.y_stride = 1;
  test("rows of W", kMostRows, set_rows);
  test("columns of W", kMostColumns, set_columns);
  p.x_rows = 17;
  test("columns of W, many rows", kMostColumns, set_columns);
  test("rows of x", kMostRows, [](Params& q, int64_t m) { q.x_rows = m; });
  test("columns of y, many rows", kMostAcross, set_rows);
}

void gradients() {
  using OfX = rlcc_sparse_linear_grad_x_params;
  const OfX x{weight_of(1, 1), kSomething, 1, 1, RLCC_BF16, output, 1, nullptr};
  const auto of_x = [&](const char* name, int64_t most, const std::function<void(OfX&, int64_t)>& set) {
    limit_of<OfX>(name, x, most, set, rlcc_cuda_sparse_linear_grad_x_workspace, rlcc_cuda_sparse_linear_grad_x);
  };
  of_x("grad_x, rows", kMostRows, [](OfX& q, int64_t m) { q.y_rows = m; });
  of_x("grad_x, rows of W", kMostRows, [](OfX& q, int64_t n) { q.weight.rows = q.grad_y_stride = n; });
  of_x("grad_x, columns", kMostAcross, [](OfX& q, int64_t k) { q.weight.columns = q.grad_x_stride = k; });

  using OfValues = rlcc_sparse_linear_grad_values_params;
  const OfValues values{weight_of(1, 1), kSomething, 1, 1, kSomething, 1, RLCC_BF16, output, nullptr};
  const auto of_values = [&](const char* name, int64_t most,
                             const std::function<void(OfValues&, int64_t)>& set) {
    limit_of<OfValues>(name, values, most, set, rlcc_cuda_sparse_linear_grad_values_workspace,
                       rlcc_cuda_sparse_linear_grad_values);
  };
  of_values("grad_values, rows", kMostRows, [](OfValues& q, int64_t m) { q.rows = m; });
  of_values("grad_values, rows of W", kMostAcross,
            [](OfValues& q, int64_t n) { q.weight.rows = q.grad_y_stride = n; });
  of_values("grad_values, columns of W", kMostAcross,
            [](OfValues& q, int64_t k) { q.weight.columns = q.x_stride = k; });

  using OfComp = rlcc_sparse_linear_grad_comp_params;
  const OfComp comp{kSomething, 1, 1, 1, RLCC_BF16, nullptr, 0, nullptr, reinterpret_cast<float*>(output),
                    nullptr};
  const auto of_comp = [&](const char* name, int64_t most, const std::function<void(OfComp&, int64_t)>& set) {
    limit_of<OfComp>(name, comp, most, set, rlcc_cuda_sparse_linear_grad_comp_workspace,
                     rlcc_cuda_sparse_linear_grad_comp);
  };
  of_comp("grad_comp, rows", kMostRows, [](OfComp& q, int64_t m) { q.rows = m; });
  of_comp("grad_comp, columns", kMostRows, [](OfComp& q, int64_t n) { q.columns = q.grad_y_stride = n; });
  const auto grouped = [](OfComp& q, int64_t blocks) {  // of 8 groups each, for each of 16 times 256 columns
    q.comp_index = kSomething;
    q.grad_comp_rows = reinterpret_cast<float*>(output);
    q.columns = q.grad_y_stride = 16 * restorelcc::cuda::kGradCompColumns;
    q.groups = blocks * restorelcc::cuda::kGradCompGroups;
  };
  of_comp("grad_comp, groups", INT32_MAX / 16, grouped);
}

void sparse_linear_2to4() {
  using Params = rlcc_sparse_linear_params;
  const rlcc_cuda_weight_2to4 weight{16, 64, kSomething, reinterpret_cast<const uint32_t*>(kSomething),
                                     RLCC_BF16};
  Params p{};
  p.x = kSomething;
  p.y = output;
  p.x_stride = 64;
  p.y_stride = 16;
  p.x_dtype = RLCC_BF16;
  limit<Params>(
      "2:4, rows of x", p, kMostAcross, [](Params& q, int64_t m) { q.x_rows = m; },
      [&](const Params& q, size_t* bytes) {
        return rlcc_cuda_sparse_linear_2to4_workspace(&q, &weight, bytes);
      },
      [&](const Params& q) { return rlcc_cuda_sparse_linear_2to4(&q, &weight, nullptr, 0, nullptr); });
}

void head_moments() {
  using Params = rlcc_head_moments_params;
  Params p{};
  p.z_dense = p.z_pruned = kSomething;
  p.tokens = p.heads = p.head_dim = 1;
  p.total = p.gram = output;
  limit_of<Params>(
      "head_dim", p, int64_t{1} << 20, [](Params& q, int64_t d) { q.head_dim = d; },
      rlcc_cuda_head_moments_workspace, rlcc_cuda_head_moments);
  limit_of<Params>(
      "heads", p, INT32_MAX, [](Params& q, int64_t h) { q.heads = h; }, rlcc_cuda_head_moments_workspace,
      rlcc_cuda_head_moments);
}

void cross_entropies() {
  constexpr int64_t kMost = int64_t{1} << 30;
  const rlcc_language_head head{kSomething, 1, 1, 1, nullptr, RLCC_BF16};
  using Loss = rlcc_linear_cross_entropy_params;
  const Loss loss{head,    kSomething, 1, 1,      kSomething, -100, reinterpret_cast<float*>(output),
                  nullptr, nullptr,    0, nullptr};
  const auto of_loss = [&](const char* name, int64_t most, const std::function<void(Loss&, int64_t)>& set) {
    limit_of<Loss>(name, loss, most, set, rlcc_cuda_linear_cross_entropy_workspace,
                   rlcc_cuda_linear_cross_entropy);
  };
  of_loss("loss, rows", kMost, [](Loss& q, int64_t m) { q.rows = m; });
  of_loss("loss, words", kMost, [](Loss& q, int64_t v) { q.head.vocabulary = v; });
  of_loss("loss, columns", kMostAcross,
          [](Loss& q, int64_t e) { q.head.columns = q.head.weight_stride = q.h_stride = e; });
  using Edits = rlcc_head_contrast_params;
  const auto* floats = reinterpret_cast<const float*>(kSomething);
  const Edits edits{head, kSomething, 1,          1, 1,       1,      kSomething,
                    -100, floats,     kSomething, 1, nullptr, output, nullptr};
  limit_of<Edits>(
      "contrasts", edits, INT32_MAX, [](Edits& q, int64_t s) { q.segment_count = s; },
      rlcc_cuda_head_contrast_workspace, rlcc_cuda_head_contrast);
}

}  // namespace

int main() {
  static_assert(kMostRows == restorelcc::cuda::kMostSize && kMostColumns == restorelcc::cuda::kMostColumns);
  sparse_linear();
  gradients();
  sparse_linear_2to4();
  head_moments();
  cross_entropies();
  return report("limits");
}
