#include "packed_input.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace restorelcc::fuzz {
namespace {

struct Shape {
  int64_t rows, columns;
};
constexpr Shape kShapes[] = {{5, 70}, {1, 1}, {3, 64}, {2, 129}, {9, 31}, {0, 5}, {3, 0}};
constexpr rlcc_dtype kValuesDtypes[] = {RLCC_F32, RLCC_BF16, RLCC_F16, RLCC_I8};
constexpr const char* kNames[] = {"f32", "bf16", "f16", "i8"};

template <class Element>
Bytes bytes_of(const std::vector<Element>& array) {
  Bytes bytes(array.size() * sizeof(Element));
  if (!bytes.empty()) std::memcpy(bytes.data(), array.data(), bytes.size());
  return bytes;
}

// Row 1 has no survivors, row 2 is full, of the others every third is pruned. 0x3d80 + i is a small positive
// number in bf16 and in fp16.
Seed seed_of(Shape shape, rlcc_dtype values) {
  const int64_t rows = shape.rows, columns = shape.columns, count = rows * columns;
  const rlcc_dtype dense = values == RLCC_I8 ? RLCC_F32 : values;
  std::vector<float> wide(static_cast<size_t>(count));
  std::vector<uint16_t> half(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t n = i / columns, k = i % columns;
    if (n == 1 || (n != 2 && (n + k) % 3 == 0)) continue;
    wide[static_cast<size_t>(i)] = static_cast<float>(i % 17 - 8) + 0.5f;
    half[static_cast<size_t>(i)] = static_cast<uint16_t>(0x3d80 + i % 128);
  }
  const void* weight = dense == RLCC_F32 ? static_cast<const void*>(wide.data()) : half.data();
  PackedInput input;
  Header& h = input.header;
  h = {kMagic, values, rows, columns, 0, dense, 0, static_cast<uint32_t>(columns) % 4, 0, {}};
  if (rlcc_pack_count(weight, rows, columns, columns, dense, values, &h.value_count) != RLCC_OK) std::abort();
  const size_t element_bytes = values == RLCC_F32 ? 4 : values == RLCC_I8 ? 1 : 2;
  std::vector<uint64_t> mask(static_cast<size_t>(rows * ((columns + 63) / 64)));
  std::vector<int64_t> offsets(static_cast<size_t>(rows + 1));
  std::vector<uint16_t> scales(values == RLCC_I8 ? static_cast<size_t>(rows * ((columns + 127) / 128)) : 0);
  Bytes& kept = input.parts[kValues];
  kept.resize(static_cast<size_t>(h.value_count) * element_bytes);
  if (rlcc_pack(weight, rows, columns, columns, dense, values, mask.data(), kept.data(), h.value_count,
                offsets.data(), values == RLCC_I8 ? scales.data() : nullptr) != RLCC_OK) {
    std::abort();
  }
  input.parts[kMask] = bytes_of(mask);
  input.parts[kOffsets] = bytes_of(offsets);
  input.parts[kScales] = bytes_of(scales);
  for (int part = 0; part < kParts; ++part)
    h.part_bytes[part] = static_cast<uint32_t>(input.parts[part].size());
  input.tail.assign(8, 0);
  const std::string name =
      std::string(kNames[values]) + "_" + std::to_string(rows) + "x" + std::to_string(columns);
  return {name, serialise(input)};
}

}  // namespace

bool parse(const Bytes& bytes, PackedInput* input) {
  if (bytes.size() < sizeof(Header)) return false;
  std::memcpy(&input->header, bytes.data(), sizeof(Header));
  if (input->header.magic != kMagic) return false;
  size_t at = sizeof(Header);
  for (int part = 0; part < kParts; ++part) {
    const size_t size = std::min<size_t>(input->header.part_bytes[part], bytes.size() - at);
    input->parts[part].assign(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                              bytes.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
  }
  input->tail.assign(bytes.begin() + static_cast<std::ptrdiff_t>(at), bytes.end());
  return true;
}

Bytes serialise(const PackedInput& input) {
  Bytes bytes(sizeof(Header));
  std::memcpy(bytes.data(), &input.header, sizeof(Header));
  for (const Bytes& part : input.parts) bytes.insert(bytes.end(), part.begin(), part.end());
  bytes.insert(bytes.end(), input.tail.begin(), input.tail.end());
  return bytes;
}

// Every dtype of values, ragged shapes, rows without survivors, full rows, nothing at all.
std::vector<Seed> seeds() {
  std::vector<Seed> all;
  for (rlcc_dtype values : kValuesDtypes) {
    for (Shape shape : kShapes) all.push_back(seed_of(shape, values));
  }
  return all;
}

}  // namespace restorelcc::fuzz
