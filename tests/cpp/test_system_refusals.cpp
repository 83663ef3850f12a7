// What the system refuses: threads for the pool, a mapping of a model, one more open file.
#include <sys/resource.h>

#include <atomic>
#include <cstring>

#include "check.h"
#include "restorelcc/model.h"
#include "system_refusals.h"

using namespace restorelcc::test;

namespace {

// The pool is made of the threads that start, and each item is done once.
void fewer_threads() {
  constexpr int64_t kItems = 1000;
  for (const int started : {0, 1, 3}) {
    CHECK_STATUS(rlcc_set_num_threads(2), RLCC_OK);
    CHECK_STATUS(rlcc_set_num_threads(6), RLCC_OK);  // a new pool, made in the next call
    std::atomic<int> done[kItems] = {};
    const rlcc_task task = [](void* items, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++static_cast<std::atomic<int>*>(items)[i];
    };
    allow_threads(started);
    for (int repeat = 1; repeat <= 3; ++repeat) {
      CHECK_STATUS(rlcc_parallel_for(nullptr, kItems, 1, task, done), RLCC_OK);
      for (const std::atomic<int>& times : done) CHECK(times == repeat) << started << " threads";
    }
    CHECK(refused_threads() == 1) << refused_threads();
    allow_threads(-1);
  }
}

void open_fails(const std::string& directory, rlcc_status expected, const char* sentence) {
  rlcc_model* model = nullptr;
  CHECK_STATUS(rlcc_model_open(directory.c_str(), &model), expected);
  CHECK(model == nullptr && std::strstr(rlcc_last_error(), sentence) != nullptr) << rlcc_last_error();
}

void no_mapping(const std::string& directory) {
  refuse_mappings(true);
  open_fails(directory, RLCC_OUT_OF_MEMORY, "packed.safetensors cannot be mapped: out of memory");
  refuse_mappings(false);
}

void no_more_files(const std::string& directory) {
  rlimit before{};
  CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
  const rlimit none{0, before.rlim_max};
  CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
  open_fails(directory, RLCC_INVALID_ARGUMENT, "cannot be read: Too many open files");
  CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string directory = std::string(argv[1]) + "/bf16";
  fewer_threads();
  no_mapping(directory);
  no_more_files(directory);
  rlcc_model* model = nullptr;  // and afterwards all is well
  CHECK_STATUS(rlcc_model_open(directory.c_str(), &model), RLCC_OK);
  rlcc_model_close(model);
  return report("system_refusals");
}
