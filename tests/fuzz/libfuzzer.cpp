// The same checks behind libFuzzer (clang): -DRLCC_LIBFUZZER=ON. It mutates by itself; start it on
// tests/fuzz/corpus, or on what rlcc_fuzz_model --write-corpus writes.
#include <cstdio>
#include <cstdlib>

#include "subject.h"

#if !defined(RLCC_LIBFUZZER)
#error "compile with -DRLCC_LIBFUZZER"
#endif

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string failure;
  restorelcc::fuzz::run_input(restorelcc::fuzz::Bytes(data, data + size), &failure);
  if (!failure.empty()) {
    std::fprintf(stderr, "%s\n", failure.c_str());
    std::abort();
  }
  return 0;
}
