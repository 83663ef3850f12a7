#include "model/packed_model.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/parallel.h"
#include "sparse/layout.h"

namespace restorelcc::model {
namespace {

const char* stored_name(rlcc_dtype dtype) {
  return dtype == RLCC_F32 ? "F32" : dtype == RLCC_F16 ? "F16" : dtype == RLCC_I8 ? "I8" : "BF16";
}

// "layers.0.self_attn.q_proj+k_proj+v_proj"
std::string joint_name(const std::vector<Matrix>& packed, const std::vector<uint32_t>& members) {
  std::string name = packed[members.front()].name;
  for (size_t i = 1; i < members.size(); ++i) {
    const std::string& member = packed[members[i]].name;
    name += "+" + member.substr(member.rfind('.') + 1);  // npos + 1 is 0
  }
  return name;
}

const char* null_if_empty(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

// Indices of `named`, which has a `name`, sorted by it.
template <class Named>
std::vector<uint32_t> order_of(const std::vector<Named>& named) {
  std::vector<uint32_t> order(named.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return std::string_view(named[a].name) < std::string_view(named[b].name);
  });
  return order;
}

template <class Named>
const Named* find_in(const std::vector<Named>& named, const std::vector<uint32_t>& order,
                     std::string_view name) {
  const auto found = std::lower_bound(
      order.begin(), order.end(), name,
      [&](uint32_t index, std::string_view wanted) { return std::string_view(named[index].name) < wanted; });
  return found != order.end() && named[*found].name == name ? &named[*found] : nullptr;
}

}  // namespace

Status PackedModel::open(const std::string& directory) {
  RLCC_RETURN_IF_FAILED(read_record(directory + "/restorelcc.json", &record_));
  RLCC_RETURN_IF_FAILED(read_configuration(directory, &configuration_));
  const size_t matrices = record_.packed.size() + record_.dense.size();
  if (configuration_.layers > static_cast<int64_t>(matrices)) {
    return invalid(directory, " cannot be used: config.json has ", configuration_.layers,
                   " layers, the record ", matrices, " matrices; pack the model again");
  }
  RLCC_RETURN_IF_FAILED(file_.open(directory + "/packed.safetensors"));
  RLCC_RETURN_IF_FAILED(take_weights());
  RLCC_RETURN_IF_FAILED(take_compensations());
  RLCC_RETURN_IF_FAILED(check_dense_matrices());
  if (configuration_.is_llama()) RLCC_RETURN_IF_FAILED(check_llama(configuration_, record_, &file_));
  RLCC_RETURN_IF_FAILED(list_tensors());
  RLCC_RETURN_IF_FAILED(trust_weights());
  sort_names();
  return {};
}

Status PackedModel::take_weights() {
  const std::vector<Matrix>& packed = record_.packed;
  struct Place {
    size_t whole = 0;
    int64_t first_row = 0;
    bool joined = false;
  };
  std::vector<Place> places(packed.size());
  const rlcc_dtype dtype = record_.value_dtype();
  for (const std::vector<uint32_t>& members : record_.joined) {
    int64_t rows = 0;
    for (const uint32_t member : members) {
      places[member] = {wholes_.size(), rows, true};
      if (__builtin_add_overflow(rows, packed[member].rows, &rows)) {
        return invalid(file_.path(), " cannot hold ", one_line(joint_name(packed, members), 240),
                       ": it has too many rows");
      }
    }
    RLCC_RETURN_IF_FAILED(
        take_weight(joint_name(packed, members), rows, packed[members.front()].columns, dtype));
  }
  for (size_t i = 0; i < packed.size(); ++i) {
    if (places[i].joined) continue;
    places[i].whole = wholes_.size();
    RLCC_RETURN_IF_FAILED(take_weight(packed[i].name, packed[i].rows, packed[i].columns, dtype));
  }
  if (record_.has_head) {
    RLCC_RETURN_IF_FAILED(take_weight(record_.head.name, record_.head.rows, record_.head.columns, RLCC_I8));
  }
  // wholes_ is complete, so that its names stay where they are.
  const auto add = [&](const Matrix& matrix, const Whole& whole, int64_t first_row) {
    weights_.push_back({matrix.name.c_str(), whole.name.c_str(), whole.weight, first_row, matrix.rows});
    weights_.back().weight.trusted = 1;  // nothing is handed out before trust_weights()
  };
  for (size_t i = 0; i < packed.size(); ++i) add(packed[i], wholes_[places[i].whole], places[i].first_row);
  if (record_.has_head) add(record_.head, wholes_.back(), 0);
  return {};
}

Status PackedModel::take_weight(std::string name, int64_t rows, int64_t columns, rlcc_dtype dtype) {
  const StoredTensor *shape = nullptr, *mask = nullptr, *values = nullptr, *row_offsets = nullptr,
                     *scales = nullptr;
  RLCC_RETURN_IF_FAILED(file_.take(name + ".shape", "I64", {2}, &shape));
  int64_t sizes[2];
  std::memcpy(sizes, shape->data, sizeof(sizes));
  if (sizes[0] != rows || sizes[1] != columns) {
    return invalid(file_.path(), " holds ", one_line(name, 240), " as [", sizes[0], ", ", sizes[1],
                   "], the record says [", rows, ", ", columns,
                   "]; its files are not of one model, pack it again");
  }
  if (rows == INT64_MAX)
    return invalid(file_.path(), " cannot hold ", one_line(name, 240), ": it has too many rows");
  RLCC_RETURN_IF_FAILED(file_.take(name + ".mask", "I64", {rows, words_of(columns)}, &mask));
  RLCC_RETURN_IF_FAILED(file_.take(name + ".values", stored_name(dtype), {TensorFile::kAny}, &values));
  RLCC_RETURN_IF_FAILED(file_.take(name + ".row_offsets", "I64", {rows + 1}, &row_offsets));
  if (dtype == RLCC_I8) {
    RLCC_RETURN_IF_FAILED(file_.take(name + ".scales", "BF16", {rows, scale_groups_of(columns)}, &scales));
  }
  rlcc_packed_weight weight{};
  weight.rows = rows;
  weight.columns = columns;
  weight.mask = static_cast<const uint64_t*>(aligned(*mask, 8));
  weight.values = aligned(*values, RLCC_VALUE_ALIGNMENT_BYTES);
  weight.value_count = values->shape[0];
  weight.row_offsets = static_cast<const int64_t*>(aligned(*row_offsets, 8));
  weight.dtype = dtype;
  weight.scales = scales != nullptr ? static_cast<const uint16_t*>(aligned(*scales, 2)) : nullptr;
  wholes_.push_back({std::move(name), weight});
  return {};
}

// Reads masks and row offsets, no values. In parallel, for the sake of a disk more than of the arithmetic.
Status PackedModel::trust_weights() {
  const auto count = static_cast<int64_t>(wholes_.size());
  std::atomic<int64_t> first_wrong{count};
  parallel_for(nullptr, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (validate(wholes_[static_cast<size_t>(i)].weight).ok()) continue;
      int64_t known = first_wrong.load();
      while (i < known && !first_wrong.compare_exchange_weak(known, i)) {
      }
    }
  });
  if (first_wrong == count) return {};
  const Whole& whole = wholes_[static_cast<size_t>(first_wrong.load())];
  return invalid(file_.path(), ": ", one_line(whole.name, 240), " is damaged: ", validate(whole.weight).message,
                 "; copy or pack the model again");
}

