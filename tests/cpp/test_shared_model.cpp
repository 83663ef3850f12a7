// Sixteen threads share one packed model, and do at once all that its users do: they look up names, multiply
// with and without compensations, take gradients and losses, on the library's pool and on their own, while
// handles are opened and closed and the pool's size changes. Every result is that of one thread, to the bit.
//
//   test_shared_model            a few passes of each thread over all tasks
//   test_shared_model SECONDS    passes until the time is over: `make soak`
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>

#include "matrices.h"
#include "model_files.h"
#include "restorelcc/model.h"

using namespace restorelcc::test;

namespace {

constexpr int kThreads = 16, kPasses = 16, kMostPoolThreads = 4;
constexpr int64_t kTokens = 20;
constexpr const char* kOutputProjection = "model.layers.1.self_attn.o_proj";

using Bits = std::string;
using Handle = std::shared_ptr<const rlcc_model>;

Handle opened(const std::string& directory) {
  rlcc_model* model = nullptr;
  CHECK_STATUS(rlcc_model_open(directory.c_str(), &model), RLCC_OK);
  return Handle(model, [](const rlcc_model* m) { rlcc_model_close(const_cast<rlcc_model*>(m)); });
}

template <class Element>
void append(Bits& bits, const Element* first, int64_t count) {
  if (count > 0)
    bits.append(reinterpret_cast<const char*>(first), static_cast<size_t>(count) * sizeof(Element));
}

template <class Element>
Bits bits_of(const std::vector<Element>& array) {
  Bits bits;
  append(bits, array.data(), static_cast<int64_t>(array.size()));
  return bits;
}

// What all calls read; made once.
struct Inputs {
  Matrix x{kTokens, 300, RLCC_F32}, hidden{2 * kTokens, 40, RLCC_F32};
  std::vector<int64_t> labels, segments;
  std::vector<float> ones = std::vector<float>(kTokens, 1.0f);

  Inputs() {
    std::mt19937 random(41);
    fill_normal(x, random);
    for (int64_t m = 0; m < 2 * kTokens; ++m) {
      for (int64_t e = 0; e < 40; ++e) hidden.set(m, e, std::normal_distribution<float>()(random));
    }
    for (int64_t m = 0; m < kTokens; ++m) {
      labels.push_back(m % 7 == 0 ? -100 : static_cast<int64_t>(random() % 32));
      segments.push_back(m % 2);
    }
  }
};

// A call, or some that belong together, as bits that depend on the model's bytes alone.
struct Task {
  std::string name;
  std::function<Bits(const rlcc_model*, const rlcc_parallel*)> run;
  Bits expected;
};

rlcc_weight weight_of(const rlcc_model* model, const std::string& name) {
  rlcc_weight weight{};
  CHECK_STATUS(rlcc_model_weight(model, name.c_str(), &weight), RLCC_OK);
  return weight;
}

Bits all_that_is_handed_out(const rlcc_model* model) {
  Bits bits;
  rlcc_model_config config{};
  CHECK_STATUS(rlcc_model_get_config(model, &config), RLCC_OK);
  append(bits, config.json, config.json_bytes);
  append(bits, config.eos_tokens, config.eos_token_count);
  for (int64_t i = 0; i < rlcc_model_tensor_count(model); ++i) {
    rlcc_tensor tensor{};
    CHECK_STATUS(rlcc_model_tensor_at(model, i, &tensor), RLCC_OK);
    bits += tensor.name;
    append(bits, static_cast<const char*>(tensor.data), tensor.bytes);
    CHECK(rlcc_model_has(model, tensor.name) == 1);
  }
  for (int64_t i = 0; i < rlcc_model_weight_count(model); ++i) {
    rlcc_weight weight{};
    CHECK_STATUS(rlcc_model_weight_at(model, i, &weight), RLCC_OK);
    bits += weight.name + std::string(" of ") + weight.joined;
    append(bits, weight.weight.row_offsets, weight.weight.rows + 1);
    append(bits, &weight.first_row, 1);
  }
  for (int64_t i = 0; i < rlcc_model_compensation_count(model); ++i) {
    rlcc_compensation compensation{};
    CHECK_STATUS(rlcc_model_compensation_at(model, i, &compensation), RLCC_OK);
    bits += compensation.name;
    append(bits, compensation.heads, compensation.layers * compensation.heads_columns);
    append(bits, compensation.ffn, compensation.layers * compensation.ffn_columns);
  }
  return bits;
}

// The last error is this thread's own.
Bits sentence_for(const rlcc_model* model, const std::string& name) {
  rlcc_weight weight{};
  CHECK_STATUS(rlcc_model_weight(model, name.c_str(), &weight), RLCC_INVALID_ARGUMENT);
  std::this_thread::yield();
  return rlcc_last_error();
}

// Both compensations of layer 1 through W of the output projection, then a mixed batch that begins with
// `first`.
Bits mixed_batch(const rlcc_model* model, const rlcc_parallel* parallel, const Inputs& in, int64_t rows,
                 int64_t first) {
  const rlcc_packed_weight weight = weight_of(model, kOutputProjection).weight;
  std::vector<float> vectors, comp_rows(static_cast<size_t>(2 * weight.rows));
  for (int64_t i = 0; i < 2; ++i) {
    rlcc_compensation compensation{};
    CHECK_STATUS(rlcc_model_compensation_at(model, i, &compensation), RLCC_OK);
    const float* of_layer = compensation.heads + compensation.heads_columns;
    vectors.insert(vectors.end(), of_layer, of_layer + weight.columns);
  }
  rlcc_sparse_linear_params params{};
  params.weight = weight;
  params.x = vectors.data();
  params.x_rows = 2;
  params.x_stride = weight.columns;
  params.exact_x = 1;
  params.y = comp_rows.data();
  params.y_stride = weight.rows;
  params.parallel = parallel;
  CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);

