#include "cute_layouts.h"

#include <cstring>

#include <cutlass/tensor_ref.h>
#include <cutlass/util/host_reorder.h>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/tensor.hpp>

namespace restorelcc::test {
namespace {

template <class Operation>
MultiplyLayout multiply_layout() {
  using Traits = cute::MMA_Traits<Operation>;
  typename Traits::ALayout a;
  typename Traits::BLayout b;
  typename Traits::CLayout c;
  MultiplyLayout layout{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) layout.a[lane][i] = a(lane, i);
    for (int i = 0; i < 4; ++i) layout.b[lane][i] = b(lane, i);
    for (int i = 0; i < 4; ++i) layout.c[lane][i] = c(lane, i);
  }
  return layout;
}

template <class Operation>
LoadLayout load_layout(int count) {
  using Traits = cute::Copy_Traits<Operation>;
  typename Traits::SrcLayout source;
  typename Traits::DstLayout destination;
  LoadLayout layout{};
  for (int lane = 0; lane < 32; ++lane) {
    // Lanes whose address is not looked at repeat the row of another.
    layout.lane_row[lane] = lane < 8 * count ? static_cast<int>(source(lane, 0)) / 128 : -1;
    for (int i = 0; i < 32 * count; ++i) layout.bit[lane][i] = static_cast<int16_t>(destination(lane, i));
  }
  return layout;
}

}  // namespace

MultiplyLayout cute_multiply_bf16() { return multiply_layout<cute::SM80_16x8x16_F32BF16BF16F32_TN>(); }
MultiplyLayout cute_multiply_f16() { return multiply_layout<cute::SM80_16x8x16_F32F16F16F32_TN>(); }

LoadLayout cute_load(int count, bool transposed) {
  if (count == 1) {
    return transposed ? load_layout<cute::SM75_U16x2_LDSM_T>(1) : load_layout<cute::SM75_U32x1_LDSM_N>(1);
  }
  if (count == 2) {
    return transposed ? load_layout<cute::SM75_U16x4_LDSM_T>(2) : load_layout<cute::SM75_U32x2_LDSM_N>(2);
  }
  return transposed ? load_layout<cute::SM75_U16x8_LDSM_T>(4) : load_layout<cute::SM75_U32x4_LDSM_N>(4);
}

void cutlass_metadata_words(const uint16_t (&metadata)[32][2], uint32_t (&words)[32]) {
  uint16_t source[64], reordered[64];
  std::memcpy(source, metadata, sizeof(source));
  using Interleaved = cutlass::layout::ColumnMajorInterleaved<2>;
  cutlass::TensorRef<uint16_t, cutlass::layout::RowMajor> from(source, cutlass::layout::RowMajor(2));
  cutlass::TensorRef<uint16_t, Interleaved> to(reordered, Interleaved::packed({32, 2}));
  cutlass::reorder_meta(to, from, cutlass::gemm::GemmCoord(32, 0, 2));
  std::memcpy(words, reordered, sizeof(reordered));
}

}  // namespace restorelcc::test
