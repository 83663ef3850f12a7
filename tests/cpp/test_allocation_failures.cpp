// Every allocation of every entry point fails once, and so do all after it: the call says RLCC_OUT_OF_MEMORY,
// leaves its outputs as they were, loses nothing, and works the next time.
#include "dense_linear_cases.h"
#include "failing_calls.h"
#include "grad_comp_cases.h"
#include "head_moments_cases.h"
#include "matrices.h"
#include "restorelcc/cuda.h"

using namespace restorelcc::test;

namespace {

// A sparse_linear with room for its output.
struct Linear {
  std::mt19937 random{9};
  Packed packed;
  Matrix x;
  std::vector<float> y, comp, grad_x;
  std::vector<char> grad_values;
  rlcc_sparse_linear_params params{};
  rlcc_sparse_linear_grad_x_params grad_x_params{};
  rlcc_sparse_linear_grad_values_params grad_values_params{};

  Linear(int64_t rows, rlcc_dtype values)
      : packed(random_weight(300, 700, dense_dtype(values), random, half_with_full_and_empty_row(random)),
               values),
        x(rows, 700, RLCC_F32),
        y(static_cast<size_t>(rows * 300)),
        comp(300, 0.5f),
        grad_x(static_cast<size_t>(rows * 700)),
        grad_values(static_cast<size_t>(packed.weight.value_count) * dtype_bytes(values)) {
    fill_normal(x, random);
    params.weight = packed.weight;
    params.x = x.data();
    params.x_rows = rows;
    params.x_stride = 700;
    params.comp_rows = comp.data();
    params.groups = 1;
    params.y = y.data();
    params.y_stride = 300;
    grad_x_params = {packed.weight, x.data(), rows, 700, RLCC_F32, grad_x.data(), 700, nullptr};
    grad_values_params = {packed.weight, x.data(),           rows,   700, x.data(), 700,
                          RLCC_F32,      grad_values.data(), nullptr};
  }
};

void sparse_linears() {
  for (const rlcc_dtype values : kValues) {
    for (const int64_t rows : {1, 20, 40}) {
      Linear linear(rows, values);
      const std::string of = std::string(" ") + dtype_name(values) + " x" + std::to_string(rows);
      run({"sparse_linear" + of, [&] { return rlcc_sparse_linear(&linear.params); }, {output(linear.y)}});
      run({"sparse_linear, new threads" + of,
           [&] { return rlcc_sparse_linear(&linear.params); },
           {output(linear.y)},
           RLCC_OK,
           [] {  // the library's pool is made again
             rlcc_set_num_threads(3);
             rlcc_set_num_threads(2);
           }});
      run({"sparse_linear_reference" + of,
           [&] { return rlcc_sparse_linear_reference(&linear.params); },
           {output(linear.y)}});
      run({"grad_x" + of,
           [&] { return rlcc_sparse_linear_grad_x(&linear.grad_x_params); },
           {output(linear.grad_x)}});
      run({"grad_x_reference" + of,
           [&] { return rlcc_sparse_linear_grad_x_reference(&linear.grad_x_params); },
           {output(linear.grad_x)}});
      if (values == RLCC_I8) continue;
      run({"grad_values" + of,
           [&] { return rlcc_sparse_linear_grad_values(&linear.grad_values_params); },
           {output(linear.grad_values)}});
      run({"grad_values_reference" + of,
           [&] { return rlcc_sparse_linear_grad_values_reference(&linear.grad_values_params); },
           {output(linear.grad_values)}});
    }
  }
}

// The rows of x served with two compensations, with and without the checks of the weight.
void mixed_batches() {
  for (const int64_t rows : {1, 20, 40}) {
    Linear linear(rows, RLCC_BF16);
    const std::vector<float> comp_rows(600, 0.25f), bias(300, 0.5f), residual(linear.y.size(), 1.0f);
    std::vector<int64_t> index;
    for (int64_t m = 0; m < rows; ++m) index.push_back(m % 2);
    rlcc_sparse_linear_params params = linear.params;
    params.comp_rows = comp_rows.data();
    params.groups = 2;
    params.comp_index = index.data();
    params.bias = bias.data();
    params.residual = residual.data();
    params.residual_stride = 300;
    for (const int32_t trusted : {0, 1}) {
      params.weight.trusted = trusted;
      run({"sparse_linear of two compensations x" + std::to_string(rows),
           [&] { return rlcc_sparse_linear(&params); },
           {output(linear.y)}});
    }
    index.back() = 2;
    run({"sparse_linear refused for its comp_index",
         [&] { return rlcc_sparse_linear(&params); },
         {output(linear.y)},
         RLCC_INVALID_ARGUMENT});
  }
}

void dense_linears() {
  std::mt19937 random{10};
  const DenseTypes types[] = {{RLCC_BF16, RLCC_F32, RLCC_F32},
                              {RLCC_BF16, RLCC_BF16, RLCC_BF16},
                              {RLCC_F16, RLCC_F16, RLCC_F32},
                              {RLCC_F32, RLCC_F32, RLCC_F16}};
  for (const DenseTypes& of_case : types) {
    for (const int64_t rows : {1, 40}) {
      DenseCase dense(rows, 300, 700, of_case, random, true, false, 0);
      std::vector<char> y(static_cast<size_t>(rows * 300) * dtype_bytes(of_case.y));
      dense.params.y = y.data();
      const std::string of = std::string(" ") + dtype_name(of_case.weight) + " " + dtype_name(of_case.x) +
                             " x" + std::to_string(rows);
      run({"dense_linear" + of, [&] { return rlcc_dense_linear(&dense.params); }, {output(y)}});
      run({"dense_linear_reference" + of,
           [&] { return rlcc_dense_linear_reference(&dense.params); },
           {output(y)}});
    }
  }
}

// Rows enough for sums of parts, and groups enough for more than one pass.
void gradients_of_compensations() {
  std::mt19937 random{11};
  for (const rlcc_dtype dtype : kDtypes) {
    for (const int64_t groups : {0, 1, 11}) {
      GradCompCase sums({900, 70, groups, groups > 0, true}, dtype, random);
      const std::string of =
          std::string(" ") + dtype_name(dtype) + " of " + std::to_string(groups) + " compensations";
      run({"grad_comp" + of,
           [&] { return rlcc_sparse_linear_grad_comp(&sums.params); },
           {output(sums.comp_rows), output(sums.bias)}});
      run({"grad_comp_reference" + of,
           [&] { return rlcc_sparse_linear_grad_comp_reference(&sums.params); },
           {output(sums.comp_rows), output(sums.bias)}});
    }
  }
}

// The sentence of a refusal needs memory, too.
template <class Params>
void refuses_null(const char* name, rlcc_status (*entry)(const Params*)) {
  run({std::string(name) + " of nothing", [=] { return entry(nullptr); }, {}, RLCC_INVALID_ARGUMENT});
}

void refusals() {
  refuses_null("sparse_linear", rlcc_sparse_linear);
  refuses_null("dense_linear", rlcc_dense_linear);
  refuses_null("sparse_linear_grad_x", rlcc_sparse_linear_grad_x);
  refuses_null("sparse_linear_grad_values", rlcc_sparse_linear_grad_values);
  refuses_null("sparse_linear_grad_comp", rlcc_sparse_linear_grad_comp);
  refuses_null("head_moments", rlcc_head_moments);
  refuses_null("linear_cross_entropy", rlcc_linear_cross_entropy);
  refuses_null("linear_cross_entropy_backward", rlcc_linear_cross_entropy_backward);
  refuses_null("head_contrast", rlcc_head_contrast);
  refuses_null("sparse_linear_reference", rlcc_sparse_linear_reference);
  refuses_null("dense_linear_reference", rlcc_dense_linear_reference);
  refuses_null("sparse_linear_grad_x_reference", rlcc_sparse_linear_grad_x_reference);
  refuses_null("sparse_linear_grad_values_reference", rlcc_sparse_linear_grad_values_reference);
  refuses_null("sparse_linear_grad_comp_reference", rlcc_sparse_linear_grad_comp_reference);
  refuses_null("head_moments_reference", rlcc_head_moments_reference);
  refuses_null("linear_cross_entropy_reference", rlcc_linear_cross_entropy_reference);
  refuses_null("linear_cross_entropy_backward_reference", rlcc_linear_cross_entropy_backward_reference);
  refuses_null("head_contrast_reference", rlcc_head_contrast_reference);
  refuses_null("packed_validate", rlcc_packed_validate);
}

// The library's pool is made in the call.
void parallel_for() {
  std::vector<float> y(300);
  const rlcc_task set = [](void* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) static_cast<float*>(to)[i] = static_cast<float>(i);
  };
  run({"parallel_for",
       [&] { return rlcc_parallel_for(nullptr, 300, 10, set, y.data()); },
       {output(y)},
       RLCC_OK,
       [] {
         rlcc_set_num_threads(3);
         rlcc_set_num_threads(2);
       }});
}

