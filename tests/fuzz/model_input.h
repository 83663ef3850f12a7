// A packed model on disk as bytes: what the mutator garbles, and what is written before each run.
//
//   "RLCM" | 4 x uint32 size, or kAbsent | restorelcc.json | config.json | generation_config.json |
//   packed.safetensors
#pragma once

#include <string>

#include "subject.h"

namespace restorelcc::fuzz {

enum ModelFile { kRecord, kConfig, kGeneration, kTensors, kModelFiles };
constexpr const char* kFileNames[kModelFiles] = {"restorelcc.json", "config.json", "generation_config.json",
                                                 "packed.safetensors"};

struct ModelInput {
  std::string files[kModelFiles];
  bool absent[kModelFiles] = {};
};

// False: too short for a head, or another one. Files that the bytes do not hold are cut short.
bool parse(const Bytes& bytes, ModelInput* input);
Bytes serialise(const ModelInput& input);

}  // namespace restorelcc::fuzz
