// The packed model behind restorelcc/model.h: closed when it goes, errors as exceptions, shapes checked.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "restorelcc/model.h"

namespace decode {

class PackedModel {
 public:
  // Throws Refusal with the library's sentence for what is no packed model.
  explicit PackedModel(const std::string& directory);
  ~PackedModel();
  PackedModel(const PackedModel&) = delete;
  PackedModel& operator=(const PackedModel&) = delete;

  const rlcc_model_config& config() const { return config_; }
  // Of packed.safetensors.
  int64_t file_bytes() const;
  // The files are no longer mapped; nothing that was handed out may be used any more.
  void close();

  bool has_tensor(const std::string& name) const;
  bool has_weight(const std::string& name) const;
  // Throws Refusal where it is missing, of another shape or of a type that no kernel takes.
  rlcc_tensor tensor(const std::string& name, std::initializer_list<int64_t> shape) const;
  rlcc_weight weight(const std::string& name) const;
  // A dense vector [n], widened to fp32.
  std::vector<float> vector(const std::string& name, int64_t n) const;

  // The compensation of that name; "" is the model's default, which may be none, and "none" is none. Without
  // one, its vectors are null. Throws Refusal for a name that the model has not.
  rlcc_compensation compensation(const std::string& name) const;

 private:
  std::string directory_;
  rlcc_model* model_ = nullptr;
  rlcc_model_config config_{};
};

}  // namespace decode