  std::vector<int64_t> index;
  for (int64_t m = 0; m < rows; ++m) index.push_back((m + first) % 2);
  std::vector<float> y(static_cast<size_t>(rows * weight.rows));
  params.x = in.x.data();
  params.x_rows = rows;
  params.x_stride = in.x.stride();
  params.exact_x = 0;
  params.comp_rows = comp_rows.data();
  params.groups = 2;
  params.comp_index = index.data();
  params.y = y.data();
  CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);
  return bits_of(comp_rows) + bits_of(y);
}

Bits product(const rlcc_model* model, const rlcc_parallel* parallel, const Inputs& in, const std::string& name,
             int64_t rows) {
  const rlcc_packed_weight weight = weight_of(model, name).weight;
  std::vector<float> y(static_cast<size_t>(rows * weight.rows));
  rlcc_sparse_linear_params params{};
  params.weight = weight;
  params.x = in.x.data();
  params.x_rows = rows;
  params.x_stride = in.x.stride();
  params.y = y.data();
  params.y_stride = weight.rows;
  params.parallel = parallel;
  CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);
  return bits_of(y);
}

Bits gradients(const rlcc_model* model, const rlcc_parallel* parallel, const Inputs& in,
               const std::string& name) {
  const rlcc_packed_weight weight = weight_of(model, name).weight;
  std::vector<float> grad_x(static_cast<size_t>(kTokens * weight.columns));
  std::vector<float> grad_comp(static_cast<size_t>(2 * weight.rows)),
      grad_bias(static_cast<size_t>(weight.rows));
  const void* grad_y = in.x.data();
  const rlcc_sparse_linear_grad_x_params of_x{weight,   grad_y,        kTokens,        in.x.stride(),
                                              RLCC_F32, grad_x.data(), weight.columns, parallel};
  CHECK_STATUS(rlcc_sparse_linear_grad_x(&of_x), RLCC_OK);
  const rlcc_sparse_linear_grad_comp_params of_comp{
      grad_y, kTokens,          weight.rows,      in.x.stride(), RLCC_F32, in.segments.data(),
      2,      grad_comp.data(), grad_bias.data(), parallel};
  CHECK_STATUS(rlcc_sparse_linear_grad_comp(&of_comp), RLCC_OK);
  Bits bits = bits_of(grad_x) + bits_of(grad_comp) + bits_of(grad_bias);
  if (weight.dtype == RLCC_I8) return bits;
  std::vector<uint16_t> grad_values(static_cast<size_t>(weight.value_count));
  const rlcc_sparse_linear_grad_values_params of_values{weight,  in.x.data(),   kTokens,  in.x.stride(),
                                                        grad_y,  in.x.stride(), RLCC_F32, grad_values.data(),
                                                        parallel};
  CHECK_STATUS(rlcc_sparse_linear_grad_values(&of_values), RLCC_OK);
  return bits + bits_of(grad_values);
}

