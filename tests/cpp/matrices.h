// Inputs of the tests: strided matrices of either dtype, packed weights that own their arrays, shapes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "check.h"

namespace restorelcc::test {

constexpr rlcc_dtype kDtypes[] = {RLCC_F32, RLCC_BF16};
constexpr int64_t kInputs[] = {1, 2, 31, 63, 64, 65, 127, 129, 576, 1134};  // K
constexpr int64_t kOutputs[] = {1, 2, 17, 129};                             // N
constexpr int64_t kRows[] = {0, 1, 2, 5, 16, 17, 65, 129};                  // M

inline const char* dtype_name(rlcc_dtype dtype) { return dtype == RLCC_F32 ? "f32" : "bf16"; }
inline size_t dtype_bytes(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 4 : 2; }
// Half a unit in the last place, relative.
inline double rounding(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 0x1p-24 : 0x1p-8; }

// [rows, columns] of dtype in rows of `stride` elements. What lies between the rows is filled with NaN,
// and must neither be read nor written.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, rlcc_dtype dtype, int64_t gap = 0)
      : rows_(rows),
        columns_(columns),
        stride_(columns + gap),
        dtype_(dtype),
        bytes_(static_cast<size_t>(rows * stride_) * dtype_bytes(dtype), '\xff') {}

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t stride() const { return stride_; }
  rlcc_dtype dtype() const { return dtype_; }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  bool operator==(const Matrix& other) const { return bytes_ == other.bytes_; }

  float get(int64_t m, int64_t n) const {
    const char* at = bytes_.data() + static_cast<size_t>(m * stride_ + n) * dtype_bytes(dtype_);
    uint32_t bits = 0;
    if (dtype_ == RLCC_F32) {
      std::memcpy(&bits, at, 4);
    } else {
      uint16_t half;
      std::memcpy(&half, at, 2);
      bits = static_cast<uint32_t>(half) << 16;
    }
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  // To bf16 by truncation: which neighbour is taken does not matter for an input.
  void set(int64_t m, int64_t n, float value) {
    char* at = bytes_.data() + static_cast<size_t>(m * stride_ + n) * dtype_bytes(dtype_);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (dtype_ == RLCC_F32)
      std::memcpy(at, &bits, 4);
    else
      std::memcpy(at, &half, 2);
  }
  bool gaps_untouched() const {
    for (int64_t m = 0; m < rows_; ++m) {
      const char* row = bytes_.data() + static_cast<size_t>(m * stride_) * dtype_bytes(dtype_);
      for (size_t i = static_cast<size_t>(columns_) * dtype_bytes(dtype_);
           i < static_cast<size_t>(stride_) * dtype_bytes(dtype_); ++i) {
        if (row[i] != '\xff') return false;
      }
    }
    return true;
  }

 private:
  int64_t rows_, columns_, stride_;
  rlcc_dtype dtype_;
  std::vector<char> bytes_;
};

// Normal values; a few of them large, so that a dropped or misplaced term shows.
inline void fill_normal(Matrix& matrix, std::mt19937& random) {
  std::normal_distribution<float> normal;
  for (int64_t m = 0; m < matrix.rows(); ++m) {
    for (int64_t n = 0; n < matrix.columns(); ++n) {
      const float value = normal(random);
      matrix.set(m, n, random() % 64 == 0 ? 100 * value : value);
    }
  }
}

// A weight with its dense form. pattern: which places survive.
using Pattern = std::function<bool(int64_t n, int64_t k)>;

struct Packed {
  Matrix dense;
  std::vector<uint64_t> mask;
  std::vector<char> storage;  // of values, with room to align
  std::vector<int64_t> row_offsets;
  rlcc_packed_weight weight{};

  explicit Packed(Matrix matrix) : dense(std::move(matrix)) {
    const int64_t rows = dense.rows(), columns = dense.columns();
    int64_t count = 0;
    CHECK_STATUS(rlcc_pack_count(dense.data(), rows, columns, dense.stride(), dense.dtype(), &count), RLCC_OK);
    mask.assign(static_cast<size_t>(rows * ((columns + 63) / 64)), 0);
    row_offsets.assign(static_cast<size_t>(rows + 1), 0);
    // Exactly as many bytes as asked for, so that a sanitizer sees one read too many.
    storage.resize(static_cast<size_t>(count) * dtype_bytes(dense.dtype()));
    CHECK_STATUS(rlcc_pack(dense.data(), rows, columns, dense.stride(), dense.dtype(), mask.data(),
                           storage.data(), count, row_offsets.data()),
                 RLCC_OK);
    weight = {rows, columns, mask.data(), storage.data(), count, row_offsets.data(), dense.dtype(), 0};
    CHECK_STATUS(rlcc_packed_validate(&weight), RLCC_OK);
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
};

inline Matrix random_weight(int64_t rows, int64_t columns, rlcc_dtype dtype, std::mt19937& random,
                            const Pattern& pattern) {
  Matrix matrix(rows, columns, dtype);
  fill_normal(matrix, random);
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t k = 0; k < columns; ++k) {
      if (!pattern(n, k)) matrix.set(n, k, 0.0f);
    }
  }
  return matrix;
}

// Half of the places at random, but row 0 full and row 1 empty.
inline Pattern half_with_full_and_empty_row(std::mt19937& random) {
  return [&random](int64_t n, int64_t) { return n == 0 || (n != 1 && random() % 2 == 0); };
}

}  // namespace restorelcc::test
