// Compiled without sanitizers: what is done here on behalf of a kernel's threads is no access of theirs.
// SIMT_SANITIZE_ADDRESS and SIMT_SANITIZE_THREAD say what the rest of the program has.
#include "machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "fibre.h"
#include "scheduler.h"
#include "shared_memory.h"

#if defined(SIMT_SANITIZE_THREAD)
extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
static void __tsan_read_range(void*, unsigned long) {}
static void __tsan_write_range(void*, unsigned long) {}
#endif

namespace simt {

namespace {

enum class State { kReady, kAtWarp, kAtBarrier, kDone };

struct Copy {
  void* shared;
  const void* global;
  int size, bytes;
};

}  // namespace

struct Thread {
  Fibre fibre;
  unsigned linear = 0;  // in its block
  Index index{};
  State state = State::kDone;
  Site site{};  // where it waits
  // What it waits for at its warp.
  Collective collective = Collective::kNone;
  unsigned mask = 0;
  void* slot = nullptr;
  char* order_tag = nullptr;  // of the synchronisation it takes part in
  // cp.async: copies in the order of issue; how many of them each group ends at.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
};

Position position;

namespace {

constexpr unsigned kWarp = 32;

Thread* g_current = nullptr;
std::vector<std::unique_ptr<Thread>> g_threads;  // never shrinks; a block uses the first g_count
unsigned g_count = 0, g_done = 0;
const std::function<void()>* g_body = nullptr;
std::string g_error;
Scheduler g_scheduler;

// What TSan learns: a synchronisation orders what came before it in one thread before what comes after it in
// another. Each one has a tag of its own: with a single tag, a thread that hurries on to its next barrier would
// be ordered before one that has yet to leave this one. Tags are reused when all threads have left long ago.
constexpr unsigned kTags = 8;
char g_barrier_tags[kTags], g_warp_tags[kMostThreads / kWarp][kTags];
unsigned g_barrier_turn = 0, g_warp_turn[kMostThreads / kWarp];
char g_launch_tag, g_finish_tag;

unsigned g_barrier_arrived = 0;

void wake(Thread* thread) {
  thread->state = State::kReady;
  g_scheduler.push(thread->linear);
}

void suspend() { g_current->fibre.suspend(); }

void enter() {
  g_current->fibre.entered();
  __tsan_acquire(&g_launch_tag);
  (*g_body)();
  if (!g_current->copies.empty()) {
    fault({"kernel", 0}, "the thread ends with cp.async copies that it never waited for");
  }
  __tsan_release(&g_finish_tag);
  g_current->state = State::kDone;
  ++g_done;
  suspend();
  __builtin_trap();
}

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

const char* file_name(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return slash != nullptr ? slash + 1 : site.file;
}

std::string describe(Index index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

void deadlock() {
  g_error = "block " + describe(position.block) + ": " + std::to_string(g_done) + " of " +
            std::to_string(g_count) + " threads have ended, the others wait for each other:";
  int told = 0;
  for (unsigned i = 0; i < g_count && told < 4; ++i) {
    const Thread& t = *g_threads[i];
    if (t.state == State::kDone) continue;
    g_error += std::string(told++ > 0 ? "," : "") + " thread " + describe(t.index) + " at " +
               file_name(t.site) + ":" + std::to_string(t.site.line);
  }
}

Index index_of(size_t linear, Index size) {
  return {static_cast<unsigned>(linear % size.x), static_cast<unsigned>(linear / size.x % size.y),
          static_cast<unsigned>(linear / size.x / size.y)};
}

void run_block(size_t block) {
  position.block = index_of(block, position.blocks);
  g_done = g_barrier_arrived = 0;
  shared_memory().start_block();
  g_scheduler.start_block();
  __tsan_acquire(&g_finish_tag);
  __tsan_release(&g_launch_tag);
  for (unsigned i = 0; i < g_count; ++i) {
    Thread& t = *g_threads[i];
    t.linear = i;
    t.index = index_of(i, position.threads);
    t.copies.clear();
    t.groups.clear();
    t.fibre.start(enter);
    wake(&t);
  }
  while (g_done < g_count && g_error.empty()) {
    if (g_scheduler.empty()) return deadlock();
    g_current = g_threads[g_scheduler.pop()].get();
    position.thread = g_current->index;
    position.lane = g_current->linear % kWarp;
    g_current->fibre.resume();
  }
  if (g_error.empty() && !shared_memory().redzones_intact()) {
    g_error = "block " + describe(position.block) + ": shared memory was written outside of its arrays";
  }
}

}  // namespace

Options& options() {
  static Options the_options;
  return the_options;
}

Statistics& statistics() {
  static Statistics the_statistics;
  return the_statistics;
}

const char* run(Index blocks, Index threads, size_t dynamic_shared_bytes, const std::function<void()>& body) {
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  if (count == 0 || count > kMostThreads) return "a block has 1 to 1024 threads";
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return "the grid is empty";
  if (blocks.x > 0x7fffffffu || blocks.y > 65535 || blocks.z > 65535) return "the grid is too large";
  if (dynamic_shared_bytes > options().shared_bytes_per_block) return "a block has no that much shared memory";
  ++statistics().launches;
  g_error.clear();
  g_body = &body;
  g_count = static_cast<unsigned>(count);
  position.blocks = blocks;
  position.threads = threads;
  while (g_threads.size() < count) g_threads.push_back(std::make_unique<Thread>());
  shared_memory().start_launch(dynamic_shared_bytes);
  g_scheduler.start_launch(options().order, options().seed);
  for (unsigned i = 0; i < g_count; ++i) g_threads[i]->fibre.make_race_detector_state();
  const size_t block_count = size_t{blocks.x} * blocks.y * blocks.z;
  for (size_t i = 0; i < block_count && g_error.empty(); ++i) {
    run_block(options().order == Order::kLifo ? block_count - 1 - i : i);
    statistics().threads += count;
  }
  for (unsigned i = 0; i < g_count && !g_error.empty(); ++i) g_threads[i]->fibre.abandon(&g_finish_tag);
  __tsan_acquire(&g_finish_tag);
  for (unsigned i = 0; i < g_count; ++i) g_threads[i]->fibre.destroy_race_detector_state();
  shared_memory().end_launch();
  return g_error.empty() ? nullptr : g_error.c_str();
}

void fault(Site site, const char* format, ...) {
  char what[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof(what), format, arguments);
  va_end(arguments);
  g_error = "block " + describe(position.block) + " thread " + describe(position.thread) + " at " +
            file_name(site) + ":" + std::to_string(site.line) + ": " + what;
  g_current->state = State::kDone;
  suspend();  // for good: the launch is over
  __builtin_trap();
}

void sync_block(Site site) {
  Thread* const self = g_current;
  char* const tag = &g_barrier_tags[g_barrier_turn % kTags];
  __tsan_release(tag);
  self->site = site;
  self->state = State::kAtBarrier;
  if (++g_barrier_arrived == g_count) {
    ++statistics().barriers;
    ++g_barrier_turn;
    g_barrier_arrived = 0;
    for (unsigned i = 0; i < g_count; ++i) wake(g_threads[i].get());  // this thread too: it has no precedence
  }
  suspend();
  __tsan_acquire(tag);
}

void meet(Collective what, Site site, unsigned mask, void* slot, void (*together)(const Lanes&, Site)) {
  Thread* const self = g_current;
  const unsigned first = self->linear / kWarp * kWarp, lane = self->linear % kWarp;
  if (first + kWarp > g_count) {  // lanes that a block of this size does not have
    if (what >= Collective::kLoadMatrices) fault(site, "a matrix instruction needs a whole warp");
    mask &= (1u << (g_count - first)) - 1;
  }
  if ((mask >> lane & 1) == 0) fault(site, "lane %u is not in its own mask %08x", lane, mask);
  self->collective = what;
  self->site = site;
  self->mask = mask;
  self->slot = slot;
  self->order_tag = nullptr;
  Lanes lanes{};
  lanes.mask = mask;
  bool complete = true;
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1) == 0) continue;
    Thread& other = *g_threads[first + i];
    lanes.slot[i] = other.slot;
    if (i == lane) continue;
    if (other.state == State::kDone) fault(site, "lane %u of mask %08x has ended", i, mask);
    if (other.state != State::kAtWarp) {
      complete = false;
      continue;
    }
    if (other.collective != what || other.mask != mask || !same(other.site, site)) {
      fault(site, "the warp has diverged: mask %08x here, mask %08x in lane %u at %s:%d", mask, other.mask, i,
            file_name(other.site), other.site.line);
    }
    self->order_tag = other.order_tag;
  }
  const bool orders_memory = what == Collective::kSyncWarp;  // a shuffle does not
  if (self->order_tag == nullptr)
    self->order_tag = &g_warp_tags[first / kWarp][g_warp_turn[first / kWarp]++ % kTags];
  char* const tag = self->order_tag;
  if (orders_memory) __tsan_release(tag);
  self->state = State::kAtWarp;
  if (complete) {
    ++statistics().collectives;
    if (together != nullptr) together(lanes, site);
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) != 0 && i != lane) wake(g_threads[first + i].get());
    }
    self->state = State::kReady;
    if (g_scheduler.last_arrival_yields()) {
      wake(self);
      suspend();
    }
  } else {
    suspend();
  }
  if (orders_memory) __tsan_acquire(tag);
}

