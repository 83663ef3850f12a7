#include "weights.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

namespace restorelcc::bench {
namespace {

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t words_of(int64_t columns) { return (columns + 63) / 64; }
int64_t groups_of(int64_t columns) { return (columns + RLCC_SCALE_COLUMNS - 1) / RLCC_SCALE_COLUMNS; }

void require(rlcc_status status) {
  if (status != RLCC_OK) throw std::runtime_error(rlcc_last_error());
}

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// weight in another dtype; every value fits (random_value).
std::vector<char> converted(const std::vector<float>& weight, rlcc_dtype dtype) {
  std::vector<char> bytes(weight.size() * static_cast<size_t>(bytes_of(dtype)));
  for (size_t i = 0; i < weight.size(); ++i) {
    set_element(bytes.data(), dtype, static_cast<int64_t>(i), weight[i]);
  }
  return bytes;
}

}  // namespace

int64_t bytes_of(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 4 : dtype == RLCC_I8 ? 1 : 2; }

const char* name_of(rlcc_dtype dtype) {
  constexpr const char* kNames[] = {"fp32", "bf16", "fp16", "int8"};
  return kNames[dtype];
}

rlcc_dtype activation_of(rlcc_dtype values) { return values == RLCC_I8 ? RLCC_BF16 : values; }

double element(const void* data, rlcc_dtype dtype, int64_t index) {
  if (dtype == RLCC_F32) return static_cast<const float*>(data)[index];
  if (dtype == RLCC_I8) return static_cast<const int8_t*>(data)[index];
  const uint32_t bits = static_cast<const uint16_t*>(data)[index];
  if (dtype == RLCC_BF16) return float_of(bits << 16);
  const double fraction = bits & 1023;
  const int exponent = static_cast<int>((bits >> 10) & 31);
  const double value = exponent == 31  ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                       : exponent == 0 ? std::ldexp(fraction, -24)
                                       : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -value : value;
}

void set_element(void* data, rlcc_dtype dtype, int64_t index, float value) {
  if (dtype == RLCC_F32) {
    static_cast<float*>(data)[index] = value;
    return;
  }
  const uint32_t bits = bits_of(value);
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == RLCC_F16) {  // a normal number, or 0
    const uint32_t magnitude = (bits & 0x7fffffff) == 0 ? 0 : ((bits & 0x7fffffff) >> 13) - (112u << 10);
    half = static_cast<uint16_t>(((bits >> 16) & 0x8000) | magnitude);
  }
  static_cast<uint16_t*>(data)[index] = half;
}

float random_value(Random& random) {
  const uint64_t bits = random.next() >> 40;
  const float significand = static_cast<float>(128 + (bits & 127)) / 128;
  const float scale = 1.0f / static_cast<float>(1 << ((bits >> 7) & 3));
  return (bits & 512) != 0 ? -significand * scale : significand * scale;
}

std::vector<char> random_x(int64_t rows, int64_t columns, rlcc_dtype dtype, Random& random) {
  std::vector<char> x(static_cast<size_t>(rows * columns * bytes_of(dtype)));
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t k = 0; k < columns; ++k) {
      const int integer = k % RLCC_SCALE_COLUMNS == 0 ? 127 : static_cast<int>(random.below(255)) - 127;
      set_element(x.data(), dtype, m * columns + k, static_cast<float>(integer) / 64);
    }
  }
  return x;
}

// Two copies at least: with one, a matrix that fits a cache would stay there.
// The large page that x86 and most others have; every item of it begins at a multiple of 512.
constexpr int64_t kPage = int64_t{2} << 20;

