// Inputs of the tests: strided matrices of either dtype, packed weights that own their arrays, shapes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "check.h"
#include "core/element.h"

namespace restorelcc::test {

constexpr const char* kIsas[] = {"scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16"};
constexpr rlcc_dtype kDtypes[] = {RLCC_F32, RLCC_BF16, RLCC_F16};
constexpr rlcc_dtype kValues[] = {RLCC_F32, RLCC_BF16, RLCC_F16, RLCC_I8};
constexpr int64_t kInputs[] = {1, 2, 31, 63, 64, 65, 127, 129, 449, 576, 1134};  // K
constexpr int64_t kOutputs[] = {1, 2, 17, 129};                                  // N
constexpr int64_t kRows[] = {0, 1, 2, 5, 16, 17, 65, 129};                       // M

inline const char* dtype_name(rlcc_dtype dtype) {
  constexpr const char* kNames[] = {"f32", "bf16", "f16", "i8"};
  return kNames[dtype];
}
inline size_t dtype_bytes(rlcc_dtype dtype) { return dtype == RLCC_F32 ? 4 : dtype == RLCC_I8 ? 1 : 2; }
// Half a unit in the last place, relative.
inline double rounding(rlcc_dtype dtype) {
  return dtype == RLCC_F32 ? 0x1p-24 : dtype == RLCC_BF16 ? 0x1p-8 : 0x1p-11;
}
// The smallest positive number: below it rounding is absolute.
inline double smallest(rlcc_dtype dtype) { return dtype == RLCC_F16 ? 0x1p-24 : 1e-37; }

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
    return static_cast<float>(element(bytes_.data(), dtype_, m * stride_ + n));
  }
  // To bf16 by truncation (which neighbour is taken does not matter for an input, and NaN keeps its payload).
  void set(int64_t m, int64_t n, float value) {
    if (dtype_ != RLCC_BF16) return set_element(bytes_.data(), dtype_, m * stride_ + n, value);
    const uint16_t half = static_cast<uint16_t>(bits_of_float(value) >> 16);
    std::memcpy(bytes_.data() + static_cast<size_t>(m * stride_ + n) * 2, &half, 2);
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
  Matrix dense;  // what the packed weight stands for: with int8 values, the rounded weight in fp32
  std::vector<uint64_t> mask;
  std::vector<char> storage;  // of values, with room to align
  std::vector<int64_t> row_offsets;
  std::vector<uint16_t> scales;
  rlcc_packed_weight weight{};

  explicit Packed(const Matrix& matrix) : Packed(matrix, matrix.dtype()) {}

  Packed(Matrix matrix, rlcc_dtype values) : dense(std::move(matrix)) {
    const int64_t rows = dense.rows(), columns = dense.columns();
    int64_t count = 0;
    CHECK_STATUS(rlcc_pack_count(dense.data(), rows, columns, dense.stride(), dense.dtype(), values, &count),
                 RLCC_OK);
    mask.assign(static_cast<size_t>(rows * ((columns + 63) / 64)), 0);
    row_offsets.assign(static_cast<size_t>(rows + 1), 0);
    if (values == RLCC_I8) scales.assign(static_cast<size_t>(rows * ((columns + 127) / 128)), 0);
    // Exactly as many bytes as asked for, so that a sanitizer sees one read too many.
    storage.resize(static_cast<size_t>(count) * dtype_bytes(values));
    uint16_t* scale_array = values == RLCC_I8 ? scales.data() : nullptr;
    CHECK_STATUS(rlcc_pack(dense.data(), rows, columns, dense.stride(), dense.dtype(), values, mask.data(),
                           storage.data(), count, row_offsets.data(), scale_array),
                 RLCC_OK);
    weight = {rows, columns, mask.data(), storage.data(), count, row_offsets.data(), values, 0, scale_array};
    CHECK_STATUS(rlcc_packed_validate(&weight), RLCC_OK);
    if (values == RLCC_I8) {
      dense = Matrix(rows, columns, RLCC_F32);
      CHECK_STATUS(rlcc_unpack(&weight, dense.data(), columns), RLCC_OK);
    }
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
};

// A random weight with these values; int8 ones from an fp32 weight.
inline rlcc_dtype dense_dtype(rlcc_dtype values) { return values == RLCC_I8 ? RLCC_F32 : values; }

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
