// The same bits for any number of threads and any pool; calls from many threads at once; after fork().
#include <atomic>
#include <memory>
#include <thread>

#include "core/thread_pool.h"
#include "matrices.h"

#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

using namespace restorelcc::test;

namespace {

struct Outputs {
  std::vector<float> few, few_int8, many, gradient;
  std::vector<char> values_gradient;
  std::vector<float> values_gradient_f32;
  std::vector<double> total, gram;
  bool operator==(const Outputs& o) const {
    return few == o.few && few_int8 == o.few_int8 && values_gradient == o.values_gradient && many == o.many &&
           values_gradient_f32 == o.values_gradient_f32 && gradient == o.gradient && total == o.total &&
           gram == o.gram;
  }
};

class Workload {
 public:
  Workload() {
    std::mt19937 random(31);
    weight_ = std::make_unique<Packed>(
        random_weight(300, 700, RLCC_BF16, random, half_with_full_and_empty_row(random)));
    f32_ = std::make_unique<Packed>(
        random_weight(300, 700, RLCC_F32, random, half_with_full_and_empty_row(random)));
    int8_ = std::make_unique<Packed>(
        random_weight(300, 700, RLCC_F32, random, half_with_full_and_empty_row(random)), RLCC_I8);
    x_ = std::make_unique<Matrix>(150, 700, RLCC_F32);
    fill_normal(*x_, random);
  }

  Outputs run(const rlcc_parallel* parallel) const {
    Outputs out;
    out.few.resize(9 * 300);
    out.few_int8.resize(9 * 300);
    out.many.resize(150 * 300);
    out.gradient.resize(150 * 700);
    out.values_gradient.resize(static_cast<size_t>(weight_->weight.value_count) * 2);
    out.total.resize(7 * 50);
    out.gram.resize(7 * 50 * 50);
    rlcc_sparse_linear_params linear{};
    linear.weight = weight_->weight;
    linear.x = x_->data();
    linear.x_rows = 9;
    linear.x_stride = 700;
    linear.y = out.few.data();
    linear.y_stride = 300;
    linear.parallel = parallel;
    CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
    linear.weight = int8_->weight;
    linear.y = out.few_int8.data();
    CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
    linear.weight = weight_->weight;
    linear.x_rows = 150;
    linear.y = out.many.data();
    CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
    rlcc_sparse_linear_grad_x_params gradient{};
    gradient.weight = weight_->weight;
    gradient.grad_y = x_->data();
    gradient.y_rows = 150;
    gradient.grad_y_stride = 700;
    gradient.grad_x = out.gradient.data();
    gradient.grad_x_stride = 700;
    gradient.parallel = parallel;
    CHECK_STATUS(rlcc_sparse_linear_grad_x(&gradient), RLCC_OK);
    rlcc_sparse_linear_grad_values_params of_values{};
    of_values.weight = weight_->weight;
    of_values.x = of_values.grad_y = x_->data();
    of_values.rows = 150;
    of_values.x_stride = of_values.grad_y_stride = 700;
    of_values.dtype = RLCC_F32;
    of_values.grad_values = out.values_gradient.data();
    of_values.parallel = parallel;
    CHECK_STATUS(rlcc_sparse_linear_grad_values(&of_values), RLCC_OK);
    out.values_gradient_f32.resize(static_cast<size_t>(f32_->weight.value_count));
    of_values.weight = f32_->weight;
    of_values.grad_values = out.values_gradient_f32.data();
    CHECK_STATUS(rlcc_sparse_linear_grad_values(&of_values), RLCC_OK);
    rlcc_head_moments_params moments{};
    moments.z_dense = x_->data();
    moments.z_pruned = static_cast<const float*>(x_->data()) + 350;
    moments.tokens = 150;
    moments.heads = 7;
    moments.head_dim = 50;
    moments.dense_token_stride = moments.pruned_token_stride = 700;
    moments.dense_head_stride = 50;
    moments.pruned_head_stride = 50;
    moments.total = out.total.data();
    moments.gram = out.gram.data();
    moments.parallel = parallel;
    CHECK_STATUS(rlcc_head_moments(&moments), RLCC_OK);
    return out;
  }

