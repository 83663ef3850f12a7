// sparse_linear_grad_comp: grad_comp_rows[comp_index[m], n] += grad_y[m, n] and grad_bias[n] += grad_y[m, n]
// for every row m, in this order, over a few columns n.
//
// Plain loops in fp32: the compiler vectorises them for the instruction set at hand. grad_y is read once, and
// the sums of a block of columns stay in the caches as long as the groups are few.

namespace restorelcc::cpu {
namespace {

template <class Element>
inline void add_widened(const Element* __restrict from, int64_t count, float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] += Vector::widen(from[i]);
}

template <class Element>
RLCC_FLAT void grad_comp_run(const rlcc_sparse_linear_grad_comp_params& p, int64_t begin, int64_t end) {
  const Element* const grad_y = static_cast<const Element*>(p.grad_y);
  const int64_t count = end - begin;
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t n = begin; n < end; ++n) p.grad_comp_rows[g * p.columns + n] = 0;
  }
  for (int64_t n = begin; n < end && p.grad_bias != nullptr; ++n) p.grad_bias[n] = 0;
  for (int64_t m = 0; m < p.rows; ++m) {
    const Element* const row = grad_y + m * p.grad_y_stride + begin;
    if (p.groups > 0) {
      const int64_t group = p.comp_index != nullptr ? p.comp_index[m] : 0;
      add_widened(row, count, p.grad_comp_rows + group * p.columns + begin);
    }
    if (p.grad_bias != nullptr) add_widened(row, count, p.grad_bias + begin);
  }
}

template <class Element>
constexpr sparse_linear_grad_comp_block_kernel sparse_linear_grad_comp_block_of = {grad_comp_run<Element>};

}  // namespace
}  // namespace restorelcc::cpu
