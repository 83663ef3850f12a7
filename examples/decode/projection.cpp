#include "projection.h"

#include <algorithm>

#include "elements.h"
#include "refusal.h"

namespace decode {
namespace {

char* columns_from(void* data, rlcc_dtype dtype, int64_t column) {
  return static_cast<char*>(data) + column * element_bytes(dtype);
}

// Rows [first, first + rows) of a packed weight: row offsets are into all values, so these stay where they are.
rlcc_packed_weight rows_of(const rlcc_packed_weight& weight, int64_t first, int64_t rows) {
  rlcc_packed_weight part = weight;
  part.rows = rows;
  part.mask += first * ((weight.columns + 63) / 64);
  part.row_offsets += first;
  if (part.scales != nullptr) {
    part.scales += first * ((weight.columns + RLCC_SCALE_COLUMNS - 1) / RLCC_SCALE_COLUMNS);
  }
  return part;
}

}  // namespace

Projection::Projection(const PackedModel& model, const std::vector<Module>& modules, int64_t inputs,
                       bool biased)
    : inputs_(inputs) {
  for (const Module& module : modules) {
    Part part{};
    part.first = outputs_;
    part.outputs = module.outputs;
    part.packed = model.has_weight(module.name);
    if (part.packed) {
      const rlcc_weight weight = model.weight(module.name);
      if (weight.rows != module.outputs || weight.weight.columns != inputs) {
        refuse(module.name, " is [", weight.rows, ", ", weight.weight.columns, "], not [", module.outputs, ", ",
               inputs, "], as config.json has it; pack the model again");
      }
      part.weight = rows_of(weight.weight, weight.first_row, weight.rows);
    } else {
      part.dense = model.tensor(module.name + ".weight", {module.outputs, inputs});
    }
    outputs_ += module.outputs;
    // One call with the part before where its rows go on in the same weight.
    const bool goes_on =
        part.packed && !parts_.empty() && parts_.back().packed &&
        parts_.back().weight.row_offsets + parts_.back().weight.rows == part.weight.row_offsets;
    if (goes_on) {
      parts_.back().outputs += part.outputs;
      parts_.back().weight.rows += part.weight.rows;
    } else {
      parts_.push_back(part);
    }
    if (biased) {
      const std::vector<float> bias = model.vector(module.name + ".bias", module.outputs);
      bias_.insert(bias_.end(), bias.begin(), bias.end());
    }
  }
  // A Llama whose o_proj has a bias gives q, k and v one, too; zeros need not be added.
  if (std::all_of(bias_.begin(), bias_.end(), [](float b) { return b == 0; })) bias_.clear();
}

void Projection::compensate_inputs(const float* c) {
  std::vector<float> row(c, c + inputs_), found(static_cast<size_t>(outputs_));
  const Rows x{row.data(), inputs_, RLCC_F32}, y{found.data(), outputs_, RLCC_F32};
  for (const Part& part : parts_) run_part(part, x, 1, y, nullptr, true);
  comp_rows_ = std::move(found);
}

void Projection::compensate_outputs(const float* c) { comp_rows_.assign(c, c + outputs_); }

void Projection::move_to(HugePages* pages) {
  for (Part& part : parts_) {
    if (!part.packed) {
      part.dense.data = pages->copy(part.dense.data, part.outputs * inputs_ * element_bytes(part.dense.dtype));
      continue;
    }
    rlcc_packed_weight& w = part.weight;
    const int64_t bytes = element_bytes(w.dtype), first = w.row_offsets[0], words = (w.columns + 63) / 64;
    const int64_t groups = (w.columns + RLCC_SCALE_COLUMNS - 1) / RLCC_SCALE_COLUMNS;
    w.value_count = w.row_offsets[w.rows] - first + RLCC_VALUE_PADDING_BYTES / bytes;
    w.values = pages->copy(static_cast<const char*>(w.values) + first * bytes, w.value_count * bytes);
    w.mask = static_cast<const uint64_t*>(pages->copy(w.mask, w.rows * words * 8));
    if (w.scales != nullptr)
      w.scales = static_cast<const uint16_t*>(pages->copy(w.scales, w.rows * groups * 2));
    auto* const offsets = static_cast<int64_t*>(pages->copy(w.row_offsets, (w.rows + 1) * 8));
    for (int64_t n = 0; n <= w.rows; ++n) offsets[n] -= first;  // of the values that were copied
    w.row_offsets = offsets;
  }
}

void Projection::run(const Rows& x, int64_t rows, const Rows& y, const void* residual) const {
  for (const Part& part : parts_) run_part(part, x, rows, y, residual, false);
}

// bare: the product alone, of x as it is.
void Projection::run_part(const Part& part, const Rows& x, int64_t rows, const Rows& y, const void* residual,
                          bool bare) const {
  const auto of_part = [&](const std::vector<float>& values) {
    return bare || values.empty() ? nullptr : values.data() + part.first;
  };
  void* const to = columns_from(y.data, y.dtype, part.first);
  const void* const add =
      residual == nullptr ? nullptr : columns_from(const_cast<void*>(residual), y.dtype, part.first);
  if (part.packed) {
    rlcc_sparse_linear_params p{};
    p.weight = part.weight;
    p.x = x.data;
    p.x_rows = rows;
    p.x_stride = x.stride;
    p.x_dtype = x.dtype;
    p.comp_rows = of_part(comp_rows_);
    p.groups = p.comp_rows == nullptr ? 0 : 1;
    p.bias = of_part(bias_);
    p.residual = add;
    p.residual_stride = y.stride;
    p.y = to;
    p.y_stride = y.stride;
    p.exact_x = bare ? 1 : 0;
    return check(rlcc_sparse_linear(&p));
  }
  if (of_part(comp_rows_) != nullptr) {
    refuse("a projection that adds a compensation is dense; pack the model again");  // the format says it is
                                                                                     // packed
  }
  rlcc_dense_linear_params p{};
  p.weight = part.dense.data;
  p.rows = part.outputs;
  p.columns = inputs_;
  p.weight_stride = inputs_;
  p.weight_dtype = part.dense.dtype;
  p.x = x.data;
  p.x_rows = rows;
  p.x_stride = x.stride;
  p.x_dtype = x.dtype;
  p.bias = of_part(bias_);
  p.residual = add;
  p.residual_stride = y.stride;
  p.y = to;
  p.y_stride = y.stride;
  p.y_dtype = y.dtype;
  check(rlcc_dense_linear(&p));
}

}  // namespace decode
