#include "sparse_linear_op.h"

#include <array>
#include <vector>

#include "host_threads.h"
#include "openvino/op/constant.hpp"
#include "refusal.h"

namespace restorelcc_openvino {
namespace {

using Constant = ov::op::v0::Constant;

constexpr size_t kFirstPart = 1, kMostParts = 4;
constexpr std::array<const char*, kMostParts> kPartNames = {"mask", "values", "row_offsets", "scales"};

using Parts = std::array<Bytes, kMostParts>;

}  // namespace

// The weight of constants, which it keeps alive.
struct SparseLinear::Checked {
  Checked(const Shape& shape, const Parts& found, std::vector<std::shared_ptr<const Constant>> constants)
      : parts(found), owners(std::move(constants)), packed(shape, found[0], found[1], found[2], found[3]) {}
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

void SparseLinear::check_inputs() const {
  checked_dtype(shape_);
  const size_t inputs = get_input_size();
  if (inputs != parts() && inputs != parts() + 1) {
    refuse("it has ", inputs, " inputs; with ", shape_.values, " values it takes ", parts(),
           ", and one more for a bias");
  }
  const ov::PartialShape& x = get_input_partial_shape(0);
  if (!get_input_element_type(0).compatible(ov::element::f32)) {
    refuse("x is ", get_input_element_type(0), ", must be f32");
  }
  if (x.rank().is_static() && (x.size() < 1 || !x[x.size() - 1].compatible(shape_.columns))) {
    refuse("x is ", x, ", must end in the ", shape_.columns, " columns of the weight");
  }
  const std::array<size_t, kMostParts> bytes = {mask_bytes(shape_), 0, row_offsets_bytes(shape_),
                                                scales_bytes(shape_)};
  for (size_t i = kFirstPart; i < parts(); ++i) {
    const char* const name = kPartNames[i - kFirstPart];
    const ov::PartialShape& found = get_input_partial_shape(i);
    if (!get_input_element_type(i).compatible(ov::element::u8) || !found.rank().compatible(1)) {
      refuse(name, " is ", get_input_element_type(i), " ", found, ", must be u8 with one dimension");
    }
    const bool any_size = i - kFirstPart == 1;  // of values
    if (any_size || found.is_dynamic() || found[0].get_length() == static_cast<int64_t>(bytes[i - kFirstPart]))
      continue;
    refuse(name, " has ", found[0], " bytes, must have ", bytes[i - kFirstPart], " for a weight of ",
           shape_.rows, " rows, ", shape_.columns, " columns and ", shape_.values, " values");
  }
  if (!biased()) return;
  const ov::PartialShape& bias = get_input_partial_shape(inputs - 1);
  if (!get_input_element_type(inputs - 1).compatible(ov::element::f32) ||
      !bias.compatible(ov::PartialShape{shape_.rows})) {
    refuse("bias is ", get_input_element_type(inputs - 1), " ", bias, ", must be f32 [", shape_.rows, "]");
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
  set_output_type(0, ov::element::f32, y);
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
  Parts found;
  std::vector<std::shared_ptr<const Constant>> owners;
  for (size_t i = kFirstPart; i < parts(); ++i) {
    auto constant = ov::as_type_ptr<const Constant>(get_input_node_shared_ptr(i));
    if (constant == nullptr) return nullptr;
    found[i - kFirstPart] = {constant->get_data_ptr(), constant->get_byte_size()};
    owners.push_back(std::move(constant));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  bool same = checked_ != nullptr;
  for (size_t i = 0; same && i < kMostParts; ++i) {
    same = checked_->parts[i].data == found[i].data && checked_->parts[i].size == found[i].size;
  }
  if (!same) checked_ = std::make_shared<const Checked>(shape_, found, std::move(owners));
  return checked_;
}

bool SparseLinear::evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const {
  try {
    const ov::Tensor& x = inputs.at(0);
    ov::Shape shape = x.get_shape();
    if (inputs.size() != get_input_size() || x.get_element_type() != ov::element::f32 || shape.empty() ||
        shape.back() != static_cast<size_t>(shape_.columns)) {
      refuse("x is ", x.get_element_type(), " ", shape, ", must be f32 and end in ", shape_.columns,
             " columns");
    }
    rlcc_sparse_linear_params params{};
    // The constants were checked; where there are some, they are what the tensors hold.
    const std::shared_ptr<const Checked> constants = checked();
    std::unique_ptr<const PackedBytes> own;
    if (constants == nullptr) {
      Parts found;
      for (size_t i = kFirstPart; i < parts(); ++i) {
        found[i - kFirstPart] = {inputs[i].data(), inputs[i].get_byte_size()};
      }
      own = std::make_unique<const PackedBytes>(shape_, found[0], found[1], found[2], found[3]);
    }
    params.weight = (constants == nullptr ? *own : constants->packed).weight();
    if (biased()) {
      const ov::Tensor& bias = inputs.back();
      if (bias.get_element_type() != ov::element::f32 || bias.get_size() != static_cast<size_t>(shape_.rows)) {
        refuse("bias is ", bias.get_element_type(), " ", bias.get_shape(), ", must be f32 [", shape_.rows, "]");
      }
      params.bias = bias.data<const float>();
    }
    shape.back() = static_cast<size_t>(shape_.rows);
    outputs.at(0).set_shape(shape);
    params.x_rows = static_cast<int64_t>(ov::shape_size(ov::Shape(shape.begin(), shape.end() - 1)));
    params.x = x.data();
    params.x_stride = shape_.columns;
    params.x_dtype = RLCC_F32;
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
