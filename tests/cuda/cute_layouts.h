// Where the elements of fragments lie, as CuTe and CUTLASS say. Apart from the test that uses it, because their
// headers need CUDA's, which the emulator stands in for.
#pragma once

#include <cstdint>

namespace restorelcc::test {

// Of the fragments of mma.m16n8k16, by lane and by place among the lane's elements (register i / 2, half i % 2;
// of c: register i).
struct MultiplyLayout {
  int a[32][8];  // m + 16 k
  int b[32][4];  // n + 8 k
  int c[32][4];  // m + 16 n
};
MultiplyLayout cute_multiply_bf16();
MultiplyLayout cute_multiply_f16();

// Of ldmatrix with `count` matrices: bit i of the rows' 128 bits, lane after lane, is what bit `value` (0 .. 32
// count) of a lane's registers receives.
struct LoadLayout {
  int lane_row[32];  // which row a lane's address stands for; -1: none
  int16_t bit[32][32 * 4];
};
LoadLayout cute_load(int count, bool transposed);

// CUTLASS's order in memory of mma.sp's metadata: `metadata` [32, 2] holds for row m the 16 bits of the kept
// values of dense columns 0..15 and 16..31; words[8 g + ...]: what lane 4 g + t gives for rows of the first
// (selector 0: t = 0, 1) and second (selector 1: t = 2, 3) 16 rows is words[4 g + t].
void cutlass_metadata_words(const uint16_t (&metadata)[32][2], uint32_t (&words)[32]);

}  // namespace restorelcc::test
