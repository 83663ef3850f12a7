// What is timed: one call of one op on one copy of its weight.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "dense.h"
#include "pool.h"
#include "weights.h"

namespace restorelcc::bench {

constexpr int64_t kCompensations = 64;  // G of forward_comp64

enum class Op { kForward, kForwardComp64, kGradX, kGradValues, kDense, kRead, kReadInOrder };
const char* name_of(Op op);

struct Contender {
  Op op;
  std::string dtype;  // "" of the reads
  int64_t copies;     // distinct weights to go round
  int64_t bytes;      // moved by a call at least: the weight, x, y, compensations, once each
  int64_t flops;      // 2 M survivors (dense: 2 M N K)
  std::function<void(int64_t copy)> call;
  // "" where the last call's result agrees with the float64 reference, else what differs. May be null.
  std::function<std::string()> check;
};

// `packed` must outlive the contender, as must `pool`.
Contender sparse_contender(Op op, const PackedCopies& packed, int64_t rows, Pool& pool);
// Our dense product of one row; fp32, bf16 and int8. Checked against the sparse reference of `packed`.
Contender dense_contender(const DenseCopies& dense, const PackedCopies& packed, Pool& pool);
// A streaming sum over the copies of `packed`, 32 MB or more a call.
Contender read_contender(Op op, const PackedCopies& packed, Pool& pool);

}  // namespace restorelcc::bench