void packing() {
  std::mt19937 random(3);
  for (const rlcc_dtype values : kValues) {
    const Matrix dense =
        random_weight(20, 150, dense_dtype(values), random, half_with_full_and_empty_row(random));
    const Packed packed(dense, values);
    std::vector<uint64_t> mask(packed.mask.size());
    std::vector<char> kept(packed.storage.size());
    std::vector<int64_t> row_offsets(packed.row_offsets.size()), count(1);
    std::vector<uint16_t> scales(packed.scales.size());
    std::vector<float> unpacked(20 * 150);
    const std::string of = std::string(" ") + dtype_name(values);
    run({"pack_count" + of,
         [&] { return rlcc_pack_count(dense.data(), 20, 150, 150, dense.dtype(), values, count.data()); },
         {output(count)}});
    run({"pack" + of,
         [&] {
           return rlcc_pack(dense.data(), 20, 150, 150, dense.dtype(), values, mask.data(), kept.data(),
                            packed.weight.value_count, row_offsets.data(),
                            values == RLCC_I8 ? scales.data() : nullptr);
         },
         {output(mask), output(kept), output(row_offsets), output(scales)}});
    run({"unpack" + of, [&] { return rlcc_unpack(&packed.weight, unpacked.data(), 150); }, {output(unpacked)}});
    run({"packed_validate" + of, [&] { return rlcc_packed_validate(&packed.weight); }, {}});
    run({"pack_count refused" + of,
         [&] { return rlcc_pack_count(dense.data(), 20, 150, 149, dense.dtype(), values, count.data()); },
         {output(count)},
         RLCC_INVALID_ARGUMENT});
  }
  const Packed packed(random_weight(64, 128, RLCC_BF16, random, [](int64_t, int64_t k) { return k % 4 < 2; }));
  std::vector<int64_t> counts(2);
  CHECK_STATUS(rlcc_cuda_pack_2to4_counts(&packed.weight, &counts[0], &counts[1]), RLCC_OK);
  std::vector<uint16_t> values(static_cast<size_t>(counts[0]));
  std::vector<uint32_t> metadata(static_cast<size_t>(counts[1]));
  const std::vector<int64_t> known = counts;
  run({"pack_2to4_counts",
       [&] { return rlcc_cuda_pack_2to4_counts(&packed.weight, &counts[0], &counts[1]); },
       {output(counts)}});
  run({"pack_2to4",
       [&] { return rlcc_cuda_pack_2to4(&packed.weight, values.data(), known[0], metadata.data(), known[1]); },
       {output(values), output(metadata)}});
}

