#include "model_files.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>

#include "check.h"
#include "matrices.h"

namespace restorelcc::test {
namespace {

template <class Element>
std::string bytes_of(const std::vector<Element>& elements) {
  std::string bytes(elements.size() * sizeof(Element), '\0');
  if (!bytes.empty()) std::memcpy(bytes.data(), elements.data(), bytes.size());
  return bytes;
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }

std::string list_of(const std::vector<std::string>& entries) {
  std::string list;
  for (const std::string& entry : entries) list += (list.empty() ? "" : ", ") + entry;
  return "[" + list + "]";
}

// The name of `values` in the record, the type of what is dense, and that of the values.
struct Types {
  const char *record, *dense, *values;
};
Types types_of(rlcc_dtype values) {
  switch (values) {
    case RLCC_F32: return {"fp32", "F32", "F32"};
    case RLCC_F16: return {"fp16", "F16", "F16"};
    case RLCC_I8: return {"int8", "BF16", "I8"};
    default: return {"bf16", "BF16", "BF16"};
  }
}

class Builder {
 public:
  explicit Builder(const ModelOptions& options)
      : options_(options), size_(options.sizes), types_(types_of(options.values)) {}

  ModelFiles build() {
    add_dense("model.embed_tokens.weight", {size_.vocabulary, size_.hidden});
    for (int layer = 0; layer < size_.layers; ++layer) add_layer("model.layers." + std::to_string(layer) + ".");
    add_dense("model.norm.weight", {size_.hidden});
    std::string head = "null";
    if (options_.head) {
      add_packed("lm_head", size_.vocabulary, size_.hidden, RLCC_I8);
      head = matrix("lm_head", size_.vocabulary, size_.hidden);
    } else if (!options_.tied) {
      add_dense("lm_head.weight", {size_.vocabulary, size_.hidden});
    }
    add_compensations();
    const bool compensated = options_.heads || options_.ffn;
    std::ostringstream record;
    record << "{\"format\": \"restorelcc-packed\", \"version\": 1, \"note\": \"of a test\", \"values\": "
           << quoted(types_.record) << ",\n \"packed\": " << list_of(packed_)
           << ",\n \"dense\": " << list_of(dense_) << ",\n \"head\": " << head
           << ",\n \"joined\": " << list_of(joined_)
           << ",\n \"compensations\": " << (compensated ? "[\"law\", \"tax\"]" : "[]")
           << ", \"default\": " << (compensated ? "\"law\"" : "null") << "}\n";
    files_.record = record.str();
    std::ostringstream config;
    config << "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": "
           << size_.hidden << ", \"intermediate_size\": " << size_.inner
           << ", \"vocab_size\": " << size_.vocabulary << ", \"num_hidden_layers\": " << size_.layers
           << ", \"num_attention_heads\": " << size_.heads << ", \"num_key_value_heads\": " << size_.kv_heads
           << ", \"head_dim\": " << size_.head_dim
           << ", \"max_position_embeddings\": 64, \"hidden_act\": \"silu\", "
              "\"rms_norm_eps\": 1e-05"
           << ", \"rope_parameters\": {\"rope_theta\": 5000.0, \"rope_type\": \"default\"}"
           << ", \"attention_bias\": " << (options_.biases ? "true" : "false")
           << ", \"mlp_bias\": " << (options_.biases ? "true" : "false")
           << ", \"tie_word_embeddings\": " << (options_.tied ? "true" : "false")
           << ", \"bos_token_id\": 1, \"eos_token_id\": 2}\n";
    files_.config = config.str();
    files_.generation = "{\"eos_token_id\": [2, 3]}\n";
    return files_;
  }

 private:
  static std::string matrix(const std::string& name, int64_t rows, int64_t columns) {
    return "{\"name\": " + quoted(name) + ", \"rows\": " + std::to_string(rows) +
           ", \"columns\": " + std::to_string(columns) +
           ", \"nonzero\": " + std::to_string(rows * columns / 2) + "}";
  }