// The embedding as a head: logits, losses with gradients, and the contrast of two edits.
Bits head(const rlcc_model* model, const rlcc_parallel* parallel, const Inputs& in) {
  rlcc_tensor table{};
  CHECK_STATUS(rlcc_model_tensor(model, "model.embed_tokens.weight", &table), RLCC_OK);
  const int64_t words = table.shape[0], columns = table.shape[1];
  std::vector<float> logits(static_cast<size_t>(kTokens * words)), nll(kTokens), lse(kTokens);
  rlcc_dense_linear_params dense{};
  dense.weight = table.data;
  dense.rows = words;
  dense.columns = dense.weight_stride = columns;
  dense.weight_dtype = table.dtype;
  dense.x = in.hidden.data();
  dense.x_rows = kTokens;
  dense.x_stride = columns;
  dense.y = logits.data();
  dense.y_stride = words;
  dense.parallel = parallel;
  CHECK_STATUS(rlcc_dense_linear(&dense), RLCC_OK);

  Matrix h(2 * kTokens, columns, table.dtype), grad_h(kTokens, columns, table.dtype);
  Matrix grad_weight(words, columns, table.dtype);
  for (int64_t m = 0; m < 2 * kTokens; ++m) {
    for (int64_t e = 0; e < columns; ++e) h.set(m, e, in.hidden.get(m, e));
  }
  const rlcc_language_head of{table.data, words, columns, columns, nullptr, table.dtype};
  const rlcc_linear_cross_entropy_params loss{of,      h.data(),   kTokens,    columns,       in.labels.data(),
                                              -100,    nll.data(), lse.data(), grad_h.data(), columns,
                                              parallel};
  CHECK_STATUS(rlcc_linear_cross_entropy(&loss), RLCC_OK);
  const rlcc_linear_cross_entropy_backward_params backward{
      of,         h.data(),       kTokens,       columns, in.labels.data(),   -100,
      lse.data(), in.ones.data(), grad_h.data(), columns, grad_weight.data(), columns,
      nullptr,    parallel};
  CHECK_STATUS(rlcc_linear_cross_entropy_backward(&backward), RLCC_OK);
  std::vector<double> contrast(4);
  const rlcc_head_contrast_params edits{
      of,         h.data(),           2, kTokens, kTokens * columns, columns, in.labels.data(), -100,
      nll.data(), in.segments.data(), 2, nullptr, contrast.data(),   parallel};
  CHECK_STATUS(rlcc_head_contrast(&edits), RLCC_OK);
  Bits bits = bits_of(logits) + bits_of(nll) + bits_of(lse) + bits_of(contrast);
  const int64_t width = static_cast<int64_t>(dtype_bytes(table.dtype));
  append(bits, static_cast<const char*>(grad_h.data()), kTokens * columns * width);
  append(bits, static_cast<const char*>(grad_weight.data()), words * columns * width);
  return bits;
}

Bits squares(const rlcc_parallel* parallel) {
  std::vector<int64_t> found(500);
  const rlcc_task square = [](void* to, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) static_cast<int64_t*>(to)[i] = i * i;
  };
  CHECK_STATUS(rlcc_parallel_for(parallel, 500, 7, square, found.data()), RLCC_OK);
  return bits_of(found);
}

