#include "model/configuration.h"

#include <initializer_list>

#include "model/file_bytes.h"
#include "model/json.h"

namespace restorelcc::model {
namespace {

// Layers, or labels: the stock configurations make a list as long as they say.
constexpr int64_t kMostCounted = 10'000;
// Of a size: products of two fit 64 bits.
constexpr int64_t kMostSize = INT32_MAX;

Status damaged(const std::string& path, const std::string& what) {
  return invalid(path, " cannot be used: ", what, "; copy or pack the model again");
}

// Every whole number of an object, however deep, whose key speaks of layers or labels.
Status check_counts(const JsonValue& value) {
  RLCC_RETURN_IF_FAILED(value.each_element([](const JsonValue& element) { return check_counts(element); }));
  return value.each_member([](const JsonValue& key, const JsonValue& member) -> Status {
    if (!member.is(JsonKind::kInteger)) return check_counts(member);
    const std::string name = key.string();
    const bool counted = name.find("layer") != std::string::npos || name.find("label") != std::string::npos;
    int64_t count = 0;
    const bool small = member.text().front() == '-' || (member.integer(&count) && count <= kMostCounted);
    if (!counted || small) return {};
    return invalid(one_line(name), " is ", one_line(member.text(), 40), ", more than ", kMostCounted);
  });
}

// The first of `keys` that has a value other than null.
JsonValue first_of(const JsonValue& entries, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    const JsonValue value = entries.find(key);
    if (value.exists() && !value.is(JsonKind::kNull)) return value;
  }
  return {};
}

std::string string_of(const JsonValue& value) {
  const std::string text = value.string();
  return text.find('\0') == std::string::npos ? text : std::string();
}

int64_t size_of(const JsonValue& value) {
  int64_t size = 0;
  return value.integer(&size) && size >= 0 && size <= kMostSize ? size : 0;
}

void number_of(const JsonValue& value, double* number) {
  if (double read = 0; value.number(&read)) *number = read;
}

// A token, or a list of them; null: none.
Status tokens_of(const JsonValue& value, std::vector<int64_t>* tokens) {
  if (!value.exists() || value.is(JsonKind::kNull)) return {};
  const auto add = [&](const JsonValue& token) -> Status {
    int64_t number = 0;
    if (!token.integer(&number) || number < 0) {
      return invalid("eos_token_id has ", one_line(token.text(), 40), ", which is no token");
    }
    tokens->push_back(number);
    return {};
  };
  return value.is(JsonKind::kList) ? value.each_element(add) : add(value);
}

// Names of one thing among the stock configurations, the commonest first.
void read_entries(const JsonValue& entries, Configuration* c) {
  c->hidden_size = size_of(first_of(entries, {"hidden_size", "n_embd", "d_model"}));
  c->layers = size_of(first_of(entries, {"num_hidden_layers", "n_layer"}));
  c->heads = size_of(first_of(entries, {"num_attention_heads", "n_head"}));
  c->kv_heads = size_of(first_of(entries, {"num_key_value_heads", "num_kv_heads"}));
  c->head_dim = size_of(first_of(entries, {"head_dim"}));
  c->intermediate_size =
      size_of(first_of(entries, {"intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"}));
  c->vocabulary = size_of(first_of(entries, {"vocab_size"}));
  c->max_positions = size_of(first_of(entries, {"max_position_embeddings", "n_positions"}));
  number_of(first_of(entries, {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"}), &c->norm_eps);
  c->activation = string_of(first_of(entries, {"hidden_act", "hidden_activation", "activation_function"}));
  c->attention_bias = first_of(entries, {"attention_bias"}).is(JsonKind::kTrue);
  c->mlp_bias = first_of(entries, {"mlp_bias"}).is(JsonKind::kTrue);
  // The parameters of the rotary embedding stood at the top, and in rope_scaling, before transformers 5.
  const JsonValue rope = first_of(entries, {"rope_parameters", "rope_scaling"});
  number_of(first_of(entries, {"rope_theta", "rotary_emb_base"}), &c->rope_theta);
  number_of(first_of(rope, {"rope_theta"}), &c->rope_theta);
  c->rope_type = string_of(first_of(rope, {"rope_type", "type"}));
  if (c->rope_type.empty() && c->rope_theta != 0) c->rope_type = "default";
  if (c->kv_heads == 0) c->kv_heads = c->heads;
  if (c->head_dim == 0 && c->heads != 0) c->head_dim = c->hidden_size / c->heads;
  int64_t bos = 0;
  if (first_of(entries, {"bos_token_id"}).integer(&bos) && bos >= 0) c->bos_token = bos;
}

Status must_be(const char* key, const JsonValue& value, const char* what) {
  return invalid(key, " is ", value.exists() ? one_line(value.text(), 40) : "missing", ", not ", what);
}

// What the file says of a Llama is of the right kind where it says something; null says nothing.
Status check_kinds(const JsonValue& entries) {
  for (const char* key : {"attention_bias", "mlp_bias", "tie_word_embeddings"}) {
    const JsonValue value = first_of(entries, {key});
    if (value.exists() && !value.is(JsonKind::kTrue) && !value.is(JsonKind::kFalse)) {
      return must_be(key, value, "true or false");
    }
  }
  if (const JsonValue value = first_of(entries, {"hidden_act"}); value.exists() && string_of(value).empty()) {
    return must_be("hidden_act", value, "a name");
  }
  const JsonValue rope = first_of(entries, {"rope_parameters", "rope_scaling"});
  if (rope.exists() && !rope.is(JsonKind::kObject)) return must_be("rope_parameters", rope, "an object");
  const JsonValue kind = first_of(rope, {"rope_type", "type"});
  if (kind.exists() && string_of(kind).empty()) return must_be("rope_type", kind, "a name");
  const std::pair<const char*, JsonValue> numbers[] = {{"rms_norm_eps", first_of(entries, {"rms_norm_eps"})},
                                                       {"rope_theta", first_of(entries, {"rope_theta"})},
                                                       {"rope_theta", first_of(rope, {"rope_theta"})}};
  for (const auto& [key, value] : numbers) {
    double number = 0;
    if (value.exists() && !(value.number(&number) && number > 0))
      return must_be(key, value, "a number above 0");
  }
  return {};
}

// The defaults of the stock class, and what it cannot do without.
Status complete_llama(const JsonValue& entries, Configuration* c) {
  RLCC_RETURN_IF_FAILED(check_kinds(entries));
  if (c->activation.empty()) c->activation = "silu";
  if (c->rope_type.empty()) c->rope_type = "default";
  if (c->rope_theta == 0) c->rope_theta = 10000.0;
  if (c->norm_eps == 0) c->norm_eps = 1e-6;
  const std::pair<const char*, int64_t> sizes[] = {
      {"hidden_size", c->hidden_size},   {"num_hidden_layers", c->layers},
      {"num_attention_heads", c->heads}, {"num_key_value_heads", c->kv_heads},
      {"head_dim", c->head_dim},         {"intermediate_size", c->intermediate_size},
      {"vocab_size", c->vocabulary},     {"max_position_embeddings", c->max_positions},
  };
  for (const auto& [key, size] : sizes) {
    const JsonValue value = first_of(entries, {key});
    if (size == 0 || (value.exists() && size_of(value) != size)) {
      return must_be(key, value, "a size from 1 to 2147483647");
    }
  }
  if (c->heads % c->kv_heads != 0) {
    return invalid("num_attention_heads is ", c->heads, ", no multiple of num_key_value_heads, ", c->kv_heads);
  }
  return {};
}

}  // namespace

Status read_configuration(const std::string& directory, Configuration* configuration) {
  const std::string path = directory + "/config.json";
  Json json;
  RLCC_RETURN_IF_FAILED(read_json(path, &configuration->json, &json));
  JsonValue entries = json.root();
  if (const Status status = check_counts(entries); !status.ok()) return damaged(path, status.message);
  configuration->model_type = string_of(entries.find("model_type"));
  if (configuration->model_type.empty()) return damaged(path, "it has no model_type");
  entries.find("architectures").each_element([&](const JsonValue& name) -> Status {
    if (configuration->architecture.empty()) configuration->architecture = string_of(name);
    return {};
  });
  const JsonValue tied = entries.find("tie_word_embeddings");
  // The default of the stock base class; Llama's is another.
  configuration->tied_embeddings =
      tied.exists() && !tied.is(JsonKind::kNull) ? tied.is(JsonKind::kTrue) : !configuration->is_llama();
  std::vector<int64_t> eos_tokens;
  Status status = tokens_of(entries.find("eos_token_id"), &eos_tokens);
  if (const JsonValue text = entries.find("text_config"); text.is(JsonKind::kObject)) entries = text;
  read_entries(entries, configuration);
  if (status.ok() && configuration->is_llama()) status = complete_llama(entries, configuration);
  if (!status.ok()) return damaged(path, status.message);

  const std::string generation_path = directory + "/generation_config.json";
  std::string text;
  bool missing = false;
  RLCC_RETURN_IF_FAILED(read_json(generation_path, &text, &json, &missing));
  if (!missing) {
    status = tokens_of(json.root().find("eos_token_id"), &configuration->eos_tokens);
    if (!status.ok()) return damaged(generation_path, status.message);
  }
  if (configuration->eos_tokens.empty()) configuration->eos_tokens = std::move(eos_tokens);
  return {};
}

}  // namespace restorelcc::model
