// Planted bugs, one kernel each, and how each kind is found. They stay: an emulator that no longer finds one of
// them has lost what it is for. With a name as argument only that bug runs, for the sanitizers' tests, which
// expect its report.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../cpp/guarded_memory.h"
#include "check_launch.h"
#include "cuda/device.cuh"

using namespace restorelcc::cuda;
using namespace restorelcc::test;

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void no_barrier_after_write(int* out) {
  RLCC_SHARED(int, place, 128);
  place[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = place[127 - threadIdx.x];  // __syncthreads() is missing
}

// A double buffer whose readers may still be at it when it is written again.
__global__ void no_barrier_before_rewrite(int* out) {
  RLCC_SHARED(int, place, 128);
  int sum = 0;
  for (int round = 0; round < 4; ++round) {
    place[threadIdx.x] = round;
    __syncthreads();
    sum += place[127 - threadIdx.x];  // a second __syncthreads() is missing
  }
  out[threadIdx.x] = sum;
}

__global__ void no_warp_barrier(int* out) {
  RLCC_SHARED(int, place, 32);
  place[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = place[31 - threadIdx.x];  // __syncwarp() is missing
}

__global__ void diverged_shuffle(int* out) {
  int v = static_cast<int>(threadIdx.x);
  if (threadIdx.x < 16) {
    v = __shfl_xor_sync(kAll, v, 1);
  } else {
    v = __shfl_xor_sync(kAll, v, 2);
  }
  out[threadIdx.x] = v;
}

__global__ void shuffle_with_ended_lane(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
}

__global__ void shuffle_from_outside_of_mask(int* out) {
  if (threadIdx.x % 2 == 1) out[threadIdx.x] = __shfl_sync(0xaaaaaaaau, 1, 0);
}

__global__ void barrier_of_some(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}

template <int kNewest>
__global__ void waited_for_too_few(const float* in, float* out) {
  RLCC_DYNAMIC_SHARED(float, staged);
  for (int stage = 0; stage < 2; ++stage) {
    ptx::cp_async_4(staged + stage * 32 + threadIdx.x, in + stage * 32 + threadIdx.x);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait_group<kNewest>();  // 1 is right for the first stage
  out[threadIdx.x] = staged[threadIdx.x];
  ptx::cp_async_wait_group<0>();
}

__global__ void never_waited_for(const float* in, float* out) {
  RLCC_DYNAMIC_SHARED(float, staged);
  ptx::cp_async_4(staged + threadIdx.x, in + threadIdx.x);
  ptx::cp_async_commit();
  out[threadIdx.x] = 0;
}

__global__ void copy_to(const char* in, int shared_offset, int global_offset) {
  RLCC_DYNAMIC_SHARED(char, staged);
  ptx::cp_async_16(staged + shared_offset, in + global_offset);
  ptx::cp_async_commit();
  ptx::cp_async_wait_group<0>();
}

__global__ void misaligned_matrix(uint32_t* out) {
  RLCC_DYNAMIC_SHARED(char, staged);
  uint32_t r[4];
  ptx::ldmatrix_x4(r, staged + threadIdx.x * 16 + 8);
  out[threadIdx.x] = r[0];
}

__global__ void misaligned_load(const char* in, unsigned* out) {
  out[threadIdx.x] = ptx::load_stream_16(in + threadIdx.x * 4).x;
}

__global__ void plain_misaligned_load(const int* in, unsigned* out) {
  out[threadIdx.x] = reinterpret_cast<const uint4*>(in + threadIdx.x)->x;
}

__global__ void misaligned_store(char* out) { ptx::store_stream_16(out + threadIdx.x * 8, uint4{}); }

__global__ void unordered_metadata(float* out, uint32_t metadata) {
  float c[4] = {};
  const uint32_t a[4] = {}, b[4] = {};
  ptx::mma_sp_m16n8k32_bf16<0>(c, a, b, c, metadata);
  out[threadIdx.x] = c[0];
}

__global__ void partial_warp_multiplies(float* out) {
  float c[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  ptx::mma_m16n8k16_f16(c, a, b, c);
  out[threadIdx.x] = c[0];
}

__global__ void dynamic_overrun(int* out, int extra) {
  RLCC_DYNAMIC_SHARED(int, staged);
  staged[threadIdx.x + static_cast<unsigned>(extra)] = 1;
  out[threadIdx.x] = staged[threadIdx.x + static_cast<unsigned>(extra)];
}

__global__ void array_overrun(int* out, int extra) {
  RLCC_SHARED(int, place, 32);
  place[threadIdx.x + static_cast<unsigned>(extra)] = 1;
  out[threadIdx.x] = place[threadIdx.x + static_cast<unsigned>(extra)];
}

__global__ void reads_unwritten_shared(float* out) {
  RLCC_SHARED(float, place, 32);
  if (threadIdx.x != 5) place[threadIdx.x] = 1;
  __syncwarp();
  out[threadIdx.x] = place[(threadIdx.x + 1) % 32];
}

__global__ void reads_global(const int* in, int* out) { out[threadIdx.x] = in[threadIdx.x]; }

#if !defined(__SANITIZE_THREAD__)  // it stops at the first race
bool is_reversed(const std::vector<int>& out) {
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] != static_cast<int>(out.size() - 1 - i)) return false;
  }
  return true;
}

bool is_all_six(const std::vector<int>& out) {
  return std::all_of(out.begin(), out.end(), [](int v) { return v == 6; });
}

// How many schedules give a wrong result.
template <class Kernel, class Right>
int wrong_schedules(Kernel kernel, unsigned threads, const Right& right, bool* fifo = nullptr,
                    bool* lifo = nullptr) {
  int wrong = 0;
  under_every_schedule(10, [&](const std::string& name) {
    std::vector<int> out(threads);
    CHECK_LAUNCHED(launch(kernel, 1, threads, 0, nullptr, out.data()));
    if (right(out)) return;
    ++wrong;
    if (fifo != nullptr && name == "fifo lazy") *fifo = true;
    if (lifo != nullptr && name == "lifo lazy") *lifo = true;
  });
  return wrong;
}

void found_by_schedules() {
  bool fifo = false, lifo = false;
  CHECK(wrong_schedules(no_barrier_after_write, 128, is_reversed, &fifo, &lifo) > 20);
  CHECK(fifo && lifo);
  CHECK(wrong_schedules(no_warp_barrier, 32, is_reversed) > 20);
  CHECK(wrong_schedules(no_barrier_before_rewrite, 128, is_all_six) > 20);
}
#endif

void found_by_poison() {
  const std::vector<float> in(64, 1.0f);
  under_every_schedule(2, [&](const std::string& name) {
    const bool lazy = name.find("lazy") != std::string::npos;
    std::vector<float> out(32);
    CHECK_LAUNCHED(launch(waited_for_too_few<2>, 1, 32, 256, nullptr, in.data(), out.data()));
    CHECK(std::isnan(out[0]) == lazy && std::isnan(out[31]) == lazy) << name;
    CHECK_LAUNCHED(launch(waited_for_too_few<1>, 1, 32, 256, nullptr, in.data(), out.data()));
    CHECK(out[0] == 1 && out[31] == 1) << name;
    CHECK_LAUNCHED(launch(reads_unwritten_shared, 2, 32, 0, nullptr, out.data()));
    CHECK(std::isnan(out[4]) && out[5] == 1) << name;
  });
}

void found_by_the_machine() {
  alignas(16) char in[1024] = {};
  std::vector<int> out(64);
  std::vector<unsigned> words(64);
  std::vector<float> floats(64);
  under_every_schedule(2, [&](const std::string&) {
    CHECK_FAULT(launch(diverged_shuffle, 1, 32, 0, nullptr, out.data()), "the warp has diverged");
    CHECK_FAULT(launch(shuffle_from_outside_of_mask, 1, 32, 0, nullptr, out.data()), "not in mask");
    CHECK_FAULT(launch(barrier_of_some, 1, 64, 0, nullptr, out.data()), "wait for each other");
    const char* const ended = launch(shuffle_with_ended_lane, 1, 32, 0, nullptr, out.data());
    CHECK(ended != nullptr &&
          (std::strstr(ended, "lane 3 of mask") || std::strstr(ended, "wait for each other")));
    CHECK_FAULT(launch(never_waited_for, 1, 32, 256, nullptr, floats.data(), floats.data()),
                "never waited for");
    CHECK_FAULT(launch(copy_to, 1, 1, 64, nullptr, in, 4, 0), "misaligned cp.async to shared");
    CHECK_FAULT(launch(copy_to, 1, 1, 64, nullptr, in, 0, 4), "misaligned cp.async from global");
    CHECK_FAULT(launch(copy_to, 1, 1, 64, nullptr, in, 64, 0), "outside of shared memory");
    CHECK_FAULT(launch(misaligned_matrix, 1, 32, 1024, nullptr, words.data()), "misaligned load of 16");
    CHECK_FAULT(launch(misaligned_load, 1, 32, 0, nullptr, in, words.data()), "misaligned load of 16");
    CHECK_FAULT(launch(misaligned_store, 1, 2, 0, nullptr, in), "misaligned store of 16");
    CHECK_FAULT(launch(unordered_metadata, 1, 32, 0, nullptr, floats.data(), 0u), "not ascending");
    CHECK_FAULT(launch(unordered_metadata, 1, 32, 0, nullptr, floats.data(), 0x44444441u), "not ascending");
    CHECK_LAUNCHED(launch(unordered_metadata, 1, 32, 0, nullptr, floats.data(), 0x44444444u));
    CHECK_FAULT(launch(partial_warp_multiplies, 1, 16, 0, nullptr, floats.data()), "a whole warp");
  });
  // The message names the place.
  const char* const where = launch(misaligned_load, dim3(1, 2), 32, 0, nullptr, in, words.data());
  CHECK(std::strstr(where, "block (0, 0, 0) thread (1, 0, 0) at faults.cu:") == where) << where;
}

#if !defined(__SANITIZE_ADDRESS__)  // it stops at the first
void found_by_redzones() {
  std::vector<int> out(32);
  CHECK_FAULT(launch(dynamic_overrun, 1, 32, 128, nullptr, out.data(), 1), "outside of its arrays");
  CHECK_FAULT(launch(array_overrun, 1, 32, 0, nullptr, out.data(), 1), "outside of its arrays");
  CHECK_LAUNCHED(launch(dynamic_overrun, 1, 32, 128, nullptr, out.data(), 0));
  CHECK_LAUNCHED(launch(array_overrun, 1, 32, 0, nullptr, out.data(), 0));
}
#endif

// One bug by name. Each ends the program in the build whose sanitizer finds it.
int run_one(const std::string& name) {
  std::vector<int> out(128);
  std::vector<unsigned> words(128);
  const char* error = nullptr;
  simt::options().order = simt::Order::kFifo;  // a race is one whatever the order
  if (name == "barrier_after_write") error = launch(no_barrier_after_write, 1, 128, 0, nullptr, out.data());
  if (name == "barrier_before_rewrite")
    error = launch(no_barrier_before_rewrite, 1, 128, 0, nullptr, out.data());
  if (name == "warp_barrier") error = launch(no_warp_barrier, 1, 32, 0, nullptr, out.data());
  if (name == "dynamic_overrun") error = launch(dynamic_overrun, 1, 32, 128, nullptr, out.data(), 1);
  if (name == "array_overrun") error = launch(array_overrun, 1, 32, 0, nullptr, out.data(), 1);
  if (name == "misaligned") error = launch(plain_misaligned_load, 1, 32, 0, nullptr, out.data(), words.data());
  if (name == "global") {
    const std::vector<int> in(31);
    error = launch(reads_global, 1, 32, 0, nullptr, in.data(), out.data());
  }
  if (name == "guard_page") {
    const Guarded in(nullptr, 31 * 4, Guarded::kEnd);
    error = launch(reads_global, 1, 32, 0, nullptr, in.as<int>(), out.data());
  }
  std::printf("%s: %s\n", name.c_str(), error != nullptr ? error : "nobody stopped it");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return run_one(argv[1]);
#if !defined(__SANITIZE_THREAD__)
  found_by_schedules();
#endif
  found_by_poison();
  found_by_the_machine();
#if !defined(__SANITIZE_ADDRESS__)
  found_by_redzones();
#endif
  return report("faults");
}
