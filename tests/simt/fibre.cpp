// Compiled without sanitizers; SIMT_SANITIZE_ADDRESS and SIMT_SANITIZE_THREAD say what the rest of the program
// has.
#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#if defined(SIMT_SANITIZE_THREAD)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_release(void* tag);
}
#endif
#if defined(SIMT_SANITIZE_ADDRESS)
extern "C" {
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
void __asan_unpoison_memory_region(const volatile void* address, size_t size);
}
#endif

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kGuardBytes = 4096;  // below the stack: an overflow is a fault

#if defined(SIMT_SANITIZE_THREAD)
void* g_outside_race_detector = nullptr;
constexpr unsigned kNoSynchronisation = 1;  // a switch orders no memory accesses
#endif
#if defined(SIMT_SANITIZE_ADDRESS)
const void* g_outside_stack = nullptr;
size_t g_outside_stack_bytes = 0;
#endif

#if defined(SIMT_USE_UCONTEXT)
ucontext_t g_outside;
#else
void* g_outside = nullptr;

// Saves what a call must keep on this stack and its pointer in *from, then the same backwards from `to`.
__attribute__((naked, noinline)) void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}
#endif

}  // namespace

Fibre::Fibre() {
  void* const found =
      mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(found);
  mprotect(memory_, kGuardBytes, PROT_NONE);
}

Fibre::~Fibre() { munmap(memory_, kStackBytes); }

void Fibre::start(void (*entry)()) {
  fake_stack_ = nullptr;
#if defined(SIMT_USE_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = memory_;
  context_.uc_stack.ss_size = kStackBytes;
  makecontext(&context_, entry, 0);
#else
  // As if entry() had been called: the stack is 16-byte aligned before the (absent) return address.
  void** top = reinterpret_cast<void**>(memory_ + kStackBytes - 64);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  stack_pointer_ = top - 6;
#endif
}

void Fibre::resume() {
#if defined(SIMT_SANITIZE_THREAD)
  g_outside_race_detector = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_detector_, kNoSynchronisation);
#endif
#if defined(SIMT_SANITIZE_ADDRESS)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, memory_, kStackBytes);
#endif
#if defined(SIMT_USE_UCONTEXT)
  swapcontext(&g_outside, &context_);
#else
  switch_stack(&g_outside, stack_pointer_);
#endif
#if defined(SIMT_SANITIZE_ADDRESS)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fibre::entered() {
#if defined(SIMT_SANITIZE_ADDRESS)
  __sanitizer_finish_switch_fiber(nullptr, &g_outside_stack, &g_outside_stack_bytes);
#endif
}

void Fibre::suspend() {
#if defined(SIMT_SANITIZE_THREAD)
  __tsan_switch_to_fiber(g_outside_race_detector, kNoSynchronisation);
#endif
#if defined(SIMT_SANITIZE_ADDRESS)
  __sanitizer_start_switch_fiber(&fake_stack_, g_outside_stack, g_outside_stack_bytes);
#endif
#if defined(SIMT_USE_UCONTEXT)
  swapcontext(&context_, &g_outside);
#else
  switch_stack(&stack_pointer_, g_outside);
#endif
#if defined(SIMT_SANITIZE_ADDRESS)
  __sanitizer_finish_switch_fiber(fake_stack_, &g_outside_stack, &g_outside_stack_bytes);
#endif
}

void Fibre::abandon(void* tag) {
#if defined(SIMT_SANITIZE_THREAD)
  void* const outside = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(race_detector_, kNoSynchronisation);
  __tsan_release(tag);
  __tsan_switch_to_fiber(outside, kNoSynchronisation);
#endif
  (void)tag;
#if defined(SIMT_SANITIZE_ADDRESS)
  __asan_unpoison_memory_region(memory_ + kGuardBytes, kStackBytes - kGuardBytes);
#endif
}

void Fibre::make_race_detector_state() {
#if defined(SIMT_SANITIZE_THREAD)
  race_detector_ = __tsan_create_fiber(0);
#endif
}

void Fibre::destroy_race_detector_state() {
#if defined(SIMT_SANITIZE_THREAD)
  __tsan_destroy_fiber(race_detector_);
  race_detector_ = nullptr;
#endif
}

}  // namespace simt
