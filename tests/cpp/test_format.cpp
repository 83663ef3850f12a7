// pack and unpack are exact; validate refuses every kind of corruption.
#include <limits>

#include "matrices.h"

using namespace restorelcc::test;

namespace {

bool same_value(float a, float b) { return std::memcmp(&a, &b, 4) == 0; }

void round_trip() {
  std::mt19937 random(1);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t rows : kOutputs) {
      for (int64_t columns : kInputs) {
        Matrix dense(rows, columns, dtype, 3);
        fill_normal(dense, random);
        const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 1e-40f};
        for (int64_t i = 0; i < rows * columns / 2; ++i) {
          dense.set(static_cast<int64_t>(random() % rows), static_cast<int64_t>(random() % columns),
                    special[random() % 6]);
        }
        const Packed packed(dense);
        Matrix unpacked(rows, columns, dtype, 5);
        CHECK_STATUS(rlcc_unpack(&packed.weight, unpacked.data(), unpacked.stride()), RLCC_OK);
        CHECK(unpacked.gaps_untouched());
        for (int64_t n = 0; n < rows; ++n) {
          for (int64_t k = 0; k < columns; ++k) {
            const float expected = dense.get(n, k) == 0 ? 0.0f : dense.get(n, k);  // -0.0 comes back as +0.0
            CHECK(same_value(unpacked.get(n, k), expected)) << n << ", " << k;
            const bool bit =
                ((packed.mask[static_cast<size_t>(n * ((columns + 63) / 64) + k / 64)] >> (k % 64)) & 1) != 0;
            CHECK(bit == !(dense.get(n, k) == 0));
          }
        }
      }
    }
  }
}

void empty_shapes() {
  int64_t count = -1, row_offsets[4] = {-1, -1, -1, -1};
  CHECK_STATUS(rlcc_pack_count(nullptr, 0, 5, 5, RLCC_F32, RLCC_F32, &count), RLCC_OK);
  CHECK(count == 16);
  CHECK_STATUS(rlcc_pack_count(nullptr, 3, 0, 0, RLCC_BF16, RLCC_BF16, &count), RLCC_OK);
  CHECK(count == 32);
  alignas(16) char aligned[64];
  CHECK_STATUS(rlcc_pack(nullptr, 3, 0, 0, RLCC_BF16, RLCC_BF16, nullptr, aligned, 32, row_offsets, nullptr),
               RLCC_OK);
  CHECK(row_offsets[3] == 0);
}

