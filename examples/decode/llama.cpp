#include "llama.h"

#include <cmath>
#include <cstring>

#include "refusal.h"
#include "tasks.h"

namespace decode {
namespace {

const rlcc_model_config& checked(const rlcc_model_config& c) {
  const std::string type = c.model_type == nullptr ? "" : c.model_type;
  const std::string architecture = c.architecture == nullptr ? "" : c.architecture;
  if (type != "llama" || architecture != "LlamaForCausalLM") {
    refuse("the model is of the type \"", type, "\" (", architecture,
           "); this program decodes Llama alone, use "
           "`restorelcc generate`");
  }
  const std::string activation = c.activation == nullptr ? "" : c.activation;
  if (activation != "silu") refuse("the model's activation is \"", activation, "\"; this program knows silu");
  if (c.hidden_size < 1 || c.layers < 1 || c.intermediate_size < 1 || c.vocabulary < 1) {
    refuse("config.json has a size below 1: hidden ", c.hidden_size, ", layers ", c.layers, ", intermediate ",
           c.intermediate_size, ", vocabulary ", c.vocabulary);
  }
  if (c.kv_heads < 1 || c.heads < 1 || c.heads % c.kv_heads != 0) {
    refuse("the model has ", c.heads, " heads and ", c.kv_heads,
           " key-value heads, which is no whole multiple");
  }
  if (c.head_dim < 2 || c.head_dim % 2 != 0 || c.head_dim > kMostHeadDim) {
    refuse("the head size is ", c.head_dim, ", must be even and between 2 and ", kMostHeadDim);
  }
  return c;
}

rlcc_dtype activations_of(const rlcc_model_config& config, rlcc_dtype asked) {
  if (asked != -1) return asked;
  return config.values != nullptr && std::strcmp(config.values, "bf16") == 0 ? RLCC_BF16 : RLCC_F32;
}

int64_t checked_positions(const rlcc_model_config& config, int64_t positions) {
  if (positions < 1) refuse("no room for a token: positions is ", positions);
  if (config.max_positions > 0 && positions > config.max_positions) {
    refuse(positions, " tokens are more than the ", config.max_positions, " positions of the model");
  }
  return positions;
}

// The LM head's weight is the packed "lm_head", the tensor "lm_head.weight", or the embedding.
Projection head_of(const PackedModel& model) {
  const rlcc_model_config& c = model.config();
  const bool own = model.has_weight("lm_head") || model.has_tensor("lm_head.weight");
  if (!own && c.tied_head == 0) refuse("the model has no LM head: neither a packed lm_head nor lm_head.weight");
  return Projection(model, {{own ? "lm_head" : "model.embed_tokens", c.vocabulary}}, c.hidden_size, false);
}

HeadShape shape_of(const rlcc_model_config& config) {
  return {config.head_dim, (config.head_dim + 15) / 16 * 16};
}

}  // namespace

Llama::Llama(const PackedModel& model, const Settings& settings)
    : config_(checked(model.config())),
      dtype_(activations_of(config_, settings.activations)),
      positions_(checked_positions(config_, settings.positions)),
      batch_(settings.batch < positions_ ? settings.batch : positions_),
      rope_(config_, positions_),
      cache_(config_.layers, config_.kv_heads, shape_of(config_), positions_,
             settings.cache == -1 ? dtype_ : settings.cache),
      loops_(loops_for(dtype_, cache_.dtype())),
      embedding_(model.tensor("model.embed_tokens.weight", {config_.vocabulary, config_.hidden_size})),
      last_norm_(model.vector("model.norm.weight", config_.hidden_size)),
      head_(head_of(model)) {
  if (batch_ < 1) refuse("the batch is ", batch_, ", must be at least 1");
  const rlcc_model_config& c = config_;
  for (int64_t i = 0; i < c.layers; ++i) layers_.push_back(load_layer(model, i));
  choose_compensation(model, settings.compensation);
  if (settings.huge_pages) move_weights(model.file_bytes());
  hidden_ = Buffer(batch_ * c.hidden_size, dtype_);
  normed_ = Buffer(batch_ * c.hidden_size, dtype_);
  qkv_ = Buffer(batch_ * (c.heads + 2 * c.kv_heads) * c.head_dim, dtype_);
  query_ = Buffer(batch_ * c.heads * c.head_dim, RLCC_F32);
  mixed_ = Buffer(batch_ * c.heads * c.head_dim, dtype_);
  gate_up_ = Buffer(batch_ * 2 * c.intermediate_size, dtype_);
  gated_ = Buffer(batch_ * c.intermediate_size, dtype_);
  const int64_t logit_rows = batch_ < kMostLogitRows ? batch_ : kMostLogitRows;
  last_ = Buffer(logit_rows * c.hidden_size, RLCC_F32);
  logits_ = Buffer(logit_rows * c.vocabulary, RLCC_F32);
}

Llama::Layer Llama::load_layer(const PackedModel& model, int64_t index) const {
  const rlcc_model_config& c = config_;
  const std::string layer = "model.layers." + std::to_string(index) + ".";
  const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
  const bool biased = c.attention_bias != 0, ffn_biased = c.mlp_bias != 0;
  const int64_t width = c.heads * c.head_dim, kv_width = c.kv_heads * c.head_dim;
  return {
      model.vector(layer + "input_layernorm.weight", c.hidden_size),
      model.vector(layer + "post_attention_layernorm.weight", c.hidden_size),
      Projection(
          model,
          {{attention + "q_proj", width}, {attention + "k_proj", kv_width}, {attention + "v_proj", kv_width}},
          c.hidden_size, biased),
      Projection(model, {{attention + "o_proj", c.hidden_size}}, width, biased),
      Projection(model, {{mlp + "gate_proj", c.intermediate_size}, {mlp + "up_proj", c.intermediate_size}},
                 c.hidden_size, ffn_biased),
      Projection(model, {{mlp + "down_proj", c.hidden_size}}, c.intermediate_size, ffn_biased)};
}

void Llama::choose_compensation(const PackedModel& model, const std::string& name) {
  const rlcc_compensation chosen = model.compensation(name);
  if (chosen.name == nullptr) return;
  const int64_t width = config_.heads * config_.head_dim;
  const bool fits = chosen.layers == config_.layers &&
                    (chosen.heads == nullptr || chosen.heads_columns == width) &&
                    (chosen.ffn == nullptr || chosen.ffn_columns == config_.hidden_size);
  if (!fits)
    refuse("the compensation \"", chosen.name, "\" is of a model of other sizes; pack the model again");
  for (int64_t i = 0; i < config_.layers; ++i) {
    Layer& layer = layers_[static_cast<size_t>(i)];
    if (chosen.heads != nullptr) layer.output.compensate_inputs(chosen.heads + i * width);
    if (chosen.ffn != nullptr) layer.down.compensate_outputs(chosen.ffn + i * config_.hidden_size);
  }
}

// Copies of what is used of the file, and offsets of the parts of joined matrices: never twice the file.
void Llama::move_weights(int64_t file_bytes) {
  pages_.emplace(2 * file_bytes);
  for (Layer& layer : layers_) {
    for (Projection* one : {&layer.qkv, &layer.output, &layer.gate_up, &layer.down}) one->move_to(&*pages_);
  }
  head_.move_to(&*pages_);
  const int64_t bytes = config_.vocabulary * config_.hidden_size * element_bytes(embedding_.dtype);
  embedding_.data = pages_->copy(embedding_.data, bytes);  // of a tied head: copied already
}

int64_t Llama::buffer_bytes() const {
  int64_t bytes = 0;
  for (const Buffer* buffer :
       {&hidden_, &normed_, &qkv_, &query_, &mixed_, &gate_up_, &gated_, &last_, &logits_}) {
    bytes += buffer->size();
  }
  return bytes;
}

void Llama::check_ids(const int64_t* ids, int64_t count) const {
  if (count < 1 || count > batch_) refuse(count, " tokens at once, must be between 1 and ", batch_);
  if (position_ + count > positions_) {
    refuse("token ", position_ + count, " is one too many: there is room for ", positions_);
  }
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= config_.vocabulary) {
      refuse("token id ", ids[i], " is not in the vocabulary, [0, ", config_.vocabulary, ")");
    }
  }
}

