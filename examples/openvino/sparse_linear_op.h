// RlccSparseLinear: y[..., n] = sum_k x[..., k] W[n, k] + bias[n], W [N, K] packed (docs/format.md).
//
//   input 0      x            f32, bf16 or f16 [..., K], leading dimensions dynamic or not
//   input 1      mask         u8 [N * words * 8]     the bytes of the uint64 words
//   input 2      values       u8 [...]               the bytes of the survivors, padding included
//   input 3      row_offsets  u8 [(N + 1) * 8]       the bytes of the int64 offsets
//   input 4      scales       u8 [N * groups * 2]    with int8 values only: the bytes of the bf16 scales
//   last input   bias         u8 [N * 4]             may be absent; the bytes of float32, W c of a compensation added
//
//   output 0     y            x's type [..., N]
//
//   attributes   rows N, columns K, values ("fp32", "bf16", "fp16", "int8"), module (its name, for messages)
//
// Why bytes: OpenVINO's CPU plugin narrows 64-bit integers to 32 bits, and converts floats to the type it
// computes in. It leaves u8 alone.
//
// Constant parts are checked when the op is made (Core::read_model, NodeFactory) and a damaged weight is
// refused there; parts that are not constant are checked in each call. So no call reads outside of the arrays.
// Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "openvino/op/op.hpp"
#include "packed_bytes.h"

namespace restorelcc_openvino {

class SparseLinear : public ov::op::Op {
 public:
  OPENVINO_OP("RlccSparseLinear", "restorelcc");

  SparseLinear() = default;

  void validate_and_infer_types() override;
  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override;
  bool visit_attributes(ov::AttributeVisitor& visitor) override;
  bool has_evaluate() const override { return true; }
  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override;

 private:
  struct Checked;
  size_t least_inputs() const { return shape_.values == "int8" ? 5 : 4; }  // but for the bias
  template <class BytesOf>
  Parts parts_of(const BytesOf& bytes_of) const;
  void check_inputs() const;
  std::shared_ptr<const Checked> checked() const;
  std::string prefix() const;

  WeightShape shape_;
  std::string module_;
  // A copy checks its weight when it first runs: the plugin copies ops in each inference, to infer shapes.
  bool is_copy_ = false;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const Checked> checked_;  // guarded by mutex_
};

}  // namespace restorelcc_openvino
