// The same checks behind libFuzzer (clang): -DRLCC_LIBFUZZER=ON. Half of its mutations are the harness's own,
// which know the format; the others are libFuzzer's, which know what the library compared. docs/testing.md
// starts it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "subject.h"

#if !defined(RLCC_LIBFUZZER)
#error "compile with -DRLCC_LIBFUZZER"
#endif

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned int seed) {
  std::mt19937_64 random(seed);
  if (random() % 2 == 0) return LLVMFuzzerMutate(data, size, most);
  const restorelcc::fuzz::Bytes bytes = restorelcc::fuzz::mutate({data, data + size}, random);
  const size_t kept = std::min(bytes.size(), most);
  std::copy_n(bytes.begin(), kept, data);
  return kept;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string failure;
  restorelcc::fuzz::run_input(restorelcc::fuzz::Bytes(data, data + size), &failure);
  if (!failure.empty()) {
    std::fprintf(stderr, "%s\n", failure.c_str());
    std::abort();
  }
  return 0;
}