void Llama::forward(const int64_t* ids, int64_t count) {
  check_ids(ids, count);
  const int64_t width = config_.hidden_size, heads_width = config_.heads * config_.head_dim;
  const Rows hidden{hidden_.bytes(), width, dtype_}, normed{normed_.bytes(), width, dtype_};
  embed(ids, count);
  for (int64_t i = 0; i < config_.layers; ++i) {
    const Layer& layer = layers_[static_cast<size_t>(i)];
    normalise(layer.attention_norm, count);
    layer.qkv.run(normed, count, {qkv_.bytes(), layer.qkv.outputs(), dtype_}, nullptr);
    attention(i, count);
    layer.output.run({mixed_.bytes(), heads_width, dtype_}, count, hidden, hidden.data);
    normalise(layer.ffn_norm, count);
    layer.gate_up.run(normed, count, {gate_up_.bytes(), layer.gate_up.outputs(), dtype_}, nullptr);
    gate(count);
    layer.down.run({gated_.bytes(), config_.intermediate_size, dtype_}, count, hidden, hidden.data);
  }
  position_ += count;
}

const float* Llama::logits(int64_t first, int64_t count) {
  const int64_t width = config_.hidden_size;
  if (first < 0 || count < 1 || first + count > batch_ || count > kMostLogitRows) {
    refuse("logits of tokens ", first, " to ", first + count, " of a batch of ", batch_, ", ", kMostLogitRows,
           " at once");
  }
  for (int64_t m = 0; m < count; ++m) {
    loops_.rms_norm_to_float(row(hidden_, first + m, width), last_norm_.data(),
                             static_cast<float>(config_.norm_eps), width, last_.floats() + m * width);
  }
  head_.run({last_.bytes(), width, RLCC_F32}, count, {logits_.bytes(), config_.vocabulary, RLCC_F32}, nullptr);
  return logits_.floats();
}