Arena::Arena(int64_t item_bytes, int64_t at_least_bytes)
    : item_bytes_(item_bytes),
      stride_(round_up(item_bytes, 512)),
      copies_(std::max<int64_t>(2, (at_least_bytes + stride_ - 1) / stride_)),
      storage_(static_cast<char*>(
          std::aligned_alloc(kPage, static_cast<size_t>(round_up(copies_ * stride_, kPage))))),
      first_(storage_.get()) {
  if (first_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(first_, static_cast<size_t>(copies_ * stride_), huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#endif
}

void Arena::Free::operator()(char* memory) const { std::free(memory); }

void Arena::replicate() {
  std::memset(first_ + item_bytes_, 0, static_cast<size_t>(stride_ - item_bytes_));
  for (int64_t c = 1; c < copies_; ++c) std::memcpy(item(c), first_, static_cast<size_t>(stride_));
}

std::vector<float> pruned_weight(const Shape& shape, const std::string& pattern, Random& random) {
  std::vector<float> weight(static_cast<size_t>(shape.outputs * shape.inputs));
  for (float& value : weight) value = random_value(random);
  if (pattern == "2:4") {  // of six ways to keep two of four
    constexpr uint8_t kKept[6] = {0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100};
    for (size_t i = 0; i < weight.size(); i += 4) {
      const uint8_t kept = kKept[random.below(6)];
      for (size_t j = 0; j < 4; ++j) {
        if (((kept >> j) & 1) == 0) weight[i + j] = 0;
      }
    }
    return weight;
  }
  const auto limit = static_cast<uint64_t>(std::strtod(pattern.c_str(), nullptr) * (1 << 30));
  for (float& value : weight) {
    if (random.below(1 << 30) < limit) value = 0;
  }
  return weight;
}

PackedCopies::PackedCopies(const std::vector<float>& weight, const Shape& shape, rlcc_dtype values,
                           int64_t rotate_bytes) {
  const int64_t rows = shape.outputs, columns = shape.inputs;
  const rlcc_dtype from = values == RLCC_I8 ? RLCC_F32 : values;
  const std::vector<char> dense = converted(weight, from);
  int64_t count = 0;
  require(rlcc_pack_count(dense.data(), rows, columns, columns, from, values, &count));

  // mask | values | offsets | scales, each at a multiple of 64 bytes
  const int64_t mask_bytes = round_up(rows * words_of(columns) * 8, 64);
  const int64_t values_bytes = round_up(count * bytes_of(values), 64);
  const int64_t offsets_bytes = round_up((rows + 1) * 8, 64);
  const int64_t scales_bytes = values == RLCC_I8 ? rows * groups_of(columns) * 2 : 0;
  arena_ = std::make_unique<Arena>(mask_bytes + values_bytes + offsets_bytes + scales_bytes, rotate_bytes);
  for (int64_t c = 0; c < arena_->copies(); ++c) {
    char* item = arena_->item(c);
    rlcc_packed_weight packed{};
    packed.rows = rows;
    packed.columns = columns;
    packed.mask = reinterpret_cast<const uint64_t*>(item);
    packed.values = item + mask_bytes;
    packed.value_count = count;
    packed.row_offsets = reinterpret_cast<const int64_t*>(item + mask_bytes + values_bytes);
    packed.dtype = values;
    packed.trusted = 1;  // validated once, below; a call that checks again reads the mask twice
    if (values == RLCC_I8) {
      packed.scales = reinterpret_cast<const uint16_t*>(item + mask_bytes + values_bytes + offsets_bytes);
    }
    copies_.push_back(packed);
  }
  rlcc_packed_weight& first = copies_.front();
  require(rlcc_pack(dense.data(), rows, columns, columns, from, values, const_cast<uint64_t*>(first.mask),
                    const_cast<void*>(first.values), count, const_cast<int64_t*>(first.row_offsets),
                    const_cast<uint16_t*>(first.scales)));
  require(rlcc_packed_validate(&first));
  arena_->replicate();
  for (int64_t i = 0; i < rows * words_of(columns); ++i) survivors_ += __builtin_popcountll(first.mask[i]);
  bytes_ =
      rows * words_of(columns) * 8 + first.row_offsets[rows] * bytes_of(values) + (rows + 1) * 8 + scales_bytes;
}

DenseCopies::DenseCopies(const std::vector<float>& weight, const PackedCopies& packed, int64_t rotate_bytes) {
  const rlcc_packed_weight& w = packed.copy(0);
  const auto elements = static_cast<int64_t>(weight.size());
  const int64_t scales_bytes = w.dtype == RLCC_I8 ? w.rows * groups_of(w.columns) * 2 : 0;
  bytes_ = elements * bytes_of(w.dtype) + scales_bytes;
  scales_at_ = round_up(elements * bytes_of(w.dtype), 64);
  arena_ = std::make_unique<Arena>(scales_at_ + scales_bytes, rotate_bytes);
  char* item = arena_->item(0);
  if (w.dtype == RLCC_I8) {
    std::memset(item, 0, static_cast<size_t>(elements));
    for (int64_t n = 0; n < w.rows; ++n) {
      int64_t cursor = w.row_offsets[n];
      for (int64_t k = 0; k < w.columns; ++k) {
        if (((w.mask[n * words_of(w.columns) + k / 64] >> (k % 64)) & 1) == 0) continue;
        item[n * w.columns + k] = static_cast<const char*>(w.values)[cursor++];
      }
    }
    std::memcpy(item + scales_at_, w.scales, static_cast<size_t>(scales_bytes));
  } else {
    for (int64_t i = 0; i < elements; ++i) set_element(item, w.dtype, i, weight[static_cast<size_t>(i)]);
  }
  arena_->replicate();
}

}  // namespace restorelcc::bench
