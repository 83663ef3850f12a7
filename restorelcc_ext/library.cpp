// The schema of every op, once. The kernels are registered for every device: the core decides where it
// computes, and a tensor on a device without kernels meets the one sentence of Place and not the dispatcher's
// table of keys.
#include <torch/csrc/stable/library.h>

#include "ops.h"

STABLE_TORCH_LIBRARY(restorelcc, library) {
  // A packed weight is mask, values, row_offsets, scales (int8 values only) and columns: see
  // restorelcc/params.h.
  library.def(
      "sparse_linear(Tensor x, Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, SymInt columns, "
      "Tensor? comp_rows=None, Tensor? comp_index=None, Tensor? bias=None, Tensor? residual=None, "
      "bool trusted=False, bool exact_x=False) -> Tensor");
  // The same without a gradient formula: torch calls Python to look whether one is wanted, 10 us a call.
  library.def(
      "sparse_linear_inference(Tensor x, Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, "
      "SymInt columns, "
      "Tensor? comp_rows=None, Tensor? comp_index=None, Tensor? bias=None, Tensor? residual=None, "
      "bool trusted=False, bool exact_x=False) -> Tensor");
  library.def(
      "sparse_linear_grad_x(Tensor grad_y, Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, "
      "SymInt columns, bool trusted=False) -> Tensor");
  library.def(
      "sparse_linear_grad_values(Tensor grad_y, Tensor x, Tensor mask, Tensor values, Tensor row_offsets, "
      "bool trusted=False) -> Tensor");
  // grad_bias is empty [0] unless with_bias.
  library.def(
      "sparse_linear_grad_comp(Tensor grad_y, Tensor? comp_index, SymInt groups, bool with_bias=False) -> "
      "(Tensor grad_comp_rows, Tensor grad_bias)");
  library.def("head_moments_(Tensor z_dense, Tensor z_pruned, Tensor(a!) total, Tensor(b!) gram) -> ()");
  // lse is empty [0] without with_lse, and so is grad_h, d nll / d h, without with_grad_h.
  library.def(
      "linear_cross_entropy(Tensor h, Tensor weight, Tensor labels, Tensor? bias=None, int ignore_index=-100, "
      "bool with_lse=False, bool with_grad_h=False) -> (Tensor nll, Tensor lse, Tensor grad_h)");
  // Each gradient is empty [0] unless its flag asks for it.
  library.def(
      "linear_cross_entropy_backward(Tensor grad_nll, Tensor h, Tensor weight, Tensor labels, Tensor lse, "
      "Tensor? bias=None, int ignore_index=-100, bool with_grad_h=True, bool with_grad_weight=True, "
      "bool with_grad_bias=False) -> (Tensor grad_h, Tensor grad_weight, Tensor grad_bias)");
  library.def(
      "head_contrast(Tensor h_edited, Tensor weight, Tensor labels, Tensor base_nll, Tensor? segments=None, "
      "Tensor? weights=None, SymInt segment_count=1, Tensor? bias=None, int ignore_index=-100) -> Tensor");
  library.def(  // scales is empty unless int8
      "pack(Tensor weight, bool int8=False) -> (Tensor mask, Tensor values, Tensor row_offsets, Tensor "
      "scales)");
  library.def(
      "unpack(Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, SymInt columns) -> Tensor");
  library.def(
      "packed_validate(Tensor mask, Tensor values, Tensor row_offsets, Tensor? scales, SymInt columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(restorelcc, CompositeExplicitAutograd, library) {
  library.impl("sparse_linear", TORCH_BOX(&restorelcc_ext::sparse_linear));
  library.impl("sparse_linear_inference", TORCH_BOX(&restorelcc_ext::sparse_linear));
  library.impl("sparse_linear_grad_x", TORCH_BOX(&restorelcc_ext::sparse_linear_grad_x));
  library.impl("sparse_linear_grad_values", TORCH_BOX(&restorelcc_ext::sparse_linear_grad_values));
  library.impl("sparse_linear_grad_comp", TORCH_BOX(&restorelcc_ext::sparse_linear_grad_comp));
  library.impl("head_moments_", TORCH_BOX(&restorelcc_ext::head_moments_));
  library.impl("linear_cross_entropy", TORCH_BOX(&restorelcc_ext::linear_cross_entropy));
  library.impl("linear_cross_entropy_backward", TORCH_BOX(&restorelcc_ext::linear_cross_entropy_backward));
  library.impl("head_contrast", TORCH_BOX(&restorelcc_ext::head_contrast));
  library.impl("pack", TORCH_BOX(&restorelcc_ext::pack));
  library.impl("unpack", TORCH_BOX(&restorelcc_ext::unpack));
  library.impl("packed_validate", TORCH_BOX(&restorelcc_ext::packed_validate));
}
