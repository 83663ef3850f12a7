// Truncation, flipped bits, lying headers, sizes and offsets, huge integers, swapped arrays, wrong dtypes, null
// and misaligned pointers; and changes that keep the weight good (other values, a survivor moved within its
// row).

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>

#include "packed_input.h"

namespace restorelcc::fuzz {
namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t limit) { return static_cast<size_t>(random() % limit); }

// Sizes at which arithmetic goes wrong, and neighbours of what was there.
int64_t interesting(Random& random, int64_t was) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const int64_t values[] = {0,
                            1,
                            -1,
                            was ^ 1,
                            static_cast<int64_t>(static_cast<uint64_t>(was) + 16),
                            static_cast<int64_t>(static_cast<uint64_t>(was) - 16),
                            static_cast<int64_t>(static_cast<uint64_t>(was) * 2),
                            63,
                            64,
                            65,
                            int64_t{1} << 20,
                            int64_t{1} << 31,
                            int64_t{1} << 32,
                            (int64_t{1} << 32) + 16,
                            int64_t{1} << 58,
                            int64_t{1} << 60,
                            (int64_t{1} << 61) + 4,
                            kHuge,
                            kHuge - 7,
                            kHuge - 63,
                            std::numeric_limits<int64_t>::min(),
                            static_cast<int64_t>(random())};
  return values[below(random, std::size(values))];
}

template <class Element>
Element get(const Bytes& bytes, size_t index) {
  Element value;
  std::memcpy(&value, bytes.data() + index * sizeof(Element), sizeof(Element));
  return value;
}

template <class Element>
void put(Bytes& bytes, size_t index, Element value) {
  std::memcpy(bytes.data() + index * sizeof(Element), &value, sizeof(Element));
}

void lie_about_sizes(PackedInput& input, Random& random) {
  Header& h = input.header;
  int64_t* const sizes[] = {&h.rows, &h.columns, &h.value_count};
  int64_t& size = *sizes[below(random, 3)];
  size = random() % 2 == 0 ? interesting(random, size)
                           : static_cast<int64_t>(static_cast<uint64_t>(size) + random() % 9 - 4);
}

void lie_about_types(PackedInput& input, Random& random) {
  int32_t* const types[] = {&input.header.dtype, &input.header.x_dtype};
  int32_t& type = *types[below(random, 2)];
  type = random() % 4 != 0 ? static_cast<int32_t>(random() % 6) - 1 : static_cast<int32_t>(random());
}

void move_offsets(PackedInput& input, Random& random) {
  Bytes& offsets = input.parts[kOffsets];
  const size_t count = offsets.size() / 8;
  if (count == 0) return;
  const size_t n = below(random, count), other = below(random, count);
  const int64_t was = get<int64_t>(offsets, n);
  switch (random() % 4) {
    case 0: return put(offsets, n, interesting(random, was));
    case 1:  // all rows behind this one, by the same distance
      for (size_t i = n; i < count; ++i) {
        put(offsets, i, static_cast<int64_t>(get<uint64_t>(offsets, i) + 16));
      }
      return;
    case 2: put(offsets, n, get<int64_t>(offsets, other)); return put(offsets, other, was);
    default:
      return put(offsets, n, static_cast<int64_t>(static_cast<uint64_t>(was) + 16 * (random() % 5) - 32));
  }
}

void change_mask(PackedInput& input, Random& random) {
  Bytes& mask = input.parts[kMask];
  const size_t words = mask.size() / 8;
  if (words == 0) return;
  const size_t j = below(random, words);
  const auto word = get<uint64_t>(mask, j);
  const uint64_t one = uint64_t{1} << (random() % 64);
  switch (random() % 4) {
    case 0: return put(mask, j, ~uint64_t{0});
    case 1: return put(mask, j, random());
    case 2: return put(mask, j, word & (word - 1));  // one survivor less: still a good weight
    default: return put(mask, j, word ^ one);
  }
}

// A survivor changes places with its left neighbour.
void move_survivor(PackedInput& input, Random& random) {
  Bytes& mask = input.parts[kMask];
  if (mask.size() < 8) return;
  const size_t j = below(random, mask.size() / 8);
  const auto word = get<uint64_t>(mask, j);
  const int i = static_cast<int>(random() % 63);
  const uint64_t pair = (word >> i) & 3;
  if (pair == 1 || pair == 2) put(mask, j, word ^ (uint64_t{3} << i));
}

void noise(Bytes& bytes, Random& random) {
  if (bytes.empty()) return;
  for (uint64_t i = random() % 16 + 1; i > 0; --i) {
    bytes[below(random, bytes.size())] = static_cast<uint8_t>(random());
  }
}

void change_sections(PackedInput& input, Random& random) {
  const size_t a = below(random, kParts), b = below(random, kParts);
  switch (random() % 3) {
    case 0: return std::swap(input.parts[a], input.parts[b]);
    case 1:  // a section cut short, or grown
      input.parts[a].resize(below(random, input.parts[a].size() * 2 + 2));
      input.header.part_bytes[a] = static_cast<uint32_t>(input.parts[a].size());
      return;
    default:
      input.header.part_bytes[a] = static_cast<uint32_t>(interesting(random, input.header.part_bytes[a]));
  }
}

void change_call(PackedInput& input, Random& random) {
  switch (random() % 4) {
    case 0: input.header.groups = static_cast<uint32_t>(random()); return;
    case 1: input.header.isa = static_cast<uint32_t>(random()); return;
    case 2:
      input.header.flags ^= kWildCompIndex;
      input.tail.resize(8);
      return put(input.tail, 0, interesting(random, 1));
    default: input.header.flags ^= uint32_t{1} << (random() % 7);
  }
}

void change_bytes(Bytes& bytes, Random& random) {
  if (bytes.empty()) return;
  switch (random() % 3) {
    case 0: return bytes.resize(below(random, bytes.size()));
    case 1:
      for (uint64_t i = random() % 8 + 1; i > 0; --i) {
        bytes[below(random, bytes.size())] ^= static_cast<uint8_t>(1u << (random() % 8));
      }
      return;
    default: {
      const size_t from = below(random, bytes.size()), to = below(random, bytes.size());
      const size_t count = below(random, bytes.size() - std::max(from, to)) % 64;
      const Bytes piece(bytes.begin() + static_cast<std::ptrdiff_t>(from),
                        bytes.begin() + static_cast<std::ptrdiff_t>(from + count));
      std::copy(piece.begin(), piece.end(), bytes.begin() + static_cast<std::ptrdiff_t>(to));
    }
  }
}

}  // namespace

Bytes mutate(const Bytes& seed, Random& random) {
  PackedInput input;
  if (!parse(seed, &input)) return seed;
  bool raw = false;
  for (uint64_t i = random() % 4 + 1; i > 0; --i) {
    switch (random() % 12) {
      case 0:
      case 1: lie_about_sizes(input, random); break;
      case 2: lie_about_types(input, random); break;
      case 3:
      case 4: move_offsets(input, random); break;
      case 5: change_mask(input, random); break;
      case 6: move_survivor(input, random); break;
      case 7: noise(input.parts[kValues], random); break;
      case 8: noise(input.parts[kScales], random); break;
      case 9: change_sections(input, random); break;
      case 10: change_call(input, random); break;
      default: raw = true;
    }
  }
  Bytes bytes = serialise(input);
  if (raw) change_bytes(bytes, random);
  return bytes;
}

}  // namespace restorelcc::fuzz
