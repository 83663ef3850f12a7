// One input through every entry point that takes a packed weight.
//
// The C ABI takes pointers without lengths, so whoever reads a file allots each array the size that the header
// implies. This does the same, to the byte, so that a sanitizer sees any access beyond; headers whose arrays
// would be larger than a limit are skipped, save those that the library must refuse before it touches an array.
#pragma once

#include <string>

#include "packed_input.h"

namespace restorelcc::fuzz {

enum class Outcome { kNoInput, kTooLarge, kRefused, kAccepted };

// *failure: "" or what went wrong: an accepted input that gave an error, a refusal without a sentence, an
// output written by a call that failed, or a verdict other than that of this program's own reading of the
// format.
Outcome run_input(const Bytes& bytes, std::string* failure);

}  // namespace restorelcc::fuzz