  void add_layer(const std::string& at) {
    add_dense(at + "input_layernorm.weight", {size_.hidden});
    add_dense(at + "post_attention_layernorm.weight", {size_.hidden});
    add_family(at + "self_attn.", {"q_proj", "k_proj", "v_proj"},
               {size_.queries(), size_.keys(), size_.keys()});
    add_matrix(at + "self_attn.o_proj", size_.hidden, size_.queries());
    add_family(at + "mlp.", {"gate_proj", "up_proj"}, {size_.inner, size_.inner});
    add_matrix(at + "mlp.down_proj", size_.hidden, size_.inner);
  }

  // Matrices of E columns.
  void add_family(const std::string& at, const std::vector<std::string>& names,
                  const std::vector<int64_t>& rows) {
    if (!options_.joined) {
      for (size_t i = 0; i < names.size(); ++i) add_matrix(at + names[i], rows[i], size_.hidden);
      return;
    }
    std::string joint = at;
    std::vector<std::string> members;
    for (size_t i = 0; i < names.size(); ++i) {
      joint += (i == 0 ? "" : "+") + names[i];
      members.push_back(quoted(at + names[i]));
      packed_.push_back(matrix(at + names[i], rows[i], size_.hidden));
      if (options_.biases) add_dense(at + names[i] + ".bias", {rows[i]});
    }
    joined_.push_back(list_of(members));
    add_packed(joint, std::accumulate(rows.begin(), rows.end(), int64_t{0}), size_.hidden, options_.values);
  }

  void add_matrix(const std::string& name, int64_t rows, int64_t columns) {
    if (options_.biases) add_dense(name + ".bias", {rows});
    if (options_.dense_matrix &&
        name == "model.layers." + std::to_string(size_.layers - 1) + ".mlp.down_proj") {
      dense_.push_back(matrix(name, rows, columns));
      return add_dense(name + ".weight", {rows, columns});
    }
    packed_.push_back(matrix(name, rows, columns));
    add_packed(name, rows, columns, options_.values);
  }

  void add_packed(const std::string& name, int64_t rows, int64_t columns, rlcc_dtype values) {
    const Pattern pattern = [&](int64_t n, int64_t) {
      return values == RLCC_I8 || n == 0 || random_() % 2 == 0;
    };
    const Packed packed(random_weight(rows, columns, dense_dtype(values), random_, pattern), values);
    const rlcc_packed_weight& weight = packed.weight;
    const char* const type = values == RLCC_I8 ? "I8" : types_.values;
    add(name + ".mask", "I64", {rows, (columns + 63) / 64}, bytes_of(packed.mask));
    add(name + ".values", type, {weight.value_count}, bytes_of(packed.storage));
    add(name + ".row_offsets", "I64", {rows + 1}, bytes_of(packed.row_offsets));
    add(name + ".shape", "I64", {2}, bytes_of(std::vector<int64_t>{rows, columns}));
    if (values == RLCC_I8)
      add(name + ".scales", "BF16", {rows, (columns + 127) / 128}, bytes_of(packed.scales));
  }

  void add_dense(const std::string& name, const std::vector<int64_t>& shape) {
    const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    Matrix values(1, count, options_.values == RLCC_I8 ? RLCC_BF16 : options_.values);
    fill_normal(values, random_);
    const char* const first = static_cast<const char*>(values.data());
    add(name, types_.dense, shape,
        std::string(first, static_cast<size_t>(count) * dtype_bytes(values.dtype())));
  }

  void add_compensations() {
    const std::pair<bool, std::pair<const char*, int64_t>> places[] = {
        {options_.heads, {"compensation.", size_.queries()}},
        {options_.ffn, {"ffn_compensation.", size_.hidden}}};
    for (const auto& [wanted, place] : places) {
      for (const char* name : {"law", "tax"}) {
        if (!wanted) continue;
        std::vector<float> vectors(static_cast<size_t>(size_.layers * place.second));
        for (float& value : vectors) value = std::normal_distribution<float>()(random_);
        add(std::string(place.first) + name, "F32", {size_.layers, place.second}, bytes_of(vectors));
      }
    }
  }