void Llama::embed(const int64_t* ids, int64_t count) {
  const int64_t width = config_.hidden_size, bytes = width * element_bytes(embedding_.dtype);
  for (int64_t m = 0; m < count; ++m) {
    const char* from = static_cast<const char*>(embedding_.data) + ids[m] * bytes;
    char* to = row(hidden_, m, width);
    if (embedding_.dtype == dtype_) {
      std::memcpy(to, from, static_cast<size_t>(bytes));
      continue;
    }
    widen_row(from, embedding_.dtype, width, last_.floats());
    narrow_row(last_.floats(), width, dtype_, to);
  }
}

// normed = rms_norm(hidden)
void Llama::normalise(const std::vector<float>& weight, int64_t count) {
  const int64_t width = config_.hidden_size;
  over(count, width, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      loops_.rms_norm(row(hidden_, m, width), weight.data(), static_cast<float>(config_.norm_eps), width,
                      row(normed_, m, width));
    }
  });
}

// mixed = attention(qkv); the new keys and values go to the cache first.
void Llama::attention(int64_t layer, int64_t count) {
  const rlcc_model_config& c = config_;
  const HeadShape shape = cache_.shape();
  const int64_t dim = c.head_dim, columns = (c.heads + 2 * c.kv_heads) * dim, group = c.heads / c.kv_heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const auto head_at = [&](int64_t m, int64_t index) {
    return row(qkv_, m, columns) + index * dim * element_bytes(dtype_);
  };
  over(count, columns, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const int64_t position = position_ + m;
      const float *const cosines = rope_.cosines(position), *const sines = rope_.sines(position);
      for (int64_t h = 0; h < c.heads; ++h) {
        loops_.rotate_query(head_at(m, h), cosines, sines, dim, scale,
                            query_.floats() + (m * c.heads + h) * dim);
      }
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        loops_.store_key_value(head_at(m, c.heads + h), head_at(m, c.heads + c.kv_heads + h), cosines, sines,
                               shape, position, cache_.head(layer, h));
      }
    }
  });
  over(count * c.heads, 2 * dim * (position_ + count), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t m = item / c.heads, h = item % c.heads;
      loops_.attend(query_.floats() + item * dim, cache_.head(layer, h / group), shape, position_ + m + 1,
                    row(mixed_, item, dim));
    }
  });
}

// gated = silu(gate) · up
void Llama::gate(int64_t count) {
  const int64_t width = config_.intermediate_size, bytes = width * element_bytes(dtype_);
  over(count, 8 * width, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const char* gate = row(gate_up_, m, 2 * width);
      loops_.swiglu(gate, gate + bytes, width, row(gated_, m, width));
    }
  });
}

}  // namespace decode
