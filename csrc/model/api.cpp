// The C border of the packed model.
#include <memory>

#include "core/status.h"
#include "model/json.h"
#include "model/packed_model.h"
#include "restorelcc/model.h"

struct rlcc_model {
  restorelcc::model::PackedModel packed;
};

namespace restorelcc::model {
namespace {

constexpr char kOutOfMemory[] = "out of memory while opening the model; close others first";

template <class Entry>
Status copy_at(const rlcc_model* model, const std::vector<Entry>& (PackedModel::*entries)() const,
               const char* what, int64_t index, Entry* entry) {
  if (model == nullptr || entry == nullptr) return invalid("model or ", what, " is null");
  const std::vector<Entry>& all = (model->packed.*entries)();
  if (index < 0 || index >= static_cast<int64_t>(all.size())) {
    return invalid("the ", what, " ", index, " was asked for, the model has ", all.size());
  }
  *entry = all[static_cast<size_t>(index)];
  return {};
}

template <class Entry>
Status copy_named(const rlcc_model* model, const Entry* (PackedModel::*find)(std::string_view) const,
                  const char* what, const char* name, Entry* entry) {
  if (model == nullptr || name == nullptr || entry == nullptr)
    return invalid("model, name or ", what, " is null");
  const Entry* const found = (model->packed.*find)(name);
  if (found == nullptr) return invalid("the model has no ", what, " ", one_line(name, 240));
  *entry = *found;
  return {};
}

}  // namespace
}  // namespace restorelcc::model

using namespace restorelcc;
using restorelcc::model::PackedModel;

extern "C" {

rlcc_status rlcc_model_open(const char* directory, rlcc_model** opened) {
  if (opened != nullptr) *opened = nullptr;
  return guarded(
      [&]() -> Status {
        if (directory == nullptr || opened == nullptr) return invalid("directory or model is null");
        auto model = std::make_unique<rlcc_model>();
        RLCC_RETURN_IF_FAILED(model->packed.open(directory));
        *opened = model.release();
        return {};
      },
      model::kOutOfMemory);
}

void rlcc_model_close(rlcc_model* model) { delete model; }

rlcc_status rlcc_model_get_config(const rlcc_model* model, rlcc_model_config* config) {
  return guarded([&]() -> Status {
    if (model == nullptr || config == nullptr) return invalid("model or config is null");
    *config = model->packed.config();
    return {};
  });
}

int64_t rlcc_model_tensor_count(const rlcc_model* model) {
  return model == nullptr ? 0 : static_cast<int64_t>(model->packed.tensors().size());
}

rlcc_status rlcc_model_tensor_at(const rlcc_model* model, int64_t index, rlcc_tensor* tensor) {
  return guarded([&] { return model::copy_at(model, &PackedModel::tensors, "tensor", index, tensor); });
}

int64_t rlcc_model_weight_count(const rlcc_model* model) {
  return model == nullptr ? 0 : static_cast<int64_t>(model->packed.weights().size());
}

rlcc_status rlcc_model_weight_at(const rlcc_model* model, int64_t index, rlcc_weight* weight) {
  return guarded([&] { return model::copy_at(model, &PackedModel::weights, "weight", index, weight); });
}

rlcc_status rlcc_model_tensor(const rlcc_model* model, const char* name, rlcc_tensor* tensor) {
  return guarded([&] { return model::copy_named(model, &PackedModel::find_tensor, "tensor", name, tensor); });
}

rlcc_status rlcc_model_weight(const rlcc_model* model, const char* name, rlcc_weight* weight) {
  return guarded([&] { return model::copy_named(model, &PackedModel::find_weight, "weight", name, weight); });
}

int32_t rlcc_model_has(const rlcc_model* model, const char* name) {
  if (model == nullptr || name == nullptr) return 0;
  if (model->packed.find_tensor(name) != nullptr) return 1;
  return model->packed.find_weight(name) != nullptr ? 2 : 0;
}

int64_t rlcc_model_compensation_count(const rlcc_model* model) {
  return model == nullptr ? 0 : static_cast<int64_t>(model->packed.compensations().size());
}

rlcc_status rlcc_model_compensation_at(const rlcc_model* model, int64_t index,
                                       rlcc_compensation* compensation) {
  return guarded(
      [&] { return model::copy_at(model, &PackedModel::compensations, "compensation", index, compensation); });
}

int64_t rlcc_model_default_compensation(const rlcc_model* model) {
  return model == nullptr ? -1 : model->packed.default_compensation();
}

}  // extern "C"
