// A packed model of the Llama family, decoded: token ids in, logits out.
//
//   h   = embedding[token]                                             per layer:
//   h  += W_o attention(rope(W_q x), rope(W_k x), W_v x) + P + b       x = rms_norm(h)
//   h  += W_down (silu(W_gate x) · W_up x) + P' + b                    x = rms_norm(h)
//   logits = W_head rms_norm(h)
//
// All products are librestorelcc's. Between them everything is computed in fp32 and stored in the activations'
// type: fp32, or bf16 where the survivors are bf16, because the kernels multiply bf16 by bf16 fastest. The last
// norm and the logits are fp32 always. Weights are used where the file is mapped; all buffers are allocated by
// the constructor. Not thread-safe; products and attention run on the library's threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "buffer.h"
#include "huge_pages.h"
#include "kv_cache.h"
#include "loops.h"
#include "packed_model.h"
#include "projection.h"
#include "rope.h"

namespace decode {

struct Settings {
  std::string compensation;     // "": the model's default; "none"
  rlcc_dtype activations = -1;  // RLCC_F32, RLCC_BF16; -1: bf16 for bf16 values, else fp32
  rlcc_dtype cache = -1;        // RLCC_F32, RLCC_BF16; -1: as the activations
  int64_t positions = 0;        // tokens that fit, prompt and new ones
  int64_t batch = 128;          // tokens in one call of forward(), at most
  bool huge_pages = false;      // weights are copied into pages of 2 MiB
};

class Llama {
 public:
  // The model must stay open, but with huge_pages. Throws Refusal for another family, and for what this program
  // does not do.
  Llama(const PackedModel& model, const Settings& settings);

  // The next `count` tokens, 1 to batch; ids in [0, vocabulary). Throws Refusal for other ids and past the
  // positions.
  void forward(const int64_t* ids, int64_t count);
  // Logits [count, vocabulary] of tokens [first, first + count) of the last forward(). At most kMostLogitRows.
  const float* logits(int64_t first, int64_t count);
  static constexpr int64_t kMostLogitRows = 16;  // whose head is read once

  int64_t batch() const { return batch_; }
  int64_t vocabulary() const { return config_.vocabulary; }
  int64_t position() const { return position_; }
  int64_t cache_bytes() const { return cache_.bytes(); }
  int64_t buffer_bytes() const;  // beside the cache
  rlcc_dtype activations() const { return dtype_; }
  rlcc_dtype cache_type() const { return cache_.dtype(); }
  const Loops& loops() const { return loops_; }

 private:
  struct Layer {
    std::vector<float> attention_norm, ffn_norm;  // [E]
    Projection qkv, output, gate_up, down;
  };
  Layer load_layer(const PackedModel& model, int64_t index) const;
  void move_weights(int64_t file_bytes);
  void choose_compensation(const PackedModel& model, const std::string& name);
  void check_ids(const int64_t* ids, int64_t count) const;
  void embed(const int64_t* ids, int64_t count);
  void normalise(const std::vector<float>& weight, int64_t count);
  void attention(int64_t layer, int64_t count);
  void gate(int64_t count);
  char* row(Buffer& buffer, int64_t row, int64_t columns) {
    return buffer.bytes() + row * columns * element_bytes(dtype_);
  }

  const rlcc_model_config config_;  // its strings are looked at by the constructor alone
  const rlcc_dtype dtype_;          // of activations
  const int64_t positions_, batch_;
  Rope rope_;
  KvCache cache_;
  const Loops& loops_;
  std::optional<HugePages> pages_;
  rlcc_tensor embedding_;
  std::vector<Layer> layers_;
  std::vector<float> last_norm_;
  Projection head_;
  int64_t position_ = 0;

  Buffer hidden_, normed_;  // [batch, E]
  Buffer qkv_, mixed_;      // [batch, (H + 2 KV) D], [batch, H D]
  Buffer query_;            // [batch, H, D] fp32
  Buffer gate_up_, gated_;  // [batch, 2 I], [batch, I]
  Buffer last_, logits_;    // [kMostLogitRows, E], [kMostLogitRows, V] fp32
};

}  // namespace decode
