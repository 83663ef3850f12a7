// Small packed models on disk, made of random numbers, and places to lie in them: a Llama.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "restorelcc/restorelcc.h"

namespace restorelcc::test {

// A tensor of packed.safetensors.
struct StoredArray {
  std::string name, type;  // "BF16"
  std::vector<int64_t> shape;
  std::string bytes;
};

struct ModelSizes {
  int64_t layers = 2, hidden = 40, heads = 4, kv_heads = 2, head_dim = 12, inner = 136, vocabulary = 32;

  int64_t queries() const { return heads * head_dim; }
  int64_t keys() const { return kv_heads * head_dim; }
};
// So small that a file of it is a few kilobytes, most of them names.
constexpr ModelSizes kSmallestModel{1, 2, 1, 1, 2, 3, 4};

struct ModelOptions {
  rlcc_dtype values = RLCC_BF16;
  bool joined = true;         // q, k and v; gate and up
  bool biases = true;         // of all projections
  bool head = false;          // an int8 LM head
  bool tied = false;          // else, without a packed one, the LM head is a tensor
  bool dense_matrix = false;  // mlp.down_proj of the last layer stays dense
  bool heads = false;         // two compensations, "law" (the default) and "tax", of attention
  bool ffn = false;           // the same of the FFNs
  ModelSizes sizes;
};

// The files of one model; change what you like, then write them.
struct ModelFiles {
  std::string record, config, generation;  // JSON; an empty `generation` is not written
  std::vector<StoredArray> arrays;
  size_t shift = 0;    // bytes by which the tensors miss a multiple of 64
  std::string packed;  // packed.safetensors itself; empty: made of the arrays

  StoredArray& array(const std::string& name);
  void drop(const std::string& name);
  void write(const std::string& directory) const;
};

ModelFiles tiny_llama(const ModelOptions& options);

// The bytes of a safetensors file whose tensors stand in the order that keeps them aligned.
std::string serialised(const std::vector<StoredArray>& arrays, size_t shift = 0);
// The same file with another table in front.
std::string with_table(const std::string& file, const std::string& table);
std::string table_of(const std::string& file);

// `text` with the first `from` replaced; complains where there is none.
std::string replaced(const std::string& text, const std::string& from, const std::string& to);

void write_file(const std::string& path, const std::string& bytes);

// An empty directory that goes away with the object.
class Directory {
 public:
  Directory();
  ~Directory();
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace restorelcc::test
