// Good packed models through the C ABI: every byte that the file holds is handed out, and nothing else; many
// threads share one model.
#include <cmath>
#include <cstring>
#include <map>
#include <thread>

#include "matrices.h"
#include "model_files.h"
#include "restorelcc/model.h"

using namespace restorelcc::test;

namespace {

class Model {
 public:
  explicit Model(const std::string& directory) {
    CHECK_STATUS(rlcc_model_open(directory.c_str(), &model_), RLCC_OK);
  }
  ~Model() { rlcc_model_close(model_); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;
  operator const rlcc_model*() const { return model_; }

 private:
  rlcc_model* model_ = nullptr;
};

bool same_bytes(const void* data, const std::string& bytes) {
  return bytes.empty() || (data != nullptr && std::memcmp(data, bytes.data(), bytes.size()) == 0);
}

bool is_aligned(const void* data, size_t alignment) {
  return reinterpret_cast<uintptr_t>(data) % alignment == 0;
}

// A product with the weight, to touch all of it.
void run_product(const rlcc_packed_weight& weight) {
  std::mt19937 random(5);
  Matrix x(2, weight.columns, RLCC_F32), y(2, weight.rows, RLCC_F32), expected(2, weight.rows, RLCC_F32);
  fill_normal(x, random);
  rlcc_sparse_linear_params params{};
  params.weight = weight;
  params.x = x.data();
  params.x_rows = 2;
  params.x_stride = weight.columns;
  params.y = y.data();
  params.y_stride = weight.rows;
  params.exact_x = 1;
  CHECK_STATUS(rlcc_sparse_linear(&params), RLCC_OK);
  params.y = expected.data();
  CHECK_STATUS(rlcc_sparse_linear_reference(&params), RLCC_OK);
  double largest = 0, error = 0;
  for (int64_t n = 0; n < weight.rows; ++n) {
    largest = std::max(largest, std::fabs(static_cast<double>(expected.get(1, n))));
    error = std::max(error, std::fabs(static_cast<double>(expected.get(1, n)) - y.get(1, n)));
  }
  CHECK(error <= 1e-4 * largest) << "off by " << error << " of " << largest;
}

// What the model hands out is what the files hold. Removes from `left` what was seen.
void compare_weights(const rlcc_model* model, std::map<std::string, StoredArray>& left) {
  std::map<std::string, StoredArray> all = left;
  for (int64_t i = 0; i < rlcc_model_weight_count(model); ++i) {
    rlcc_weight found{}, named{};
    CHECK_STATUS(rlcc_model_weight_at(model, i, &found), RLCC_OK);
    CHECK_STATUS(rlcc_model_weight(model, found.name, &named), RLCC_OK);
    CHECK(std::memcmp(&found, &named, sizeof(found)) == 0) << found.name;
    CHECK(rlcc_model_has(model, found.name) == 2);
    const rlcc_packed_weight& weight = found.weight;
    const std::string joined = found.joined;
    CHECK(weight.trusted == 1 && rlcc_packed_validate(&weight) == RLCC_OK);
    CHECK(is_aligned(weight.values, 16) && is_aligned(weight.mask, 8) && is_aligned(weight.row_offsets, 8));
    CHECK(same_bytes(weight.mask, all[joined + ".mask"].bytes)) << joined;
    CHECK(same_bytes(weight.values, all[joined + ".values"].bytes)) << joined;
    CHECK(same_bytes(weight.row_offsets, all[joined + ".row_offsets"].bytes)) << joined;
    CHECK(same_bytes(weight.scales, all[joined + ".scales"].bytes)) << joined;
    CHECK((weight.scales != nullptr) == (weight.dtype == RLCC_I8));
    const int64_t sizes[2] = {weight.rows, weight.columns};
    CHECK(same_bytes(sizes, all[joined + ".shape"].bytes)) << joined;
    CHECK(weight.value_count == all[joined + ".values"].shape.at(0)) << joined;
    CHECK(found.first_row >= 0 && found.first_row + found.rows <= weight.rows);
    run_product(weight);
    for (const char* part : {".mask", ".values", ".row_offsets", ".scales", ".shape"})
      left.erase(joined + part);
  }
}

void compare(const rlcc_model* model, const ModelFiles& files) {
  std::map<std::string, StoredArray> left;
  for (const StoredArray& array : files.arrays) left[array.name] = array;
  compare_weights(model, left);
  for (int64_t i = 0; i < rlcc_model_tensor_count(model); ++i) {
    rlcc_tensor found{}, named{};
    CHECK_STATUS(rlcc_model_tensor_at(model, i, &found), RLCC_OK);
    CHECK_STATUS(rlcc_model_tensor(model, found.name, &named), RLCC_OK);
    CHECK(named.data == found.data && named.bytes == found.bytes && rlcc_model_has(model, found.name) == 1);
    const StoredArray& array = left[found.name];
    CHECK(array.type == found.type && array.bytes.size() == static_cast<size_t>(found.bytes)) << found.name;
    CHECK(std::equal(array.shape.begin(), array.shape.end(), found.shape)) << found.name;
    CHECK(static_cast<size_t>(found.dimensions) == array.shape.size()) << found.name;
    CHECK(same_bytes(found.data, array.bytes)) << found.name;
    CHECK(is_aligned(found.data, found.bytes % 16 == 0 ? 16 : 2)) << found.name;
    left.erase(found.name);
  }
  for (int64_t i = 0; i < rlcc_model_compensation_count(model); ++i) {
    rlcc_compensation found{};
    CHECK_STATUS(rlcc_model_compensation_at(model, i, &found), RLCC_OK);
    CHECK(found.layers == 2);
    const std::string heads = std::string("compensation.") + found.name, ffn = "ffn_" + heads;
    CHECK((found.heads != nullptr) == (left.count(heads) == 1) &&
          (found.ffn != nullptr) == (left.count(ffn) == 1));
    CHECK(same_bytes(found.heads, left[heads].bytes) &&
          found.heads_columns == (found.heads != nullptr ? 48 : 0));
    CHECK(same_bytes(found.ffn, left[ffn].bytes) && found.ffn_columns == (found.ffn != nullptr ? 40 : 0));
    left.erase(heads);
    left.erase(ffn);
  }
  for (const auto& [name, array] : left) CHECK(false) << name << " was not handed out";
}

std::vector<ModelOptions> all_options() {
  std::vector<ModelOptions> all;
  for (const rlcc_dtype values : kValues) {
    ModelOptions options;
    options.values = values;
    all.push_back(options);
    options.joined = false;
    options.heads = true;
    options.biases = values == RLCC_I8;
    options.head = values != RLCC_F32;
    all.push_back(options);
    options.ffn = true;
    options.tied = true;
    all.push_back(options);
    options.heads = options.ffn = false;
    options.joined = options.dense_matrix = true;
    all.push_back(options);
  }
  return all;
}

void every_byte_is_handed_out() {
  for (const ModelOptions& options : all_options()) {
    ModelFiles files = tiny_llama(options);
    for (const size_t shift :
         {0, 1, 2, 40, 56}) {  // where the tensors are not aligned in the file they are copied
      const Directory directory;
      files.shift = shift;
      files.write(directory.path());
      const Model model(directory.path());
      if (model == nullptr) continue;
      compare(model, files);
      CHECK(rlcc_model_default_compensation(model) == (options.heads || options.ffn ? 0 : -1));
    }
  }
}

void the_configuration_is_read() {
  ModelOptions options;
  options.tied = true;
  ModelFiles files = tiny_llama(options);
  const Directory directory;
  files.write(directory.path());
  const Model model(directory.path());
  rlcc_model_config config{};
  CHECK_STATUS(rlcc_model_get_config(model, &config), RLCC_OK);
  CHECK(std::string("llama") == config.model_type && std::string("LlamaForCausalLM") == config.architecture);
  CHECK(config.hidden_size == 40 && config.layers == 2 && config.heads == 4 && config.kv_heads == 2);
  CHECK(config.head_dim == 12 && config.intermediate_size == 136 && config.vocabulary == 32);
  CHECK(config.max_positions == 64 && config.norm_eps == 1e-5 && config.rope_theta == 5000.0);
  CHECK(std::string("default") == config.rope_type && std::string("silu") == config.activation);
  CHECK(config.attention_bias == 1 && config.mlp_bias == 1 && config.tied_head == 1 && config.bos_token == 1);
  CHECK(config.eos_token_count == 2 && config.eos_tokens[0] == 2 && config.eos_tokens[1] == 3);
  CHECK(std::string("bf16") == config.values && files.config == config.json);
  CHECK(config.json_bytes == static_cast<int64_t>(files.config.size()));

  // What a configuration may leave out, and where it stood before.
  files.generation.clear();
  files.config =
      R"({"model_type": "llama", "hidden_size": 40, "intermediate_size": 136, "vocab_size": 32, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
          "rope_theta": 3e3, "rope_scaling": {"type": "linear", "factor": 2}, "attention_bias": true, "mlp_bias": true,
          "tie_word_embeddings": true, "eos_token_id": null, "bos_token_id": null})";
  const Directory other;
  files.write(other.path());
  const Model old(other.path());
  CHECK_STATUS(rlcc_model_get_config(old, &config), RLCC_OK);
  CHECK(config.architecture == nullptr && config.rope_theta == 3000.0 &&
        std::string("linear") == config.rope_type);
  CHECK(config.norm_eps == 1e-6 && config.eos_token_count == 0 && config.bos_token == -1);
}

