// ldmatrix, mma and mma.sp by their definition. Products and sums are formed in fp64 and rounded once: the
// rounding of a real tensor core is not modelled. Compiled without sanitizers, as machine.cpp.
#include <cstring>

#include "core/element.h"
#include "machine.h"

namespace simt {
namespace {

constexpr unsigned kWholeWarp = 0xffffffffu;

double half_of(Half type, uint32_t pair, int high) {
  const uint16_t bits = static_cast<uint16_t>(high != 0 ? pair >> 16 : pair);
  return type == Half::kBf16 ? restorelcc::float_of_bf16(bits) : restorelcc::double_of_f16(bits);
}

struct MatrixSlot {
  const void* address;
  uint32_t row[4];
  uint32_t* registers;
  int count;
  bool transposed;
};

uint32_t element_of(const Lanes& lanes, int matrix, int row, int column) {
  const uint32_t pair = static_cast<const MatrixSlot*>(lanes.slot[matrix * 8 + row])->row[column / 2];
  return column % 2 != 0 ? pair >> 16 : pair & 0xffffu;
}

// Rows of one matrix whose 16 bytes lie in the same four banks are read one after the other.
bool banks_conflict(const Lanes& lanes, int matrix) {
  unsigned seen = 0;
  for (int row = 0; row < 8; ++row) {
    const auto* const slot = static_cast<const MatrixSlot*>(lanes.slot[matrix * 8 + row]);
    const unsigned banks = 1u << (reinterpret_cast<uintptr_t>(slot->address) / 16 % 8);
    if ((seen & banks) != 0) return true;
    seen |= banks;
  }
  return false;
}

void distribute_matrices(const Lanes& lanes, Site) {
  ++statistics().ldmatrix;
  const int count = static_cast<const MatrixSlot*>(lanes.slot[0])->count;
  for (int matrix = 0; matrix < count; ++matrix) {
    if (banks_conflict(lanes, matrix)) ++statistics().ldmatrix_conflicts;
    for (int lane = 0; lane < 32; ++lane) {
      auto* const slot = static_cast<MatrixSlot*>(lanes.slot[lane]);
      const int row = lane / 4, column = lane % 4 * 2;
      slot->registers[matrix] =
          slot->transposed
              ? element_of(lanes, matrix, column, row) | element_of(lanes, matrix, column + 1, row) << 16
              : element_of(lanes, matrix, row, column) | element_of(lanes, matrix, row, column + 1) << 16;
    }
  }
}

struct MultiplySlot {
  const uint32_t *a, *b;
  const float* c;
  float* d;
  Half type;
  uint32_t metadata;
  int selector;
};

const MultiplySlot& slot_of(const Lanes& lanes, int lane) {
  return *static_cast<const MultiplySlot*>(lanes.slot[lane]);
}

// The column that the kept value `column` of `row` stands for.
int dense_column(const Lanes& lanes, Site site, int row, int column) {
  const int four = column / 2;  // of 8 groups of four columns
  const int lane = row % 8 * 4 + slot_of(lanes, 0).selector * 2 + four / 4;
  const uint32_t metadata = slot_of(lanes, lane).metadata >> (row / 8 * 16 + four % 4 * 4);
  const int low = static_cast<int>(metadata & 3), high = static_cast<int>(metadata >> 2 & 3);
  if (low >= high) {
    fault(site, "mma.sp: metadata (%d, %d) of row %d, columns %d to %d, is not ascending", low, high, row,
          four * 4, four * 4 + 3);
  }
  return four * 4 + (column % 2 == 0 ? low : high);
}

template <int kDepth, bool kSparse>
void multiply_together(const Lanes& lanes, Site site) {
  static double a[16][kDepth], b[kDepth][8];
  std::memset(a, 0, sizeof(a));
  for (int lane = 0; lane < 32; ++lane) {
    const MultiplySlot& slot = slot_of(lanes, lane);
    for (int i = 0; i < 8; ++i) {  // the 16 x 16 values of a
      const int row = lane / 4 + i / 2 % 2 * 8, column = lane % 4 * 2 + i % 2 + i / 4 * 8;
      a[row][kSparse ? dense_column(lanes, site, row, column) : column] =
          half_of(slot.type, slot.a[i / 2], i % 2);
    }
    for (int i = 0; i < kDepth / 4; ++i) {
      b[lane % 4 * 2 + i % 2 + i / 2 * 8][lane / 4] = half_of(slot.type, slot.b[i / 2], i % 2);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const MultiplySlot& slot = slot_of(lanes, lane);
    for (int i = 0; i < 4; ++i) {
      double sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
      slot.d[i] = static_cast<float>(sum + slot.c[i]);
    }
  }
  ++(kSparse ? statistics().mma_sp : statistics().mma);
}

}  // namespace

void load_matrices(Site site, uint32_t* registers, const void* row, int count, bool transposed) {
  MatrixSlot slot{row, {}, registers, count, transposed};
  if (position.lane < static_cast<unsigned>(count) * 8) {  // other lanes' addresses are not looked at
    check_load(site, row, 16);
    std::memcpy(slot.row, row, 16);
  }
  meet(Collective::kLoadMatrices, site, kWholeWarp, &slot, distribute_matrices);
}

void multiply_m16n8k16(Site site, Half type, float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  float sums[4];  // d may be c
  MultiplySlot slot{a, b, c, sums, type, 0, 0};
  meet(Collective::kMultiply, site, kWholeWarp, &slot, multiply_together<16, false>);
  std::memcpy(d, sums, sizeof(sums));
}

void multiply_sparse_m16n8k32(Site site, Half type, float* d, const uint32_t* a, const uint32_t* b,
                              const float* c, uint32_t metadata, int selector) {
  float sums[4];
  MultiplySlot slot{a, b, c, sums, type, metadata, selector};
  meet(Collective::kMultiplySparse, site, kWholeWarp, &slot, multiply_together<32, true>);
  std::memcpy(d, sums, sizeof(sums));
}

}  // namespace simt