std::vector<Task> all_tasks(const Inputs& in, bool packed_head) {
  std::vector<Task> tasks;
  const auto add = [&](const std::string& name, auto run) { tasks.push_back({name, run, {}}); };
  add("lookups", [](const rlcc_model* m, const rlcc_parallel*) { return all_that_is_handed_out(m); });
  for (const char* name : {"no such weight", "model.layers.7"}) {
    add(name, [=](const rlcc_model* m, const rlcc_parallel*) { return sentence_for(m, name); });
  }
  for (const int64_t rows : {1, 4, 20}) {
    for (const int64_t first : {0, 1}) {
      add("mixed batch",
          [=, &in](const rlcc_model* m, const rlcc_parallel* p) { return mixed_batch(m, p, in, rows, first); });
    }
    for (const char* name : {"model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_proj",
                             packed_head ? "lm_head" : "model.layers.0.mlp.down_proj"}) {
      add(name,
          [=, &in](const rlcc_model* m, const rlcc_parallel* p) { return product(m, p, in, name, rows); });
    }
  }
  for (const char* name : {kOutputProjection, "model.layers.0.mlp.up_proj"}) {
    add("gradients",
        [=, &in](const rlcc_model* m, const rlcc_parallel* p) { return gradients(m, p, in, name); });
  }
  add("head", [&in](const rlcc_model* m, const rlcc_parallel* p) { return head(m, p, in); });
  add("parallel_for", [](const rlcc_model*, const rlcc_parallel* p) { return squares(p); });
  return tasks;
}

// The caller's pool: this thread, and one more for the second half.
void run_on_two_threads(void*, int64_t count, int64_t grain, rlcc_task task, void* context) {
  const int64_t middle = std::max(grain, count / 2);
  std::thread other(task, context, middle, count);
  task(context, 0, middle);
  other.join();
}

// Handles that threads replace and take; one that is replaced is closed by its last user, whoever that is.
class Handles {
 public:
  explicit Handles(const std::string& directory) : directory_(directory) {
    for (Handle& slot : slots_) slot = opened(directory_);
  }
  Handle take(size_t slot) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return slots_[slot % 3];
  }
  void replace(size_t slot) {
    Handle made = opened(directory_);
    const std::lock_guard<std::mutex> lock(mutex_);
    slots_[slot % 3].swap(made);
  }

 private:
  const std::string directory_;
  std::mutex mutex_;
  Handle slots_[3];
};

void share(rlcc_dtype values, double seconds) {
  ModelOptions options;
  options.values = values;
  options.joined = values != RLCC_I8;
  options.head = values == RLCC_I8;
  options.heads = options.ffn = true;
  const Directory directory;
  tiny_llama(options).write(directory.path());
  const Handle shared = opened(directory.path());
  if (shared == nullptr) return;
  const Inputs inputs;
  std::vector<Task> tasks = all_tasks(inputs, options.head);
  CHECK_STATUS(rlcc_set_num_threads(1), RLCC_OK);
  for (Task& task : tasks) {
    task.expected = task.run(shared.get(), nullptr);
    CHECK(!task.expected.empty()) << task.name;
  }

  Handles handles(directory.path());
  const rlcc_parallel own{run_on_two_threads, nullptr, 2};
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::atomic<int> waiting{kThreads};
  std::atomic<long> passes{0};
  std::vector<std::thread> threads;
  for (unsigned number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] {
      std::mt19937 random(number);
      std::vector<size_t> order;
      for (size_t i = 0; i < tasks.size(); ++i) order.push_back(i);
      for (--waiting; waiting.load() > 0;) std::this_thread::yield();  // all begin together
      for (int pass = 0; seconds > 0 ? std::chrono::steady_clock::now() < end : pass < kPasses; ++pass) {
        std::shuffle(order.begin(), order.end(), random);
        for (const size_t i : order) {
          const Handle handle = random() % 3 == 0 ? handles.take(random()) : shared;
          const Bits found = tasks[i].run(handle.get(), random() % 3 == 0 ? &own : nullptr);
          CHECK(found == tasks[i].expected) << tasks[i].name << " in thread " << number << ", pass " << pass;
          if (random() % 8 == 0) handles.replace(random());
          if (random() % 8 == 0)
            CHECK_STATUS(rlcc_set_num_threads(1 + static_cast<int32_t>(random() % kMostPoolThreads)), RLCC_OK);
        }
        ++passes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%s: %ld passes over %zu tasks\n", dtype_name(values), passes.load(), tasks.size());
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 0;
  if (argc > 2 || (argc == 2 && !(seconds > 0))) {
    std::fprintf(stderr, "usage: test_shared_model [SECONDS]\n");
    return 2;
  }
  for (const rlcc_dtype values : {RLCC_BF16, RLCC_I8}) share(values, seconds / 2);
  return report("shared_model");
}