void a_packed_head_is_not_tied() {
  ModelOptions options;
  options.tied = options.head = true;
  const Directory directory;
  tiny_llama(options).write(directory.path());
  const Model model(directory.path());
  rlcc_model_config config{};
  CHECK_STATUS(rlcc_model_get_config(model, &config), RLCC_OK);
  CHECK(config.tied_head == 0 && rlcc_model_has(model, "lm_head") == 2);
  rlcc_weight head{};
  CHECK_STATUS(rlcc_model_weight(model, "lm_head", &head), RLCC_OK);
  CHECK(head.weight.dtype == RLCC_I8 && head.first_row == 0 && head.rows == 32);
}

void joined_rows_follow_each_other() {
  const Directory directory;
  tiny_llama({}).write(directory.path());
  const Model model(directory.path());
  const std::pair<const char*, int64_t> places[] = {{"q_proj", 0}, {"k_proj", 48}, {"v_proj", 72}};
  for (const auto& [name, first_row] : places) {
    rlcc_weight weight{};
    CHECK_STATUS(rlcc_model_weight(model, (std::string("model.layers.1.self_attn.") + name).c_str(), &weight),
                 RLCC_OK);
    CHECK(std::string("model.layers.1.self_attn.q_proj+k_proj+v_proj") == weight.joined);
    CHECK(weight.weight.rows == 96 && weight.first_row == first_row &&
          weight.rows == (first_row == 0 ? 48 : 24));
  }
}