void sync_warp(Site site, unsigned mask) { meet(Collective::kSyncWarp, site, mask, nullptr, nullptr); }

uint64_t shuffle(Site site, unsigned mask, uint64_t value, unsigned source_lane) {
  struct Slot {
    uint64_t value, result;
    unsigned source;
  } slot{value, 0, source_lane};
  meet(Collective::kShuffle, site, mask, &slot, [](const Lanes& lanes, Site where) {
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((lanes.mask >> i & 1) == 0) continue;
      Slot& own = *static_cast<Slot*>(lanes.slot[i]);
      if ((lanes.mask >> own.source & 1) == 0) {
        fault(where, "lane %u shuffles from lane %u, which is not in mask %08x", i, own.source, lanes.mask);
      }
      own.result = static_cast<Slot*>(lanes.slot[own.source])->value;
    }
  });
  return slot.result;
}

unsigned ballot(Site site, unsigned mask, bool vote) {
  struct Slot {
    bool vote;
    unsigned result;
  } slot{vote, 0};
  meet(Collective::kBallot, site, mask, &slot, [](const Lanes& lanes, Site) {
    unsigned votes = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((lanes.mask >> i & 1) != 0 && static_cast<Slot*>(lanes.slot[i])->vote) votes |= 1u << i;
    }
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((lanes.mask >> i & 1) != 0) static_cast<Slot*>(lanes.slot[i])->result = votes;
    }
  });
  return slot.result;
}

