// The bitmask format repacked for mma.sp: what cuda.h says of rlcc_cuda_weight_2to4. Plain host code.
#include "sparse/pack_2to4.h"

#include <cstring>

#include "sparse/layout.h"

namespace restorelcc {
namespace {

constexpr int64_t kRowBlock = 16, kColumnBlock = 64, kLanes = 32;

Status validate_repackable(const rlcc_packed_weight& weight) {
  RLCC_RETURN_IF_FAILED(weight.trusted != 0 ? validate_shape(weight) : validate(weight));
  if (weight.dtype == RLCC_BF16 || weight.dtype == RLCC_F16) return {};
  return invalid(
      "weight.dtype is ", weight.dtype,
      ", must be RLCC_BF16 (1) or RLCC_F16 (2) for the 2:4 layout; rlcc_cuda_sparse_linear takes every dtype");
}

// The columns, 0..3, of the two values that stand for four: the survivors, and where fewer than two survive
// others.
struct Pair {
  int first, second;
};
Pair pair_of(unsigned survivors) {
  const unsigned lowest = survivors & (0u - survivors);
  const unsigned other = survivors & ~lowest;
  if (other != 0) return {__builtin_ctz(lowest), __builtin_ctz(other)};
  if (survivors == 0) return {0, 1};
  return survivors == 8 ? Pair{2, 3} : Pair{__builtin_ctz(survivors), __builtin_ctz(survivors) + 1};
}

}  // namespace

Counts2to4 counts_2to4(int64_t rows, int64_t columns) {
  const int64_t row_blocks = rows / kRowBlock + (rows % kRowBlock != 0 ? 1 : 0);
  const int64_t column_blocks = columns / kColumnBlock + (columns % kColumnBlock != 0 ? 1 : 0);
  return {row_blocks * kRowBlock, column_blocks * kColumnBlock / 2, row_blocks * column_blocks * kLanes};
}

Status pack_2to4_counts(const rlcc_packed_weight& weight, int64_t* value_count, int64_t* metadata_count) {
  RLCC_RETURN_IF_FAILED(validate_repackable(weight));
  const Counts2to4 counts = counts_2to4(weight.rows, weight.columns);
  *value_count = counts.rows * counts.row_values;
  *metadata_count = counts.metadata;
  return {};
}

Status pack_2to4(const rlcc_packed_weight& weight, void* values, int64_t value_count, uint32_t* metadata,
                 int64_t metadata_count) {
  int64_t needed_values = 0, needed_metadata = 0;
  RLCC_RETURN_IF_FAILED(pack_2to4_counts(weight, &needed_values, &needed_metadata));
  if (value_count < needed_values || metadata_count < needed_metadata) {
    return invalid("room for ", value_count, " values and ", metadata_count, " words of metadata, needs ",
                   needed_values, " and ", needed_metadata, " (ask rlcc_cuda_pack_2to4_counts)");
  }
  RLCC_RETURN_IF_FAILED(validate_array("values", values, needed_values, 2));
  RLCC_RETURN_IF_FAILED(validate_array("metadata", metadata, needed_metadata, 4));
  const int64_t words = words_of(weight.columns),
                row_values = counts_2to4(weight.rows, weight.columns).row_values;
  const auto four_of = [&](int64_t n, int64_t four) {
    return static_cast<unsigned>(weight.mask[n * words + four / 16] >> (four % 16 * 4)) & 15u;
  };
  const int64_t fours = words * (kWordBits / 4);
  for (int64_t n = 0; n < weight.rows; ++n) {
    for (int64_t four = 0; four < fours; ++four) {
      if (__builtin_popcount(four_of(n, four)) <= 2) continue;
      return invalid("weight row ", n, " has ", __builtin_popcount(four_of(n, four)), " survivors in columns ",
                     four * 4, " to ", four * 4 + 3,
                     ", the 2:4 layout has room for 2; use rlcc_cuda_sparse_linear for this weight");
    }
  }

  std::memset(values, 0, static_cast<size_t>(needed_values) * 2);
  std::memset(metadata, 0, static_cast<size_t>(needed_metadata) * 4);
  auto* const out = static_cast<uint16_t*>(values);
  const int64_t rows = counts_2to4(weight.rows, weight.columns).rows;
  for (int64_t n = 0; n < rows; ++n) {
    const uint16_t* value =
        n < weight.rows ? static_cast<const uint16_t*>(weight.values) + weight.row_offsets[n] : nullptr;
    for (int64_t four = 0; four < fours; ++four) {
      const unsigned survivors = n < weight.rows ? four_of(n, four) : 0;
      const Pair pair = pair_of(survivors);
      if ((survivors >> pair.first & 1) != 0) out[n * row_values + 2 * four] = *value++;
      if ((survivors >> pair.second & 1) != 0) out[n * row_values + 2 * four + 1] = *value++;
      // Lane 4 (n % 8) + (which 16 of the 64 columns), half (n % 16) / 8, 4 bits for each four of the 16.
      const int64_t block = n / kRowBlock * (fours / 16) + four / 16;
      uint32_t& word = metadata[block * kLanes + n % 8 * 4 + four % 16 / 4];
      word |= static_cast<uint32_t>(pair.first | pair.second << 2) << (n % kRowBlock / 8 * 16 + four % 4 * 4);
    }
  }
  return {};
}

}  // namespace restorelcc