void pack_refuses() {
  std::mt19937 random(2);
  Matrix dense(4, 70, RLCC_F32);
  fill_normal(dense, random);
  int64_t count = 0;
  CHECK_STATUS(rlcc_pack_count(dense.data(), 4, 70, 70, RLCC_F32, RLCC_F32, nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_pack_count(nullptr, 4, 70, 70, RLCC_F32, RLCC_F32, &count), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_pack_count(dense.data(), -4, 70, 70, RLCC_F32, RLCC_F32, &count), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_pack_count(dense.data(), 4, 70, 69, RLCC_F32, RLCC_F32, &count), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(
      rlcc_pack_count(dense.data(), 4, 70, 70, static_cast<rlcc_dtype>(7), static_cast<rlcc_dtype>(7), &count),
      RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(
      rlcc_pack_count(dense.data(), int64_t{1} << 40, 70, int64_t{1} << 40, RLCC_F32, RLCC_F32, &count),
      RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_pack_count(dense.data(), 4, 70, 70, RLCC_F32, RLCC_BF16, &count), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_pack_count(dense.data(), 4, 70, 70, RLCC_I8, RLCC_I8, &count), RLCC_INVALID_ARGUMENT);
  Packed packed(dense);
  CHECK_STATUS(rlcc_pack(dense.data(), 4, 70, 70, RLCC_F32, RLCC_F32, packed.mask.data(), packed.storage.data(),
                         packed.weight.value_count - 1, packed.row_offsets.data(), nullptr),
               RLCC_INVALID_ARGUMENT);
  uint16_t scales[4] = {7, 7, 7, 7};
  CHECK_STATUS(rlcc_pack(dense.data(), 4, 70, 70, RLCC_F32, RLCC_F32, packed.mask.data(), packed.storage.data(),
                         packed.weight.value_count, packed.row_offsets.data(), scales),
               RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_pack(dense.data(), 4, 70, 70, RLCC_F32, RLCC_I8, packed.mask.data(), packed.storage.data(),
                         packed.weight.value_count, packed.row_offsets.data(), nullptr),
               RLCC_INVALID_ARGUMENT);
  const std::vector<char> before = packed.storage;
  dense.set(3, 69, NAN);
  CHECK_STATUS(rlcc_pack(dense.data(), 4, 70, 70, RLCC_F32, RLCC_I8, packed.mask.data(), packed.storage.data(),
                         384, packed.row_offsets.data(), scales),
               RLCC_INVALID_ARGUMENT);
  CHECK(std::strstr(rlcc_last_error(), "weight[3, 69] is nan") != nullptr) << rlcc_last_error();
  CHECK(packed.storage == before && scales[0] == 7);
}

// int8: every weight within half a step of its group's scale, the group's largest exact to a bf16 rounding.
void int8_round_trip() {
  std::mt19937 random(4);
  for (rlcc_dtype dtype : kDtypes) {
    for (int64_t columns : {1, 127, 128, 129, 300}) {
      const Matrix dense = random_weight(7, columns, dtype, random, half_with_full_and_empty_row(random));
      const Packed packed(dense, RLCC_I8);
      for (int64_t n = 0; n < 7; ++n) {
        for (int64_t k = 0; k < columns; ++k) {
          const float scale = restorelcc::float_of_bf16(
              packed.scales[static_cast<size_t>(n * ((columns + 127) / 128) + k / 128)]);
          CHECK(std::fabs(packed.dense.get(n, k) - dense.get(n, k)) <= scale / 2);
          CHECK(
              (dense.get(n, k) != 0) ==
              (((packed.mask[static_cast<size_t>(n * ((columns + 63) / 64) + k / 64)] >> (k % 64)) & 1) != 0));
        }
      }
    }
  }
}

// Each corruption of a good weight is refused by validate, by unpack and by the ops.
void corruptions() {
  struct Corruption {
    const char* name;
    std::function<void(Packed&)> apply;
  };
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  const Corruption corruptions[] = {
      {"values truncated by one", [](Packed& p) { p.weight.value_count -= 1; }},
      {"no values", [](Packed& p) { p.weight.value_count = 0; }},
      {"negative value_count", [](Packed& p) { p.weight.value_count = -1; }},
      {"first offset negative", [](Packed& p) { p.row_offsets[0] = -8; }},
      {"offset negative", [](Packed& p) { p.row_offsets[2] = -8; }},
      {"offset huge", [](Packed& p) { p.row_offsets[2] = kHuge - 7; }},
      {"last offset huge", [](Packed& p) { p.row_offsets.back() = kHuge - 7; }},
      {"last offset into the padding", [](Packed& p) { p.row_offsets.back() += 16; }},
      {"offset misaligned", [](Packed& p) { p.row_offsets[1] += 1; }},
      {"offsets decreasing", [](Packed& p) { p.row_offsets[2] = p.row_offsets[0]; }},
      {"a bit too many",
       [](Packed& p) {
         for (auto& w : p.mask) w = ~uint64_t{0} >> 32;
       }},
      {"bits beyond the last column", [](Packed& p) { p.mask[1] |= uint64_t{1} << 63; }},
      {"more rows than fit 64 bits", [](Packed& p) { p.weight.rows = kHuge; }},
      {"rows columns overflows", [](Packed& p) { p.weight.rows = p.weight.columns = int64_t{1} << 32; }},
      {"negative rows", [](Packed& p) { p.weight.rows = -1; }},
      {"negative columns", [](Packed& p) { p.weight.columns = -1; }},
      {"columns huge", [](Packed& p) { p.weight.columns = kHuge; }},
      {"null mask", [](Packed& p) { p.weight.mask = nullptr; }},
      {"null values", [](Packed& p) { p.weight.values = nullptr; }},
      {"null offsets", [](Packed& p) { p.weight.row_offsets = nullptr; }},
      {"unknown dtype", [](Packed& p) { p.weight.dtype = static_cast<rlcc_dtype>(9); }},
      {"scales of another dtype",
       [](Packed& p) {
         static const uint16_t kOne = 0x3f80;
         p.weight.scales = p.weight.dtype == RLCC_I8 ? nullptr : &kOne;
       }},
  };
  std::mt19937 random(3);
  for (rlcc_dtype values : kValues) {
    for (const Corruption& corruption : corruptions) {
      Packed packed(
          random_weight(5, 70, dense_dtype(values), random, [&](int64_t, int64_t k) { return k % 3 != 0; }),
          values);
      corruption.apply(packed);
      CHECK_STATUS(rlcc_packed_validate(&packed.weight), RLCC_INVALID_ARGUMENT);
      CHECK(std::strlen(rlcc_last_error()) > 10) << corruption.name;
      std::vector<char> buffer(5 * 70 * 4, 'x');
      CHECK(rlcc_unpack(&packed.weight, buffer.data(), 70) == RLCC_INVALID_ARGUMENT) << corruption.name;
      rlcc_sparse_linear_grad_values_params of_values{};
      of_values.weight = packed.weight;
      of_values.x = of_values.grad_y = of_values.grad_values = buffer.data();
      of_values.rows = 1;
      CHECK(rlcc_sparse_linear_grad_values(&of_values) == RLCC_INVALID_ARGUMENT) << corruption.name;
      rlcc_sparse_linear_params linear{};
      linear.weight = packed.weight;
      linear.x = linear.y = buffer.data();
      linear.x_rows = 1;
      CHECK(rlcc_sparse_linear(&linear) == RLCC_INVALID_ARGUMENT) << corruption.name;
      rlcc_sparse_linear_grad_x_params gradient{};
      gradient.weight = packed.weight;
      gradient.grad_y = gradient.grad_x = buffer.data();
      gradient.y_rows = 1;
      CHECK(rlcc_sparse_linear_grad_x(&gradient) == RLCC_INVALID_ARGUMENT) << corruption.name;
      CHECK(buffer == std::vector<char>(5 * 70 * 4, 'x')) << corruption.name << " wrote something";
    }
  }
}

void values_misaligned() {
  std::mt19937 random(5);
  for (rlcc_dtype dtype : kDtypes) {  // int8 has no alignment but that of its rows
    Packed packed(random_weight(5, 70, dtype, random, [](int64_t, int64_t k) { return k % 3 != 0; }));
    packed.weight.values = packed.storage.data() + 1;
    CHECK_STATUS(rlcc_packed_validate(&packed.weight), RLCC_INVALID_ARGUMENT);
  }
}

}  // namespace

int main() {
  round_trip();
  empty_shapes();
  pack_refuses();
  int8_round_trip();
  values_misaligned();
  corruptions();
  return report("format");
}