unsigned match_any(Site site, unsigned mask, uint64_t value) {
  struct Slot {
    uint64_t value;
    unsigned result;
  } slot{value, 0};
  meet(Collective::kMatch, site, mask, &slot, [](const Lanes& lanes, Site) {
    for (unsigned i = 0; i < kWarp; ++i) {
      if ((lanes.mask >> i & 1) == 0) continue;
      Slot& own = *static_cast<Slot*>(lanes.slot[i]);
      for (unsigned j = 0; j < kWarp; ++j) {
        if ((lanes.mask >> j & 1) != 0 && static_cast<Slot*>(lanes.slot[j])->value == own.value)
          own.result |= 1u << j;
      }
    }
  });
  return slot.result;
}

void* dynamic_shared() { return shared_memory().dynamic(); }

void* shared_array(Site site, size_t bytes) {
  void* const array = shared_memory().array(site.file, site.line, bytes);
  if (array == nullptr) fault(site, "more than 48 KiB of shared arrays, or one array of two sizes");
  return array;
}

namespace {

void perform(const Copy& copy) {
  __tsan_read_range(const_cast<void*>(copy.global), static_cast<unsigned long>(copy.bytes));
  __tsan_write_range(copy.shared, static_cast<unsigned long>(copy.size));
  std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes));
  std::memset(static_cast<char*>(copy.shared) + copy.bytes, 0, static_cast<size_t>(copy.size - copy.bytes));
}

void check_aligned(Site site, const void* pointer, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fault(site, "misaligned %s of %zu bytes at %p", what, bytes, pointer);
  }
}

}  // namespace

void copy_async(Site site, void* shared, const void* global, int size, int bytes) {
  check_aligned(site, shared, static_cast<size_t>(size), "cp.async to shared memory");
  check_aligned(site, global, static_cast<size_t>(size), "cp.async from global memory");
  if (bytes < 0 || bytes > size) fault(site, "cp.async of %d bytes into %d", bytes, size);
  if (!shared_memory().holds(shared, static_cast<size_t>(size)))
    fault(site, "cp.async outside of shared memory");
  ++statistics().copies;
  const Copy copy{shared, global, size, bytes};
  g_current->copies.push_back(copy);
  if (options().eager_copies) return perform(copy);
  __tsan_write_range(shared, static_cast<unsigned long>(size));
  std::memset(shared, 0xff, static_cast<size_t>(size));
}

void commit_copies() { g_current->groups.push_back(g_current->copies.size()); }

void wait_for_copies(int newest) {
  Thread& t = *g_current;
  const size_t kept = static_cast<size_t>(newest);
  if (t.groups.size() <= kept) return;
  const size_t arrived_groups = t.groups.size() - kept, arrived = t.groups[arrived_groups - 1];
  for (size_t i = 0; i < arrived && !options().eager_copies; ++i) perform(t.copies[i]);
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(arrived));
  t.groups.erase(t.groups.begin(), t.groups.begin() + static_cast<std::ptrdiff_t>(arrived_groups));
  for (size_t& end : t.groups) end -= arrived;
}

void check_load(Site site, const void* pointer, size_t bytes) {
  check_aligned(site, pointer, bytes, "load");
  __tsan_read_range(const_cast<void*>(pointer), bytes);
}

void check_store(Site site, void* pointer, size_t bytes) {
  check_aligned(site, pointer, bytes, "store");
  __tsan_write_range(pointer, bytes);
}

}  // namespace simt