// A family that is not known here: its tensors are handed out as they are, whatever their type.
void other_families_are_read() {
  ModelFiles files = tiny_llama({});
  files.config = replaced(files.config, "\"llama\"", "\"of_tomorrow\"");
  files.arrays.push_back({"model.steps", "I64", {3}, std::string(24, '\1')});
  files.arrays.push_back({"model.scalar", "F64", {}, std::string(8, '\2')});
  files.arrays.push_back({"model.nothing", "BOOL", {4, 0}, ""});
  const Directory directory;
  files.write(directory.path());
  const Model model(directory.path());
  compare(model, files);
  rlcc_tensor steps{};
  CHECK_STATUS(rlcc_model_tensor(model, "model.steps", &steps), RLCC_OK);
  CHECK(steps.dtype == -1 && std::string("I64") == steps.type && steps.shape[0] == 3);
}

void what_is_not_there_is_refused() {
  const Directory directory;
  tiny_llama({}).write(directory.path());
  const Model model(directory.path());
  rlcc_tensor tensor{};
  rlcc_weight weight{};
  rlcc_compensation compensation{};
  tensor.bytes = weight.rows = compensation.layers = 77;
  const int64_t tensors = rlcc_model_tensor_count(model), weights = rlcc_model_weight_count(model);
  for (const int64_t index : {int64_t{-1}, tensors, INT64_MAX, INT64_MIN}) {
    CHECK_STATUS(rlcc_model_tensor_at(model, index, &tensor), RLCC_INVALID_ARGUMENT);
  }
  CHECK_STATUS(rlcc_model_weight_at(model, weights, &weight), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_compensation_at(model, 0, &compensation), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_tensor(model, "lm_head", &tensor), RLCC_INVALID_ARGUMENT);
  CHECK(std::string(rlcc_last_error()) == "the model has no tensor lm_head") << rlcc_last_error();
  CHECK_STATUS(rlcc_model_weight(model, "", &weight), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_tensor(model, nullptr, &tensor), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_weight(model, "lm_head", nullptr), RLCC_INVALID_ARGUMENT);
  CHECK(tensor.bytes == 77 && weight.rows == 77 && compensation.layers == 77);
  CHECK(rlcc_model_has(model, "lm_head") == 0 && rlcc_model_has(model, nullptr) == 0);
  CHECK(rlcc_model_default_compensation(model) == -1);

  rlcc_model* none = nullptr;
  rlcc_model_config config{};
  CHECK_STATUS(rlcc_model_open(nullptr, &none), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_open(directory.path().c_str(), nullptr), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_get_config(nullptr, &config), RLCC_INVALID_ARGUMENT);
  CHECK_STATUS(rlcc_model_tensor_at(nullptr, 0, &tensor), RLCC_INVALID_ARGUMENT);
  CHECK(rlcc_model_tensor_count(nullptr) == 0 && rlcc_model_weight_count(nullptr) == 0);
  CHECK(rlcc_model_compensation_count(nullptr) == 0 && rlcc_model_default_compensation(nullptr) == -1);
  CHECK(rlcc_model_has(nullptr, "lm_head") == 0);
  rlcc_model_close(nullptr);
}

