// What a Llama has. The tensors of other families are not known here: their caller asks for what it needs by
// name.
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>

#include "model/packed_model.h"

namespace restorelcc::model {
namespace {

class LlamaCheck {
 public:
  LlamaCheck(const Configuration& configuration, const Record& record, TensorFile* file)
      : c_(configuration), record_(record), file_(*file), type_(record.stored_type()) {
    for (const Matrix& matrix : record.packed) packed_.emplace(matrix.name, &matrix);
    for (const auto& members : record.joined) {
      for (const uint32_t member : members) joined_.emplace(record.packed[member].name, true);
    }
  }

  Status run() {
    RLCC_RETURN_IF_FAILED(file_.expect("model.embed_tokens.weight", type_, {c_.vocabulary, c_.hidden_size}));
    for (int64_t layer = 0; layer < c_.layers; ++layer) RLCC_RETURN_IF_FAILED(check_layer(layer));
    RLCC_RETURN_IF_FAILED(file_.expect("model.norm.weight", type_, {c_.hidden_size}));
    RLCC_RETURN_IF_FAILED(check_head());
    if (!packed_.empty()) return other_model(*packed_.begin()->second, "no such matrix");
    return check_compensations();
  }

 private:
  Status other_model(const Matrix& matrix, const std::string& has) const {
    return invalid(file_.path(), " packs ", matrix.name, " as ", matrix.rows, " x ", matrix.columns,
                   ", its config.json has ", has, "; its files are not of one model, pack it again");
  }

  Status check_size(const Matrix& matrix, int64_t rows, int64_t columns) const {
    if (matrix.rows == rows && matrix.columns == columns) return {};
    return other_model(matrix, std::to_string(rows) + " x " + std::to_string(columns));
  }

  Status check_matrix(const std::string& name, int64_t rows, int64_t columns, bool bias) {
    const auto packed = packed_.find(name);
    if (packed == packed_.end()) {
      RLCC_RETURN_IF_FAILED(file_.expect(name + ".weight", type_, {rows, columns}));
    } else {
      RLCC_RETURN_IF_FAILED(check_size(*packed->second, rows, columns));
      packed_.erase(packed);
    }
    if (bias) return file_.expect(name + ".bias", type_, {rows});
    if (file_.find(name + ".bias") == nullptr) return {};
    return invalid(file_.path(), " holds ", name, ".bias, its config.json has none; pack the model again");
  }

  Status check_layer(int64_t layer) {
    const std::string at = "model.layers." + std::to_string(layer) + ".";
    const int64_t hidden = c_.hidden_size, queries = c_.heads * c_.head_dim, keys = c_.kv_heads * c_.head_dim;
    for (const char* projection : {"self_attn.o_proj", "mlp.down_proj"}) {
      RLCC_RETURN_IF_FAILED(
          check_compensated(at + projection, projection == std::string_view("mlp.down_proj")));
    }
    RLCC_RETURN_IF_FAILED(check_matrix(at + "self_attn.q_proj", queries, hidden, c_.attention_bias));
    RLCC_RETURN_IF_FAILED(check_matrix(at + "self_attn.k_proj", keys, hidden, c_.attention_bias));
    RLCC_RETURN_IF_FAILED(check_matrix(at + "self_attn.v_proj", keys, hidden, c_.attention_bias));
    RLCC_RETURN_IF_FAILED(check_matrix(at + "self_attn.o_proj", hidden, queries, c_.attention_bias));
    RLCC_RETURN_IF_FAILED(check_matrix(at + "mlp.gate_proj", c_.intermediate_size, hidden, c_.mlp_bias));
    RLCC_RETURN_IF_FAILED(check_matrix(at + "mlp.up_proj", c_.intermediate_size, hidden, c_.mlp_bias));
    RLCC_RETURN_IF_FAILED(check_matrix(at + "mlp.down_proj", hidden, c_.intermediate_size, c_.mlp_bias));
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"}) {
      RLCC_RETURN_IF_FAILED(file_.expect(at + norm, type_, {hidden}));
    }
    return {};
  }

  Status check_head() {
    if (record_.has_head) {
      if (record_.head.name != "lm_head") return other_model(record_.head, "no such LM head");
      return check_size(record_.head, c_.vocabulary, c_.hidden_size);
    }
    if (c_.tied_embeddings) return {};
    return file_.expect("lm_head.weight", type_, {c_.vocabulary, c_.hidden_size});
  }

  // A projection that compensations are added to is packed, and alone.
  Status check_compensated(const std::string& name, bool of_ffn) const {
    if (record_.compensations.empty()) return {};
    const std::string vectors =
        (of_ffn ? "ffn_compensation." : "compensation.") + record_.compensations.front();
    if (file_.find(vectors) == nullptr) return {};
    const bool joined = joined_.count(name) != 0;
    if (!joined && packed_.count(name) != 0) return {};
    return invalid(file_.path(), " has compensations, but ", name, joined ? " is joined" : " is not packed",
                   "; pack the model again");
  }

  Status check_compensations() const {
    for (const std::string& name : record_.compensations) {
      const std::pair<std::string, int64_t> vectors[] = {{"compensation." + name, c_.heads * c_.head_dim},
                                                         {"ffn_compensation." + name, c_.hidden_size}};
      for (const auto& [tensor, columns] : vectors) {
        if (file_.find(tensor) != nullptr)
          RLCC_RETURN_IF_FAILED(file_.expect(tensor, "F32", {c_.layers, columns}));
      }
    }
    return {};
  }

  const Configuration& c_;
  const Record& record_;
  TensorFile& file_;
  const char* const type_;
  std::map<std::string_view, const Matrix*> packed_;  // that no layer asked for yet
  std::map<std::string_view, bool> joined_;
};

}  // namespace

Status check_llama(const Configuration& configuration, const Record& record, TensorFile* file) {
  return LlamaCheck(configuration, record, file).run();
}

}  // namespace restorelcc::model
