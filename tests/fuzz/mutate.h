// The mutator: a good packed weight, garbled in one to four ways.
#pragma once

#include <random>

#include "packed_input.h"

namespace restorelcc::fuzz {

// Truncation, flipped bits, lying headers, sizes and offsets, huge integers, swapped arrays, wrong dtypes, null
// and misaligned pointers; and changes that keep the weight good (other values, a survivor moved within its
// row).
Bytes mutate(const Bytes& seed, std::mt19937_64& random);

}  // namespace restorelcc::fuzz
