// A packed model that is open: its tables of names, and where in the mapped file what they name stands.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/aligned_bytes.h"
#include "core/status.h"
#include "model/configuration.h"
#include "model/record.h"
#include "model/tensor_file.h"
#include "restorelcc/model.h"

namespace restorelcc::model {

// Does not change once it is open. To be opened once; stays where it is, because all it hands out points into
// it.
class PackedModel {
 public:
  PackedModel() = default;
  PackedModel(const PackedModel&) = delete;
  PackedModel& operator=(const PackedModel&) = delete;

  Status open(const std::string& directory);

  rlcc_model_config config() const;
  const std::vector<rlcc_tensor>& tensors() const { return tensors_; }
  const std::vector<rlcc_weight>& weights() const { return weights_; }
  const std::vector<rlcc_compensation>& compensations() const { return compensations_; }
  int64_t default_compensation() const { return record_.default_compensation; }
  const rlcc_tensor* find_tensor(std::string_view name) const;
  const rlcc_weight* find_weight(std::string_view name) const;

 private:
  // A weight of the file, which may be that of several modules.
  struct Whole {
    std::string name;  // "model.layers.0.self_attn.q_proj+k_proj+v_proj"
    rlcc_packed_weight weight;
  };

  Status take_weights();
  Status take_weight(std::string name, int64_t rows, int64_t columns, rlcc_dtype dtype);
  Status trust_weights();
  Status take_compensations();
  Status take_vectors(const char* prefix, const float* rlcc_compensation::* vectors,
                      int64_t rlcc_compensation::* columns);
  Status check_dense_matrices();
  Status list_tensors();
  void sort_names();
  const void* aligned(const StoredTensor& tensor, int64_t alignment);

  Record record_;
  Configuration configuration_;
  TensorFile file_;
  std::vector<AlignedBytes> copies_;  // of tensors that lie at odd places
  std::vector<Whole> wholes_;
  std::vector<rlcc_weight> weights_;  // in the order of the record, the head last
  std::vector<rlcc_tensor> tensors_;  // in the order of the file
  std::vector<rlcc_compensation> compensations_;
  std::vector<uint32_t> weight_order_, tensor_order_;  // sorted by name
};

// Refused where a Llama of this configuration has other tensors or matrices than these.
Status check_llama(const Configuration& configuration, const Record& record, TensorFile* file);

}  // namespace restorelcc::model
