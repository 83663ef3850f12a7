// What a harness is made of. main.cpp and libfuzzer.cpp run whichever set of these is linked: of packed weights
// (packed_input, mutate, run_input) or of packed models on disk (model_input, mutate_model, run_model).
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace restorelcc::fuzz {

using Bytes = std::vector<uint8_t>;

extern const char kProgram[];  // "rlcc_fuzz"
extern const char kAbout[];    // one line for --help

struct Seed {
  std::string name;
  Bytes bytes;
};
// Good inputs.
std::vector<Seed> seeds();

// A good input, garbled in one to four ways; some of them keep it good.
Bytes mutate(const Bytes& seed, std::mt19937_64& random);

enum class Outcome { kNoInput, kTooLarge, kRefused, kAccepted };

// *failure: "" or what went wrong: an accepted input that gave an error, a refusal without a sentence, an
// output written by a call that failed.
Outcome run_input(const Bytes& bytes, std::string* failure);

}  // namespace restorelcc::fuzz
