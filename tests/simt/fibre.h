// A stack and a place to go on from. Switching is a dozen instructions on x86-64, ucontext elsewhere, and the
// sanitizers are told of each switch.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_USE_UCONTEXT 1
#include <ucontext.h>
#endif

namespace simt {

class Fibre {
 public:
  Fibre();
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // The next resume() enters entry() anew, whatever the fibre did before. entry() must not return.
  void start(void (*entry)());
  void resume();   // from outside, until it suspends
  void suspend();  // from inside
  void entered();  // first thing in entry()
  // After it was left in the middle. For TSan what it did is over (`tag` is released in its name), for ASan its
  // marks on its stack are void.
  void abandon(void* tag);

  void make_race_detector_state();  // a thread of its own for TSan, for one launch
  void destroy_race_detector_state();

 private:
  char* memory_ = nullptr;
  void* race_detector_ = nullptr;
  void* fake_stack_ = nullptr;
#if defined(SIMT_USE_UCONTEXT)
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace simt
