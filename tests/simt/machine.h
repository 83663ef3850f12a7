// The machine under the emulated CUDA built-ins: one fibre per CUDA thread, one operating-system thread for all
// of them. Blocks run one after the other; inside a block a thread runs until it has to wait for others, and
// the order in which waiting threads go on is chosen by Options. Kernels meet this only through
// device_emulation.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace simt {

enum class Order {
  kFifo,     // threads take turns
  kLifo,     // the last to become ready runs first: one warp, and one block, hurries ahead backwards
  kRandom,   // any ready thread
  kPriority  // the ready warp of highest priority; priorities are random and change now and then
};

struct Options {
  Order order = Order::kFifo;
  uint64_t seed = 1;
  // cp.async writes at once. Otherwise, as late as allowed: when waited for; until then the place holds NaN.
  bool eager_copies = false;
  // What the emulated device claims to be.
  int multiprocessors = 4;
  int capability = 80;
  // Told of every launch, and of the stream that it was to be queued on.
  void (*watch)(void* stream) = nullptr;
  size_t shared_bytes_per_block = 99 * 1024;  // sm_86 and sm_89: the smallest of the architectures built for
};
Options& options();

// What ran since the last reset; to see that a path was taken, and bank conflicts of ldmatrix.
struct Statistics {
  uint64_t launches = 0, threads = 0, barriers = 0, collectives = 0, copies = 0;
  uint64_t mma = 0, mma_sp = 0, ldmatrix = 0, ldmatrix_conflicts = 0;
};
Statistics& statistics();

struct Index {
  unsigned x, y, z;
};

// A place in the kernel's source: collectives that meet at two places have diverged.
struct Site {
  const char* file;
  int line;
};

struct Thread;
// What a kernel's thread may ask about itself.
struct Position {
  Index thread, block, threads, blocks;  // threadIdx, blockIdx, blockDim, gridDim
  unsigned lane;
};
extern Position position;

// Runs body() once per thread of the grid. nullptr, or which thread of which block did what wrong where.
const char* run(Index blocks, Index threads, size_t dynamic_shared_bytes, const std::function<void()>& body);

// Ends the launch; only from inside of it.
[[noreturn]] void fault(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- shared memory: poisoned with NaN when a block starts, with redzones that are checked when it ends
void* dynamic_shared();
void* shared_array(Site site, size_t bytes);  // the same place for all threads of a block

// ---- collectives
void sync_block(Site site);
void sync_warp(Site site, unsigned mask);
uint64_t shuffle(Site site, unsigned mask, uint64_t value, unsigned source_lane);
unsigned ballot(Site site, unsigned mask, bool vote);
unsigned match_any(Site site, unsigned mask, uint64_t value);

// ---- cp.async
void copy_async(Site site, void* shared, const void* global, int size, int bytes);
void commit_copies();
void wait_for_copies(int newest);  // all groups but the newest ones have arrived

// ---- matrices (tensor_core.cpp)
enum class Half { kBf16, kF16 };
void load_matrices(Site site, uint32_t* registers, const void* row, int count, bool transposed);
void multiply_m16n8k16(Site site, Half type, float* d, const uint32_t* a, const uint32_t* b, const float* c);
void multiply_sparse_m16n8k32(Site site, Half type, float* d, const uint32_t* a, const uint32_t* b,
                              const float* c, uint32_t metadata, int selector);

// Faults unless `pointer` is a multiple of `bytes`; tells a race detector of the access.
void check_load(Site site, const void* pointer, size_t bytes);
void check_store(Site site, void* pointer, size_t bytes);

// ---- for tensor_core.cpp
enum class Collective {
  kNone,
  kSyncWarp,
  kShuffle,
  kBallot,
  kMatch,
  kLoadMatrices,
  kMultiply,
  kMultiplySparse
};
struct Lanes {
  void* slot[32];  // of each lane in the mask: what it handed to meet()
  unsigned mask;
};
// Waits for all lanes of `mask` to come here; the last one runs `together` on what each brought.
void meet(Collective what, Site site, unsigned mask, void* slot,
          void (*together)(const Lanes& lanes, Site site));

}  // namespace simt
