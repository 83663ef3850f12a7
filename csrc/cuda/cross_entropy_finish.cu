// The ends of the gradients: grad_h and grad_bias from their fp32 sums. Both only move memory.
#include "cuda/cross_entropy.h"
#include "cuda/elements.cuh"

namespace restorelcc::cuda {
namespace {

constexpr int kThreads = 256;

// Block m: row m, whatever its number.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    finish_grad_h(const __grid_constant__ LogitSource source, const __grid_constant__ GradientSums in,
                  const __grid_constant__ HiddenGradient out) {
  using Bits = typename Element::Bits;
  const int columns = static_cast<int>(source.head.columns);
  const int64_t m = blockIdx.x;
  const int number = source.rows.position[m];
  const int label = number < 0 ? kNoLabel : source.rows.label[number];
  Bits* const to = static_cast<Bits*>(out.grad_h) + m * out.stride;
  if (label == kNoLabel || label == kBadLabel) {
    const float value = label == kNoLabel ? 0 : __uint_as_float(0x7fc00000u);
    for (int e = static_cast<int>(threadIdx.x); e < columns; e += kThreads) to[e] = Element::narrow(value);
    return;
  }
  const bool apart = out.label_factor != nullptr;
  const float factor = out.factor[apart ? number : 0], label_factor = apart ? out.label_factor[number] : 0;
  const Bits* const word = static_cast<const Bits*>(source.head.weight) + label * source.head.weight_stride;
  const int64_t part = static_cast<int64_t>(source.capacity) * in.stride;
  const float* const sums = in.sums + number * in.stride;
  for (int e = static_cast<int>(threadIdx.x); e < columns; e += kThreads) {
    float sum = 0;
    for (int split = 0; split < in.splits; ++split) sum += sums[split * part + e];
    sum *= factor;
    if (apart) sum += label_factor * Element::widen(word[e]);
    to[e] = Element::narrow(sum);
  }
}

// A thread per column, one block of rows after the other in fp64.
__global__ void __launch_bounds__(kThreads)
    grad_bias_of_chunk(const __grid_constant__ LogitSource source, const __grid_constant__ Chunk chunk,
                       int tile_rows, const float* bias_sums, const float* inverse_scale, float* grad_bias) {
  const int column = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (column >= chunk.columns) return;
  const int blocks = (*source.rows.counted + tile_rows - 1) / tile_rows;
  double sum = 0;
  for (int block = 0; block < blocks; ++block) sum += double{bias_sums[block * chunk.stride + column]};
  grad_bias[chunk.first + column] = static_cast<float>(sum * double{*inverse_scale});
}

template <class Run>
LaunchError with_element(rlcc_dtype dtype, const Run& run) {
  switch (dtype) {
    case RLCC_F32: return run(F32{});
    case RLCC_BF16: return run(Bf16{});
    default: return run(F16{});
  }
}

}  // namespace

LaunchError launch_finish_grad_h(const LogitSource& source, const GradientSums& sums,
                                 const HiddenGradient& gradient, void* stream) {
  return with_element(source.head.dtype, [&](auto element) {
    return launch(finish_grad_h<decltype(element)>, static_cast<unsigned>(gradient.rows), kThreads, 0, stream,
                  source, sums, gradient);
  });
}

LaunchError launch_grad_bias(const LogitSource& source, const Chunk& chunk, int tile_rows,
                             const float* bias_sums, const float* inverse_scale, float* grad_bias,
                             void* stream) {
  return launch(grad_bias_of_chunk, static_cast<unsigned>(divide_up(chunk.columns, kThreads)), kThreads, 0,
                stream, source, chunk, tile_rows, bias_sums, inverse_scale, grad_bias);
}

}  // namespace restorelcc::cuda
