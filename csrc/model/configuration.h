// config.json and generation_config.json: what a decoder asks of a stock configuration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "restorelcc/model.h"

namespace restorelcc::model {

// What a configuration does not say, and its family has no default for, is 0 or empty.
struct Configuration {
  std::string json;  // all of config.json
  std::string model_type, architecture, rope_type, activation;
  int64_t hidden_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate_size = 0,
          vocabulary = 0;
  int64_t max_positions = 0;
  double norm_eps = 0, rope_theta = 0;
  bool attention_bias = false, mlp_bias = false;
  bool tied_embeddings = false;  // what the configuration says; a packed head is not tied
  int64_t bos_token = -1;
  std::vector<int64_t> eos_tokens;

  bool is_llama() const { return model_type == "llama"; }
};

// Of the directory's two files; the second may be missing. Refused: files that are not JSON, counts of layers
// or labels above 10,000, and of a Llama every size that is missing or no size.
Status read_configuration(const std::string& directory, Configuration* configuration);

}  // namespace restorelcc::model
