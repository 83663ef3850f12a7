// Our own dense matrix-vector products and a plain streaming sum: the rivals, and the floor. One table for each
// instruction set, in a translation unit of its own; the best that this CPU has is taken at run time.
#pragma once

#include <cstdint>

namespace restorelcc::bench {

constexpr int64_t kScaleColumns = 128;  // columns of one int8 scale, as in the packed weight

// y[n] = sum_k x[k] W[n, k] for n in [begin, end), W [N, K] dense, row after row; K a multiple of
// kScaleColumns.
struct DenseKernels {
  const char* isa;
  void (*fp32)(const float* w, const float* x, float* y, int64_t k, int64_t begin, int64_t end);
  // x as bf16 and, in the order that order_x() made, as fp32: a kernel takes the one it wants.
  void (*bf16)(const uint16_t* w, const uint16_t* x, const float* ordered_x, float* y, int64_t k, int64_t begin,
               int64_t end);
  // W[n, k] = w scales[n, k / kScaleColumns]; x likewise, with fp32 scales.
  void (*int8)(const int8_t* w, const uint16_t* scales, const int8_t* x, const float* x_scales, float* y,
               int64_t k, int64_t begin, int64_t end);
  // Reads every byte of [from, from + bytes), bytes a multiple of 512, from aligned to 64.
  uint64_t (*read)(const char* from, int64_t bytes);
  // The same, front to back: faster where pages are large, slower where each page costs a walk through the
  // tables.
  uint64_t (*read_in_order)(const char* from, int64_t bytes);
};

extern const DenseKernels kDensePortable;
#if RLCC_X86_KERNELS
extern const DenseKernels kDenseAvx2;
extern const DenseKernels kDenseAvx512;  // wants AVX-512 F, BW, DQ, VL, BF16, VNNI: the library's "avx512bf16"
#endif

// The best table of this CPU, whatever instruction set the library was told to use.
const DenseKernels& dense_kernels();

// Of every 16 columns the even ones, then the odd ones: a word of two bf16 splits into those by a shift and a
// mask.
void order_x(const uint16_t* x, int64_t k, float* ordered);
// Rounded to 8 bits, per kScaleColumns columns: scale = max|x| / 127.
void quantise_x(const float* x, int64_t k, int8_t* quantised, float* scales);

}  // namespace restorelcc::bench
