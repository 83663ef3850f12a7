// A packed weight as bytes, with what else a call needs: what the mutator garbles and the corpus holds.
//
//   Header | mask | values | row_offsets | scales | tail        little endian, no padding between the parts
#pragma once

#include <cstdint>

#include "restorelcc/restorelcc.h"
#include "subject.h"

namespace restorelcc::fuzz {

constexpr uint32_t kMagic = 0x46434c52;  // "RLCF"

enum Part { kMask, kValues, kOffsets, kScales, kParts };

enum Flag : uint32_t {
  kNullMask = 1,
  kNullValues = 2,
  kNullOffsets = 4,
  kOddScales = 8,       // scales where there should be none, none where there should be some
  kMisaligned = 16,     // values begin one byte off
  kWildCompIndex = 32,  // the first index comes from the tail
  kCountFromBytes =
      64,  // value_count is what the values' bytes hold, as a reader of a truncated file would find
};

struct Header {
  uint32_t magic;
  int32_t dtype;
  int64_t rows, columns, value_count;
  int32_t x_dtype;
  uint32_t flags;
  uint32_t groups;  // compensations, modulo 4
  uint32_t isa;     // modulo those of this CPU
  uint32_t part_bytes[kParts];
};
static_assert(sizeof(Header) == 64, "no padding: it is the file format");

struct PackedInput {
  Header header{};
  Bytes parts[kParts];
  Bytes tail;
};

// False: too short for a header, or another magic. Parts that the bytes do not hold are cut short.
bool parse(const Bytes& bytes, PackedInput* input);
Bytes serialise(const PackedInput& input);

}  // namespace restorelcc::fuzz