void many_threads_share_a_model() {
  ModelOptions options;
  options.values = RLCC_I8;
  options.joined = false;
  options.heads = options.ffn = options.head = true;
  const ModelFiles files = tiny_llama(options);
  const Directory directory;
  files.write(directory.path());
  const Model shared(directory.path());
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      compare(shared, files);
      if (i % 4 == 0) compare(Model(directory.path()), files);  // opened by several at once
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Models of version 1 as they were written then.
void version_1_is_read(const std::string& folder) {
  for (const char* values : {"bf16", "int8"}) {
    const Model model(folder + "/" + values);
    if (model == nullptr) continue;
    rlcc_model_config config{};
    CHECK_STATUS(rlcc_model_get_config(model, &config), RLCC_OK);
    CHECK(std::string(values) == config.values && config.layers == 2 && config.hidden_size == 40);
    CHECK(rlcc_model_weight_count(model) == (std::string(values) == "int8" ? 15 : 14));
    CHECK(rlcc_model_compensation_count(model) == 1);
    for (int64_t i = 0; i < rlcc_model_weight_count(model); ++i) {
      rlcc_weight weight{};
      CHECK_STATUS(rlcc_model_weight_at(model, i, &weight), RLCC_OK);
      run_product(weight.weight);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  every_byte_is_handed_out();
  the_configuration_is_read();
  a_packed_head_is_not_tied();
  joined_rows_follow_each_other();
  other_families_are_read();
  what_is_not_there_is_refused();
  many_threads_share_a_model();
  if (argc > 1) version_1_is_read(argv[1]);
  return report("model");
}