void moments() {
  std::mt19937 random(4);
  const Activations z(50, 3, 20, RLCC_BF16, random);
  Moments out(3, 20);
  const rlcc_head_moments_params params = z.params(0, 50, out);
  run({"head_moments", [&] { return rlcc_head_moments(&params); }, {output(out.total), output(out.gram)}});
  run({"head_moments_reference",
       [&] { return rlcc_head_moments_reference(&params); },
       {output(out.total), output(out.gram)}});
}

void cross_entropies() {
  constexpr int64_t kRows = 70, kVocabulary = 300, kColumns = 48, kEdits = 3;
  std::mt19937 random(6);
  for (const rlcc_dtype dtype : kDtypes) {
    Matrix h(kRows * kEdits, kColumns, dtype), weight(kVocabulary, kColumns, dtype);
    Matrix grad_h(kRows, kColumns, dtype), grad_weight(kVocabulary, kColumns, dtype);
    fill_normal(h, random);
    fill_normal(weight, random);
    const std::vector<float> bias(kVocabulary, 0.25f), ones(kRows, 1.0f);
    std::vector<float> nll(kRows), lse(kRows), grad_bias(kVocabulary), known(kRows, 3.0f);
    std::vector<double> contrast(2 * kEdits);
    std::vector<int64_t> labels(kRows), segments(kRows);
    for (size_t m = 0; m < labels.size(); ++m) {
      labels[m] = m % 5 == 0 ? -100 : static_cast<int64_t>(random() % kVocabulary);
      segments[m] = static_cast<int64_t>(m % 2);
    }
    const rlcc_language_head head{weight.data(), kVocabulary, kColumns, kColumns, bias.data(), dtype};
    const auto bytes_of = [](Matrix& matrix) {
      return std::pair<void*, size_t>(
          matrix.data(), static_cast<size_t>(matrix.rows() * matrix.stride()) * dtype_bytes(matrix.dtype()));
    };
    const rlcc_linear_cross_entropy_params forward{head,          h.data(), kRows,      kColumns,
                                                   labels.data(), -100,     nll.data(), lse.data(),
                                                   grad_h.data(), kColumns, nullptr};
    const rlcc_linear_cross_entropy_backward_params backward{head,
                                                             h.data(),
                                                             kRows,
                                                             kColumns,
                                                             labels.data(),
                                                             -100,
                                                             known.data(),
                                                             ones.data(),
                                                             grad_h.data(),
                                                             kColumns,
                                                             grad_weight.data(),
                                                             kColumns,
                                                             grad_bias.data(),
                                                             nullptr};
    const rlcc_head_contrast_params edits{
        head, h.data(),     kEdits,          kRows, kRows * kColumns, kColumns,        labels.data(),
        -100, known.data(), segments.data(), 2,     ones.data(),      contrast.data(), nullptr};
    const std::string of = std::string(" ") + dtype_name(dtype);
    const auto losses = [&] {
      return std::vector<std::pair<void*, size_t>>{output(nll), output(lse), bytes_of(grad_h)};
    };
    const auto gradients = [&] {
      return std::vector<std::pair<void*, size_t>>{bytes_of(grad_h), bytes_of(grad_weight), output(grad_bias)};
    };
    run({"linear_cross_entropy" + of, [&] { return rlcc_linear_cross_entropy(&forward); }, losses()});
    run({"linear_cross_entropy_reference" + of, [&] { return rlcc_linear_cross_entropy_reference(&forward); },
         losses()});
    run({"linear_cross_entropy_backward" + of, [&] { return rlcc_linear_cross_entropy_backward(&backward); },
         gradients()});
    run({"linear_cross_entropy_backward_reference" + of,
         [&] { return rlcc_linear_cross_entropy_backward_reference(&backward); }, gradients()});
    run({"head_contrast" + of, [&] { return rlcc_head_contrast(&edits); }, {output(contrast)}});
    run({"head_contrast_reference" + of,
         [&] { return rlcc_head_contrast_reference(&edits); },
         {output(contrast)}});
  }
}

}  // namespace

int main() {
  rlcc_set_num_threads(2);
  rlcc_isa();  // reads the environment, once
  packing();
  sparse_linears();
  mixed_batches();
  dense_linears();
  gradients_of_compensations();
  parallel_for();
  moments();
  cross_entropies();
  refusals();
  return report("allocation_failures");
}