Status PackedModel::take_compensations() {
  for (const std::string& name : record_.compensations) {
    compensations_.push_back({name.c_str(), nullptr, 0, nullptr, 0, configuration_.layers});
  }
  bool any_ffn = false, any_heads = false;
  for (const std::string& name : record_.compensations) {
    any_heads = any_heads || file_.find("compensation." + name) != nullptr;
    any_ffn = any_ffn || file_.find("ffn_compensation." + name) != nullptr;
  }
  // Where the file has neither, what it lacks are those of attention.
  if (any_heads || !any_ffn) {
    RLCC_RETURN_IF_FAILED(
        take_vectors("compensation.", &rlcc_compensation::heads, &rlcc_compensation::heads_columns));
  }
  if (any_ffn) {
    RLCC_RETURN_IF_FAILED(
        take_vectors("ffn_compensation.", &rlcc_compensation::ffn, &rlcc_compensation::ffn_columns));
  }
  return {};
}

Status PackedModel::take_vectors(const char* prefix, const float* rlcc_compensation::* vectors,
                                 int64_t rlcc_compensation::* columns) {
  for (rlcc_compensation& compensation : compensations_) {
    const std::string name = std::string(prefix) + compensation.name;
    const StoredTensor* stored = nullptr;
    const int64_t layers = compensation.layers > 0 ? compensation.layers : TensorFile::kAny;
    RLCC_RETURN_IF_FAILED(file_.take(name, "F32", {layers, TensorFile::kAny}, &stored));
    compensation.layers = stored->shape[0];
    const float* const first = static_cast<const float*>(aligned(*stored, 4));
    const bool finite =
        std::all_of(first, first + stored->bytes / 4, [](float value) { return std::isfinite(value); });
    if (!finite) return invalid(file_.path(), ": ", name, " has NaN or infinite entries; make it again");
    compensation.*vectors = first;
    compensation.*columns = stored->shape[1];
  }
  return {};
}