 private:
  std::unique_ptr<Packed> weight_, f32_, int8_;
  std::unique_ptr<Matrix> x_;
};

// The caller's pool: a thread per chunk of exactly `grain` items.
void run_on_new_threads(void*, int64_t count, int64_t grain, rlcc_task task, void* context) {
  std::vector<std::thread> threads;
  for (int64_t begin = 0; begin < count; begin += grain) {
    threads.emplace_back(task, context, begin, std::min(begin + grain, count));
  }
  for (std::thread& thread : threads) thread.join();
}

// Chunks in reverse order, on this thread.
void run_backwards(void*, int64_t count, int64_t, rlcc_task task, void* context) {
  for (int64_t i = count - 1; i >= 0; --i) task(context, i, i + 1);
}

// Eight callers with one weight: each its own params and outputs, decode and panel, products and gradients at
// once; every other one with a pool of its own beside the library's.
void one_weight_for_all(const char* isa, rlcc_dtype values) {
  constexpr int64_t kOutputs = 96, kInputs = 330, kMost = 70;
  std::mt19937 random(32);
  const Packed shared(
      random_weight(kOutputs, kInputs, dense_dtype(values), random, half_with_full_and_empty_row(random)),
      values);
  Matrix x(kMost, kInputs, RLCC_F32), grad_y(kMost, kOutputs, RLCC_F32);
  fill_normal(x, random);
  fill_normal(grad_y, random);
  rlcc_packed_weight weight = shared.weight;
  weight.trusted = 1;
  const rlcc_parallel own{run_on_new_threads, nullptr, 3};

  const auto call = [&](int64_t caller) {
    std::vector<std::vector<float>> out;
    for (int64_t rows : {1, 4, 20, 70}) {
      rlcc_sparse_linear_params linear{};
      linear.weight = weight;
      linear.x = x.data();
      linear.x_rows = rows;
      linear.x_stride = kInputs;
      linear.y = out.emplace_back(static_cast<size_t>(rows * kOutputs)).data();
      linear.y_stride = kOutputs;
      linear.parallel = caller % 2 == 0 ? nullptr : &own;
      CHECK_STATUS(rlcc_sparse_linear(&linear), RLCC_OK);
    }
    rlcc_sparse_linear_grad_x_params of_x{};
    of_x.weight = weight;
    of_x.grad_y = grad_y.data();
    of_x.y_rows = kMost;
    of_x.grad_y_stride = kOutputs;
    of_x.grad_x = out.emplace_back(static_cast<size_t>(kMost * kInputs)).data();
    of_x.grad_x_stride = kInputs;
    of_x.parallel = caller % 2 == 0 ? nullptr : &own;
    CHECK_STATUS(rlcc_sparse_linear_grad_x(&of_x), RLCC_OK);
    if (values == RLCC_I8) return out;
    rlcc_sparse_linear_grad_values_params of_values{};
    of_values.weight = weight;
    of_values.x = x.data();
    of_values.grad_y = grad_y.data();
    of_values.rows = kMost;
    of_values.x_stride = kInputs;
    of_values.grad_y_stride = kOutputs;
    of_values.grad_values = out.emplace_back(shared.storage.size() / 2).data();  // room for 2 or 4 bytes each
    of_values.parallel = caller % 2 == 0 ? nullptr : &own;
    CHECK_STATUS(rlcc_sparse_linear_grad_values(&of_values), RLCC_OK);
    return out;
  };

  CHECK_STATUS(rlcc_set_num_threads(4), RLCC_OK);
  const std::vector<std::vector<float>> expected = call(0);
  std::atomic<int> waiting{8}, same{0};
  std::vector<std::thread> callers;
  for (int64_t caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      for (--waiting; waiting.load() > 0;) std::this_thread::yield();  // all begin together
      for (int repeat = 0; repeat < 3; ++repeat) same += call(caller) == expected ? 1 : 0;
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK(same == 8 * 3) << isa << " " << dtype_name(values) << ": " << same << " of 24 are the same";
}

// Chunks of at least `grain` items, a whole number of them for each thread where there are enough.
void chunks() {
  for (int64_t threads : {1, 2, 3, 8}) {
    for (int64_t grain : {1, 5, 56}) {
      for (int64_t count = grain + 1; count < 40 * grain; ++count) {
        const int64_t items = restorelcc::chunk_items(count, grain, threads),
                      used = (count + items - 1) / items;
        CHECK(items >= grain && used <= 4 * threads) << count << " of " << grain << " on " << threads;
        CHECK(count >= threads * grain || items == grain) << count << " of " << grain << " on " << threads;
      }
    }
  }
  CHECK(restorelcc::chunk_items(144, 56, 2) == 72);  // not 56, 56 and 32
  CHECK(restorelcc::chunk_items(144, 21, 2) == 24);
  CHECK(restorelcc::chunk_items(1000, 1, 2) == 125);
}

// Each item once, on the library's pool and on the caller's, also from inside a task.
void parallel_for() {
  struct Counts {
    std::vector<std::atomic<int>> seen = std::vector<std::atomic<int>>(1000);
    std::atomic<int> nested{0};
  };
  const rlcc_parallel own{run_backwards, nullptr, 5};
  for (const rlcc_parallel* parallel : {static_cast<const rlcc_parallel*>(nullptr), &own}) {
    for (int64_t count : {0, 1, 7, 1000}) {
      Counts counts;
      const rlcc_task task = [](void* context, int64_t begin, int64_t end) {
        Counts& c = *static_cast<Counts*>(context);
        for (int64_t i = begin; i < end; ++i) ++c.seen[static_cast<size_t>(i)];
        const rlcc_task add = [](void* to, int64_t b, int64_t e) {
          *static_cast<std::atomic<int>*>(to) += static_cast<int>(e - b);
        };
        CHECK_STATUS(rlcc_parallel_for(nullptr, 3, 1, add, &c.nested), RLCC_OK);
      };
      CHECK_STATUS(rlcc_parallel_for(parallel, count, 10, task, &counts), RLCC_OK);
      for (size_t i = 0; i < counts.seen.size(); ++i)
        CHECK(counts.seen[i] == (i < static_cast<size_t>(count) ? 1 : 0));
      CHECK(counts.nested % 3 == 0 && (counts.nested > 0) == (count > 0));
    }
  }
  const rlcc_task nothing = [](void*, int64_t, int64_t) {};
  const rlcc_parallel no_run{nullptr, nullptr, 2};
  CHECK_STATUS(rlcc_parallel_for(nullptr, 1, 1, nullptr, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_parallel_for(nullptr, -1, 1, nothing, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_parallel_for(&no_run, 1, 1, nothing, nullptr), RLCC_INVALID_ARGUMENT);
}

// Counts of which a few chunks more do not fit 64 bits: each item belongs to one chunk, and none lies outside.
void counts_near_the_end_of_int64() {
  struct Taken {
    std::atomic<int64_t> items{0}, outside{0};
    int64_t count;
  };
  const rlcc_task take = [](void* context, int64_t begin, int64_t end) {
    Taken& taken = *static_cast<Taken*>(context);
    taken.outside += begin < 0 || begin > end || end > taken.count ? 1 : 0;
    taken.items += end - begin;
  };
  const int64_t half = int64_t{1} << 62;
  const int64_t cases[][2] = {{INT64_MAX, 1}, {INT64_MAX, half}, {half, half - 1}, {INT64_MAX, INT64_MAX - 1}};
  for (const int32_t threads : {2, 3, 7}) {
    CHECK_STATUS(rlcc_set_num_threads(threads), RLCC_OK);
    for (const auto& [count, grain] : cases) {
      Taken taken;
      taken.count = count;
      CHECK_STATUS(rlcc_parallel_for(nullptr, count, grain, take, &taken), RLCC_OK);
      CHECK(taken.items == count && taken.outside == 0)
          << count << " items, grain " << grain << ", " << threads << " threads: " << taken.items;
    }
  }
}

}  // namespace

int main() {
  chunks();
  parallel_for();
  const Workload workload;
  for (const char* isa : kIsas) {
    if (rlcc_force_isa(isa) != RLCC_OK) {
      skip(rlcc_last_error());
      continue;
    }
    CHECK_STATUS(rlcc_set_num_threads(1), RLCC_OK);
    const Outputs expected = workload.run(nullptr);
    for (int32_t threads : {2, 3, 7, 16}) {
      CHECK_STATUS(rlcc_set_num_threads(threads), RLCC_OK);
      CHECK(rlcc_get_num_threads() == threads);
      for (int repeat = 0; repeat < 3; ++repeat)
        CHECK(workload.run(nullptr) == expected) << isa << " " << threads;
    }
    // It says 3 threads and uses more: slower, not wrong.
    const rlcc_parallel new_threads{run_on_new_threads, nullptr, 3}, backwards{run_backwards, nullptr, 5};
    CHECK(workload.run(&new_threads) == expected) << isa;
    CHECK(workload.run(&backwards) == expected) << isa;

    // Many callers share one pool, while somebody changes its size.
    CHECK_STATUS(rlcc_set_num_threads(3), RLCC_OK);
    std::vector<std::thread> callers;
    std::vector<int> same(4, 0);
    for (size_t i = 0; i < same.size(); ++i) {
      callers.emplace_back([&, i] {
        for (int repeat = 0; repeat < 3; ++repeat) same[i] += workload.run(nullptr) == expected ? 1 : 0;
      });
    }
    for (int32_t threads : {2, 4, 3}) CHECK_STATUS(rlcc_set_num_threads(threads), RLCC_OK);
    for (std::thread& caller : callers) caller.join();
    for (int count : same) CHECK(count == 3) << isa;

    for (const rlcc_dtype values : {RLCC_BF16, RLCC_I8, RLCC_F32}) one_weight_for_all(isa, values);

#if defined(__unix__) && !defined(__SANITIZE_THREAD__)
    const pid_t child = fork();  // the pool's threads do not survive this; the child makes its own
    if (child == 0) _exit(workload.run(nullptr) == expected ? 0 : 1);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0) << isa;
#endif
  }
  counts_near_the_end_of_int64();
  CHECK_STATUS(rlcc_set_num_threads(0), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_set_num_threads(1 << 20), RLCC_INVALID_ARGUMENT);
  const rlcc_parallel no_run{nullptr, nullptr, 2}, no_threads{run_backwards, nullptr, 0};
  for (const rlcc_parallel* wrong : {&no_run, &no_threads}) {
    rlcc_head_moments_params moments{};
    moments.parallel = wrong;
    CHECK_STATUS(rlcc_head_moments(&moments), RLCC_INVALID_ARGUMENT);
  }
  return report("threads");
}
