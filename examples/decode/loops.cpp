#include "loops.h"

#include <cstring>
#include <string>

#include "restorelcc/restorelcc.h"

namespace decode {

// [activations][cache], 0: fp32, 1: bf16
extern const Loops kLoopsBaseline[2][2];
#if DECODE_X86_LOOPS
extern const Loops kLoopsAvx2[2][2];
extern const Loops kLoopsAvx512[2][2];
#endif

const Loops& loops_for(rlcc_dtype activations, rlcc_dtype cache) {
  const int a = activations == RLCC_BF16 ? 1 : 0, c = cache == RLCC_BF16 ? 1 : 0;
#if DECODE_X86_LOOPS
  const std::string isa = rlcc_isa();
  if (isa.rfind("avx512", 0) == 0) return kLoopsAvx512[a][c];
  if (isa == "avx2") return kLoopsAvx2[a][c];
#endif
  return kLoopsBaseline[a][c];
}

}  // namespace decode
