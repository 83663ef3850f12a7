// Every allocation of every entry point fails once, and so do all after it: the call says RLCC_OUT_OF_MEMORY,
// leaves its outputs as they were, loses nothing, and works the next time.
#include <cstring>
#include <functional>
#include <thread>

#include "allocations.h"
#include "dense_linear_cases.h"
#include "head_moments_cases.h"
#include "matrices.h"
#include "model_files.h"
#include "restorelcc/cuda.h"
#include "restorelcc/model.h"

using namespace restorelcc::test;

namespace {

struct Call {
  std::string name;
  std::function<rlcc_status()> run;
  std::vector<std::pair<void*, size_t>> outputs;
  rlcc_status expected = RLCC_OK;
  std::function<void()> before = [] {};  // of each attempt, and after it
};

constexpr char kUntouched = 0x3b;  // of a float or double: small, and a number

void fill(const Call& call) {
  for (const auto& [data, bytes] : call.outputs) std::memset(data, kUntouched, bytes);
}

std::string contents(const Call& call) {
  std::string all;
  for (const auto& [data, bytes] : call.outputs) all.append(static_cast<const char*>(data), bytes);
  return all;
}

struct Attempt {
  rlcc_status status = RLCC_INTERNAL;
  bool failed = false, said = false;
};

// In a thread of its own, whose last error goes with it. first_failure < 0: nothing fails.
Attempt attempt(const Call& call, long first_failure, bool all_after) {
  Attempt result;
  call.before();
  std::thread([&] {
    arm(first_failure, all_after);
    result.status = call.run();
    result.failed = disarm();
    result.said = *rlcc_last_error() != '\0';
  }).join();
  call.before();
  return result;
}

void run(const Call& call) {
  fill(call);
  CHECK(attempt(call, -1, false).status == call.expected) << call.name;
  const std::string good = contents(call);
  long failures = 0;
  for (const bool all_after : {false, true}) {
    for (long number = 0;; ++number) {
      fill(call);
      const std::string untouched = contents(call);
      const long live = live_allocations();
      const Attempt result = attempt(call, number, all_after);
      const long lost = live_allocations() - live;
      const std::string now = contents(call);
      CHECK(lost == 0) << call.name << " loses " << lost << " allocations where " << number << " fails";
      if (result.failed) {
        ++failures;
        CHECK(result.status == RLCC_OUT_OF_MEMORY)
            << call.name << ", allocation " << number << ": " << result.status;
        CHECK(result.said || call.name == "build_info")
            << call.name << " says nothing where allocation " << number << " fails";
        CHECK(now == untouched) << call.name << " writes, but allocation " << number << " failed";
      } else {
        CHECK(result.status == call.expected && now == good) << call.name;
        break;
      }
      if (number == 20'000) {
        CHECK(false) << call.name << " allocates without end";
        break;
      }
    }
  }
  fill(call);
  CHECK(attempt(call, -1, false).status == call.expected && contents(call) == good)
      << call.name << ", afterwards";
  std::printf("%s: %ld failures\n", call.name.c_str(), failures);
}

template <class Element>
std::pair<void*, size_t> output(std::vector<Element>& array) {
  return {array.data(), array.size() * sizeof(Element)};
}

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
    for (const int64_t rows : {1, 40}) {
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

void dense_linears() {
  std::mt19937 random{10};
  for (const int64_t rows : {1, 40}) {
    DenseCase dense(rows, 300, 700, {RLCC_BF16, RLCC_F32, RLCC_F32}, random, true, false, 0);
    std::vector<float> y(static_cast<size_t>(rows * 300));
    dense.params.y = y.data();
    const std::string of = " x" + std::to_string(rows);
    run({"dense_linear" + of, [&] { return rlcc_dense_linear(&dense.params); }, {output(y)}});
    run({"dense_linear_reference" + of,
         [&] { return rlcc_dense_linear_reference(&dense.params); },
         {output(y)}});
  }
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

// What a model says, where all of it is there.
struct Seen {
  rlcc_model_config config;
  rlcc_tensor tensor;
  rlcc_weight weight;
};

// Opened, looked at, closed.
rlcc_status look_at(const std::string& directory, int64_t (&found)[4]) {
  rlcc_model* model = nullptr;
  const rlcc_status status = rlcc_model_open(directory.c_str(), &model);
  if (status != RLCC_OK) return model == nullptr ? status : RLCC_INTERNAL;
  Seen seen{};
  const bool good = rlcc_model_get_config(model, &seen.config) == RLCC_OK &&
                    rlcc_model_tensor_at(model, 1, &seen.tensor) == RLCC_OK &&
                    rlcc_model_weight(model, "model.layers.1.mlp.down_proj", &seen.weight) == RLCC_OK;
  const int64_t now[4] = {seen.config.eos_token_count, seen.tensor.bytes, seen.weight.rows,
                          rlcc_model_tensor_count(model)};
  if (good) std::memcpy(found, now, sizeof(now));
  rlcc_model_close(model);
  return good ? RLCC_OK : RLCC_INTERNAL;
}

void models() {
  for (const rlcc_dtype values : {RLCC_BF16, RLCC_I8}) {
    ModelOptions options;
    options.values = values;
    options.joined = values == RLCC_BF16;
    options.heads = options.ffn = options.head = values == RLCC_I8;
    for (const size_t shift : {0, 3}) {
      const Directory directory;
      ModelFiles files = tiny_llama(options);
      files.shift = shift;
      files.write(directory.path());
      int64_t found[4];
      run({std::string("model_open ") + dtype_name(values) + " shifted by " + std::to_string(shift),
           [&] { return look_at(directory.path(), found); },
           {{found, sizeof(found)}}});
    }
  }
  const std::pair<const char*, std::function<void(ModelFiles&)>> lies[] = {
      {"record",
       [](ModelFiles& files) { files.record = replaced(files.record, "\"version\": 1", "\"version\": 2"); }},
      {"json", [](ModelFiles& files) { files.config.pop_back(), files.config.pop_back(); }},
      {"tensor", [](ModelFiles& files) { files.drop("model.norm.weight"); }},
      {"offsets",
       [](ModelFiles& files) { files.array("model.layers.0.self_attn.o_proj.row_offsets").bytes[0] = 5; }},
  };
  for (const auto& [name, lie] : lies) {
    const Directory directory;
    ModelFiles files = tiny_llama({});
    lie(files);
    files.write(directory.path());
    run({std::string("model_open refused for its ") + name,
         [&] {
           rlcc_model* model = nullptr;
           const rlcc_status status = rlcc_model_open(directory.path().c_str(), &model);
           return model == nullptr ? status : RLCC_INTERNAL;
         },
         {},
         RLCC_INVALID_ARGUMENT});
  }
}

void what_is_asked_of_a_model() {
  ModelOptions options;
  options.heads = true;
  const Directory directory;
  tiny_llama(options).write(directory.path());
  rlcc_model* model = nullptr;
  CHECK_STATUS(rlcc_model_open(directory.path().c_str(), &model), RLCC_OK);
  rlcc_tensor tensor;
  rlcc_weight weight;
  rlcc_compensation compensation;
  rlcc_model_config config;
  run({"model_get_config", [&] { return rlcc_model_get_config(model, &config); }, {{&config, sizeof(config)}}});
  run({"model_tensor_at",
       [&] { return rlcc_model_tensor_at(model, 0, &tensor); },
       {{&tensor, sizeof(tensor)}}});
  run({"model_weight",
       [&] { return rlcc_model_weight(model, "model.layers.1.mlp.down_proj", &weight); },
       {{&weight, sizeof(weight)}}});
  run({"model_tensor, none",
       [&] { return rlcc_model_tensor(model, "none", &tensor); },
       {{&tensor, sizeof(tensor)}},
       RLCC_INVALID_ARGUMENT});
  run({"model_compensation_at",
       [&] { return rlcc_model_compensation_at(model, 1, &compensation); },
       {{&compensation, sizeof(compensation)}}});
  run({"model_compensation_at, none",
       [&] { return rlcc_model_compensation_at(model, 2, &compensation); },
       {{&compensation, sizeof(compensation)}},
       RLCC_INVALID_ARGUMENT});
  rlcc_model_close(model);
}

void settings() {
  const rlcc_kernel_info* kernels = nullptr;
  int64_t count = 0;
  run({"kernels",
       [&] { return rlcc_kernels(&kernels, &count); },
       {{&kernels, sizeof(kernels)}, {&count, sizeof(count)}}});
  run({"force_isa", [] { return rlcc_force_isa("scalar"); }, {}});
  run({"force_isa, none",
       [] { return rlcc_force_isa("of tomorrow, with a long name"); },
       {},
       RLCC_UNSUPPORTED});
  rlcc_force_isa(nullptr);
  run({"set_num_threads", [] { return rlcc_set_num_threads(2); }, {}});
  run({"set_num_threads, none", [] { return rlcc_set_num_threads(0); }, {}, RLCC_INVALID_ARGUMENT});
  // These return a text: an empty one where there is no memory for it.
  run({"build_info",
       [] { return std::strcmp(rlcc_build_info(), "{}") == 0 ? RLCC_OUT_OF_MEMORY : RLCC_OK; },
       {}});
}

}  // namespace

int main() {
  rlcc_set_num_threads(2);
  rlcc_isa();  // reads the environment, once
  settings();
  packing();
  sparse_linears();
  dense_linears();
  parallel_for();
  moments();
  cross_entropies();
  models();
  what_is_asked_of_a_model();
  return report("allocation_failures");
}
