#include "packed_model.h"

#include <filesystem>

#include "elements.h"
#include "refusal.h"

namespace decode {
PackedModel::PackedModel(const std::string& directory) : directory_(directory) {
  check(rlcc_model_open(directory.c_str(), &model_));
  check(rlcc_model_get_config(model_, &config_));
}

PackedModel::~PackedModel() { close(); }

void PackedModel::close() {
  rlcc_model_close(model_);
  model_ = nullptr;
  config_ = {};
}

int64_t PackedModel::file_bytes() const {
  return static_cast<int64_t>(
      std::filesystem::file_size(std::filesystem::path(directory_) / "packed.safetensors"));
}

bool PackedModel::has_tensor(const std::string& name) const {
  return rlcc_model_has(model_, name.c_str()) == 1;
}
bool PackedModel::has_weight(const std::string& name) const {
  return rlcc_model_has(model_, name.c_str()) == 2;
}

rlcc_tensor PackedModel::tensor(const std::string& name, std::initializer_list<int64_t> shape) const {
  rlcc_tensor found{};
  check(rlcc_model_tensor(model_, name.c_str(), &found));
  bool fits = found.dimensions == static_cast<int32_t>(shape.size());
  std::string expected;
  for (size_t i = 0; i < shape.size(); ++i) {
    const int64_t wanted = shape.begin()[i];
    fits = fits && found.shape[i] == wanted;
    expected += (i == 0 ? "" : ", ") + std::to_string(wanted);
  }
  if (!fits)
    refuse("the tensor ", name, " is not [", expected, "], as config.json has it; pack the model again");
  if (found.dtype != RLCC_F32 && found.dtype != RLCC_BF16 && found.dtype != RLCC_F16) {
    refuse("the tensor ", name, " is not of fp32, bf16 or fp16; pack the model again");
  }
  return found;
}

rlcc_weight PackedModel::weight(const std::string& name) const {
  rlcc_weight found{};
  check(rlcc_model_weight(model_, name.c_str(), &found));
  return found;
}

std::vector<float> PackedModel::vector(const std::string& name, int64_t n) const {
  const rlcc_tensor found = tensor(name, {n});
  std::vector<float> floats(static_cast<size_t>(n));
  widen_row(found.data, found.dtype, n, floats.data());
  return floats;
}

rlcc_compensation PackedModel::compensation(const std::string& name) const {
  rlcc_compensation found{};
  if (name == "none") return found;
  int64_t index = rlcc_model_default_compensation(model_);
  if (!name.empty()) {
    std::string names;
    index = -1;
    for (int64_t i = 0; i < rlcc_model_compensation_count(model_); ++i) {
      check(rlcc_model_compensation_at(model_, i, &found));
      names += (i == 0 ? "" : ", ") + std::string(found.name);
      if (name == found.name) index = i;
    }
    if (index < 0) {
      refuse("the model has no compensation \"", name, "\"; it has ", names.empty() ? "none" : names);
    }
  }
  if (index < 0) return {};
  check(rlcc_model_compensation_at(model_, index, &found));
  return found;
}

}  // namespace decode
