#include "sparse_linear_op.h"

#include <vector>

#include "host_threads.h"
#include "openvino/op/constant.hpp"
#include "refusal.h"

namespace restorelcc_openvino {
namespace {

using Constant = ov::op::v0::Constant;

// -1: none of the library's.
rlcc_dtype dtype_of(const ov::element::Type& type) {
  if (type == ov::element::f32) return RLCC_F32;
  if (type == ov::element::bf16) return RLCC_BF16;
  return type == ov::element::f16 ? RLCC_F16 : -1;
}

bool same(const Bytes& a, const Bytes& b) { return a.data == b.data && a.size == b.size; }

}  // namespace

// The weight of constants, which it keeps alive.
struct SparseLinear::Checked {
  Checked(const WeightShape& shape, const Parts& found, std::vector<std::shared_ptr<const Constant>> constants)
      : parts(found), owners(std::move(constants)), packed(shape, found) {}
  Parts parts;
  std::vector<std::shared_ptr<const Constant>> owners;
  PackedBytes packed;
};

std::string SparseLinear::prefix() const {
  return "RlccSparseLinear" + (module_.empty() ? std::string() : " " + module_) + ": ";
}

bool SparseLinear::visit_attributes(ov::AttributeVisitor& visitor) {
  visitor.on_attribute("rows", shape_.rows);
  visitor.on_attribute("columns", shape_.columns);
  visitor.on_attribute("values", shape_.values);
  visitor.on_attribute("module", module_);
  return true;
}

// bytes_of(i): of input i.
template <class BytesOf>
Parts SparseLinear::parts_of(const BytesOf& bytes_of) const {
  Parts parts;
  parts.mask = bytes_of(1);
  parts.values = bytes_of(2);
  parts.row_offsets = bytes_of(3);
  if (least_inputs() == 5) parts.scales = bytes_of(4);
  if (get_input_size() > least_inputs()) parts.bias = bytes_of(least_inputs());
  return parts;
}

void SparseLinear::check_inputs() const {
  checked_dtype(shape_);
  const size_t inputs = get_input_size();
  if (inputs != least_inputs() && inputs != least_inputs() + 1) {
    refuse("it has ", inputs, " inputs; with ", shape_.values, " values it takes ", least_inputs(),
           ", and one more for a bias");
  }
  const ov::PartialShape& x = get_input_partial_shape(0);
  const ov::element::Type& type = get_input_element_type(0);
  if (type.is_static() && dtype_of(type) == -1) refuse("x is ", type, ", must be f32, bf16 or f16");
  if (x.rank().is_static() && (x.size() < 1 || !x[x.size() - 1].compatible(shape_.columns))) {
    refuse("x is ", x, ", must end in the ", shape_.columns, " columns of the weight");
  }
  for (size_t i = 1; i < inputs; ++i) {
    const ov::PartialShape& found = get_input_partial_shape(i);
    if (!get_input_element_type(i).compatible(ov::element::u8) || !found.rank().compatible(1)) {
      refuse("input ", i, " is ", get_input_element_type(i), " ", found,
             ", must be bytes of the weight: u8 with one dimension");
    }
  }
}

void SparseLinear::validate_and_infer_types() {
  try {
    check_inputs();
    if (!is_copy_) checked();
  } catch (const Refusal& refusal) {
    throw Refusal(prefix() + refusal.what());
  }
  ov::PartialShape y = get_input_partial_shape(0);
  if (y.rank().is_static()) y[y.size() - 1] = shape_.rows;
  set_output_type(0, get_input_element_type(0), y);
}

std::shared_ptr<ov::Node> SparseLinear::clone_with_new_inputs(const ov::OutputVector& inputs) const {
  auto copy = std::make_shared<SparseLinear>();
  copy->shape_ = shape_;
  copy->module_ = module_;
  copy->is_copy_ = true;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    copy->checked_ = checked_;  // serves where the copy's constants are the same memory
  }
  copy->set_arguments(inputs);
  copy->constructor_validate_and_infer_types();
  return copy;
}

// Null where a part is not constant.
std::shared_ptr<const SparseLinear::Checked> SparseLinear::checked() const {
  std::vector<std::shared_ptr<const Constant>> owners;
  for (size_t i = 1; i < get_input_size(); ++i) {
    auto constant = ov::as_type_ptr<const Constant>(get_input_node_shared_ptr(i));
    if (constant == nullptr) return nullptr;
    owners.push_back(std::move(constant));
  }
  const Parts found =
      parts_of([&](size_t i) { return Bytes{owners[i - 1]->get_data_ptr(), owners[i - 1]->get_byte_size()}; });
  const std::lock_guard<std::mutex> lock(mutex_);
  if (checked_ != nullptr) {
    const Parts& before = checked_->parts;
    if (same(before.mask, found.mask) && same(before.values, found.values) &&
        same(before.row_offsets, found.row_offsets) && same(before.scales, found.scales) &&
        same(before.bias, found.bias)) {
      return checked_;
    }
  }
  checked_ = std::make_shared<const Checked>(shape_, found, std::move(owners));
  return checked_;
}

bool SparseLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  try {
    const ov::Tensor& x = inputs.at(0);
    ov::Shape shape = x.get_shape();
    if (inputs.size() != get_input_size() || dtype_of(x.get_element_type()) == -1 || shape.empty() ||
        shape.back() != static_cast<size_t>(shape_.columns)) {
      refuse("x is ", x.get_element_type(), " ", shape, ", must be f32, bf16 or f16 and end in ",
             shape_.columns, " columns");
    }
    // Constants were checked when the op was made. They are what the tensors hold, perhaps at another place.
    const std::shared_ptr<const Checked> constants = checked();
    std::unique_ptr<const PackedBytes> own;
    if (constants == nullptr) {
      own = std::make_unique<const PackedBytes>(
          shape_, parts_of([&](size_t i) { return Bytes{inputs[i].data(), inputs[i].get_byte_size()}; }));
    }
    const PackedBytes& packed = constants == nullptr ? *own : constants->packed;
    shape.back() = static_cast<size_t>(shape_.rows);
    if (outputs.at(0).get_element_type() != x.get_element_type()) {
      refuse("y is ", outputs[0].get_element_type(), ", must be ", x.get_element_type(), " as x is");
    }
    outputs[0].set_shape(shape);
    rlcc_sparse_linear_params params{};
    params.weight = packed.weight();
    params.bias = packed.bias();
    params.x_rows = static_cast<int64_t>(ov::shape_size(ov::Shape(shape.begin(), shape.end() - 1)));
    params.x = x.data();
    params.x_stride = shape_.columns;
    params.x_dtype = dtype_of(x.get_element_type());
    params.y = outputs[0].data();
    params.y_stride = shape_.rows;
    const rlcc_parallel threads = host_threads();
    params.parallel = &threads;
    if (rlcc_sparse_linear(&params) != RLCC_OK) refuse(rlcc_last_error());
  } catch (const Refusal& refusal) {
    throw Refusal(prefix() + refusal.what());
  }
  return true;
}

}  // namespace restorelcc_openvino