  void add(const std::string& name, const std::string& type, const std::vector<int64_t>& shape,
           std::string bytes) {
    files_.arrays.push_back({name, type, shape, std::move(bytes)});
  }

  const ModelOptions options_;
  const ModelSizes size_;
  const Types types_;
  std::mt19937 random_{17};
  ModelFiles files_;
  std::vector<std::string> packed_, dense_, joined_;  // entries of the record
};

}  // namespace

StoredArray& ModelFiles::array(const std::string& name) {
  const auto found =
      std::find_if(arrays.begin(), arrays.end(), [&](const StoredArray& a) { return a.name == name; });
  if (found != arrays.end()) return *found;
  std::fprintf(stderr, "the test's model has no tensor %s\n", name.c_str());
  std::abort();
}

void ModelFiles::drop(const std::string& name) {
  arrays.erase(arrays.begin() + (&array(name) - arrays.data()));
}

void ModelFiles::write(const std::string& directory) const {
  write_file(directory + "/restorelcc.json", record);
  write_file(directory + "/config.json", config);
  if (!generation.empty()) write_file(directory + "/generation_config.json", generation);
  write_file(directory + "/packed.safetensors", packed.empty() ? serialised(arrays, shift) : packed);
}

ModelFiles tiny_llama(const ModelOptions& options) { return Builder(options).build(); }

std::string serialised(const std::vector<StoredArray>& arrays, size_t shift) {
  std::vector<const StoredArray*> order;
  for (const StoredArray& array : arrays) order.push_back(&array);
  const auto power = [](const StoredArray* array) { return std::gcd(array->bytes.size(), size_t{64}); };
  std::stable_sort(order.begin(), order.end(),
                   [&](const StoredArray* a, const StoredArray* b) { return power(a) > power(b); });
  std::string table = "{\"__metadata__\":{\"format\":\"restorelcc-packed\",\"version\":\"1\"}", data;
  for (const StoredArray* array : order) {
    std::vector<std::string> sizes;
    for (const int64_t size : array->shape) sizes.push_back(std::to_string(size));
    table += "," + quoted(array->name) + ":{\"dtype\":" + quoted(array->type) + ",\"shape\":" + list_of(sizes) +
             ",\"data_offsets\":[" + std::to_string(data.size()) + "," +
             std::to_string(data.size() + array->bytes.size()) + "]}";
    data += array->bytes;
  }
  table += "}";
  while ((table.size() + 8) % 64 != shift) table += " ";
  return with_table(std::string(8, '\0') + data, table);
}

std::string table_of(const std::string& file) {
  uint64_t bytes = 0;
  std::memcpy(&bytes, file.data(), 8);
  return file.substr(8, bytes);
}

std::string with_table(const std::string& file, const std::string& table) {
  const uint64_t bytes = table.size();
  std::string made(8, '\0');
  std::memcpy(made.data(), &bytes, 8);
  return made + table + file.substr(8 + table_of(file).size());
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  CHECK(at != std::string::npos) << "there is no " << from;
  return at == std::string::npos ? text : text.substr(0, at) + to + text.substr(at + from.size());
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream stream(path, std::ios::binary | std::ios::trunc);
  stream.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  stream.close();
  CHECK(!stream.fail()) << "cannot write " << path;
}

Directory::Directory() {
  static std::atomic<int> made{0};
  std::random_device random;
  const std::string name = "rlcc_model_" + std::to_string(random()) + "_" + std::to_string(made++);
  path_ = (std::filesystem::temp_directory_path() / name).string();
  std::filesystem::create_directories(path_);
}

Directory::~Directory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace restorelcc::test