Status PackedModel::check_dense_matrices() {
  for (const Matrix& matrix : record_.dense) {
    RLCC_RETURN_IF_FAILED(
        file_.expect(matrix.name + ".weight", record_.stored_type(), {matrix.rows, matrix.columns}));
  }
  for (const rlcc_weight& weight : weights_) {
    const std::string name = weight.name;
    if (file_.find(name + ".weight") != nullptr) {
      return invalid(file_.path(), " holds ", name, " packed and dense; pack the model again");
    }
    if (file_.find(name + ".bias") != nullptr) {
      RLCC_RETURN_IF_FAILED(file_.expect(name + ".bias", record_.stored_type(), {weight.rows}));
    }
  }
  return {};
}

Status PackedModel::list_tensors() {
  for (const StoredTensor& stored : file_.tensors()) {
    if (stored.taken) continue;
    // No stock name has a plus, and no module of a stock class these names.
    const bool ours = stored.name.find('+') != std::string::npos ||
                      stored.name.rfind("compensation.", 0) == 0 ||
                      stored.name.rfind("ffn_compensation.", 0) == 0;
    if (ours || (configuration_.is_llama() && !stored.known)) {
      return invalid(file_.path(), " holds tensors that the model has no place for, such as ",
                     one_line(stored.name, 240), "; its files are not of one model, pack it again");
    }
    rlcc_tensor tensor{};
    tensor.name = stored.name.c_str();
    tensor.data = aligned(stored, stored.bytes % 16 == 0 ? 16 : stored.type->bytes);
    tensor.dtype = stored.type->dtype;
    tensor.dimensions = stored.dimensions;
    std::copy(std::begin(stored.shape), std::end(stored.shape), tensor.shape);
    tensor.type = stored.type->name;
    tensor.bytes = stored.bytes;
    tensors_.push_back(tensor);
  }
  return {};
}

void PackedModel::sort_names() {
  weight_order_ = order_of(weights_);
  tensor_order_ = order_of(tensors_);
}

const void* PackedModel::aligned(const StoredTensor& tensor, int64_t alignment) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(alignment) == 0) return tensor.data;
  copies_.emplace_back(tensor.bytes);
  std::memcpy(copies_.back().get(), tensor.data, static_cast<size_t>(tensor.bytes));
  return copies_.back().get();
}

rlcc_model_config PackedModel::config() const {
  const Configuration& c = configuration_;
  rlcc_model_config config{};
  config.model_type = null_if_empty(c.model_type);
  config.architecture = null_if_empty(c.architecture);
  config.hidden_size = c.hidden_size;
  config.layers = c.layers;
  config.heads = c.heads;
  config.kv_heads = c.kv_heads;
  config.head_dim = c.head_dim;
  config.intermediate_size = c.intermediate_size;
  config.vocabulary = c.vocabulary;
  config.max_positions = c.max_positions;
  config.norm_eps = c.norm_eps;
  config.rope_theta = c.rope_theta;
  config.rope_type = null_if_empty(c.rope_type);
  config.activation = null_if_empty(c.activation);
  config.attention_bias = c.attention_bias ? 1 : 0;
  config.mlp_bias = c.mlp_bias ? 1 : 0;
  config.tied_head = c.tied_embeddings && !record_.has_head ? 1 : 0;
  config.bos_token = c.bos_token;
  config.eos_tokens = c.eos_tokens.data();
  config.eos_token_count = static_cast<int64_t>(c.eos_tokens.size());
  config.values = record_.values.c_str();
  config.json = c.json.c_str();
  config.json_bytes = static_cast<int64_t>(c.json.size());
  return config;
}

const rlcc_tensor* PackedModel::find_tensor(std::string_view name) const {
  return find_in(tensors_, tensor_order_, name);
}

const rlcc_weight* PackedModel::find_weight(std::string_view name) const {
  return find_in(weights_, weight_order_, name);
}

}  // namespace restorelcc::model
