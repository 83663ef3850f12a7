// The first call of a process makes what all later ones use: it reads the environment, builds tables, starts
// threads. Each of its allocations fails once, in a process of its own: it says RLCC_OUT_OF_MEMORY, and the
// second call works.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "allocations.h"
#include "matrices.h"
#include "restorelcc/model.h"

using namespace restorelcc::test;

namespace {

struct First {
  const char* name;
  std::function<rlcc_status()> call;
  rlcc_status expected = RLCC_OK;
  const char* isa = nullptr;  // RLCC_ISA
};

enum Outcome { kNothingFailed, kFailedAndRecovered, kWrong };

Outcome child(const First& first, long failing) {
  if (first.isa != nullptr) setenv("RLCC_ISA", first.isa, 1);
  arm(failing, false);
  const rlcc_status status = first.call();
  const bool failed = disarm();
  if (status != (failed ? RLCC_OUT_OF_MEMORY : first.expected) || first.call() != first.expected) return kWrong;
  return failed ? kFailedAndRecovered : kNothingFailed;
}

void run(const First& first, long least, long step = 1) {
  long failures = 0;
  for (Outcome outcome = kFailedAndRecovered; outcome == kFailedAndRecovered; ++failures) {
    const pid_t process = fork();
    if (process == 0) _exit(child(first, failures * step));
    int status = -1;
    const bool ended = waitpid(process, &status, 0) == process && WIFEXITED(status);
    outcome = ended ? static_cast<Outcome>(WEXITSTATUS(status)) : kWrong;
    CHECK(outcome == kNothingFailed || outcome == kFailedAndRecovered)
        << first.name << ", allocation " << failures * step << ": "
        << (ended ? "not what the header says" : "the process was ended by a signal");
  }
  CHECK(failures > least) << first.name << " had " << failures - 1 << " failures, expected " << least;
  std::printf("%s: %ld failures\n", first.name, failures - 1);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string directory = argc > 1 ? std::string(argv[1]) + "/int8" : std::string();
  std::mt19937 random(12);
  const Packed packed(random_weight(300, 70, RLCC_BF16, random,
                                    half_with_full_and_empty_row(random)));  // uses neither pool nor ISA
  const Matrix x(1, 70, RLCC_BF16);
  std::vector<uint16_t> y(300);
  rlcc_sparse_linear_params params{};
  params.weight = packed.weight;
  params.x = x.data();
  params.x_rows = 1;
  params.x_stride = 70;
  params.x_dtype = RLCC_BF16;
  params.y = y.data();
  params.y_stride = 300;
  const auto multiply = [&] { return rlcc_sparse_linear(&params); };
  const rlcc_task nothing = [](void*, int64_t, int64_t) {};
  const auto said = [](bool answered) { return answered ? RLCC_OK : RLCC_OUT_OF_MEMORY; };
  const rlcc_kernel_info* kernels = nullptr;
  int64_t count = 0;

  run({"get_num_threads", [&] { return said(rlcc_get_num_threads() > 0); }}, 0);
  run({"last_error", [&] { return said(*rlcc_last_error() == '\0'); }}, 0);
  run({"isa", [&] { return said(*rlcc_isa() != '\0'); }}, 0);
  run({"isa of a wrong wish", [&] { return said(*rlcc_isa() != '\0'); }, RLCC_OUT_OF_MEMORY, "of tomorrow"}, 0);
  run({"kernels", [&] { return rlcc_kernels(&kernels, &count); }}, 0);
  run({"build_info", [&] { return said(std::strcmp(rlcc_build_info(), "{}") != 0); }}, 1);
  run({"set_num_threads", [&] { return rlcc_set_num_threads(3); }}, 0);
  run({"parallel_for", [&] { return rlcc_parallel_for(nullptr, 300, 1, nothing, nullptr); }}, 1);
  run({"sparse_linear", multiply}, 1);
  run({"sparse_linear of a wrong wish", multiply, RLCC_UNSUPPORTED, "of tomorrow"}, 1);
  run({"model_open",
       [&] {
         rlcc_model* model = nullptr;
         const rlcc_status status = rlcc_model_open(directory.c_str(), &model);
         rlcc_model_close(model);
         return status;
       }},
      50, 7);
  return report("allocation_failures_first");
}
