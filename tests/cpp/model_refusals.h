// Lies about a good model, and the sentence that each is to be refused with.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "model_files.h"
#include "restorelcc/model.h"

namespace restorelcc::test {

using Change = std::function<void(ModelFiles&)>;
struct Case {
  const char* file;   // that the sentence names
  const char* words;  // that it says
  Change change;
};

constexpr char kRecord[] = "restorelcc.json", kConfig[] = "config.json", kPacked[] = "packed.safetensors";
constexpr char kMatrix[] = "model.layers.0.self_attn.o_proj";
constexpr char kJoined[] = "model.layers.0.self_attn.q_proj+k_proj+v_proj";

inline void check_refused(const std::string& directory, const char* file, const char* words,
                          const std::string& context) {
  rlcc_model* model = reinterpret_cast<rlcc_model*>(1);
  const rlcc_status status = rlcc_model_open(directory.c_str(), &model);
  const std::string said = rlcc_last_error();
  CHECK(status == RLCC_INVALID_ARGUMENT) << context << ": status " << status << " " << said;
  CHECK(model == nullptr) << context;
  CHECK(said.find(directory + (*file == '\0' ? "" : "/") + file) == 0) << context << " is not named: " << said;
  CHECK(said.find(words) != std::string::npos) << context << ", expected '" << words << "': " << said;
  CHECK(said.size() < directory.size() + 800) << context << ": " << said.size() << " characters";
  for (const char c : said) CHECK(c >= ' ' && c <= '~') << context << ": " << said;
  if (status == RLCC_OK) rlcc_model_close(model);
}

inline ModelOptions with_all() {
  ModelOptions options;
  options.heads = options.ffn = true;
  return options;
}

inline void run_cases(const char* of, const ModelOptions& options, const std::vector<Case>& cases) {
  const ModelFiles good = tiny_llama(options);
  int number = 0;
  for (const Case& one : cases) {
    ModelFiles files = good;
    one.change(files);
    const Directory directory;
    files.write(directory.path());
    check_refused(directory.path(), one.file, one.words, std::string(of) + " " + std::to_string(number++));
  }
  const Directory directory;
  good.write(directory.path());
  rlcc_model* model = nullptr;
  CHECK_STATUS(rlcc_model_open(directory.path().c_str(), &model), RLCC_OK);
  rlcc_model_close(model);
}

inline Change record(const std::string& from, const std::string& to) {
  return [=](ModelFiles& files) { files.record = replaced(files.record, from, to); };
}
inline Change config(const std::string& from, const std::string& to) {
  return [=](ModelFiles& files) { files.config = replaced(files.config, from, to); };
}
inline Change drop(const std::string& name) {
  return [=](ModelFiles& files) { files.drop(name); };
}
// The table in front of packed.safetensors.
inline Change table(const std::string& from, const std::string& to) {
  return [=](ModelFiles& files) {
    const std::string file = serialised(files.arrays);
    files.packed = with_table(file, replaced(table_of(file), from, to));
  };
}
inline Change header_bytes(uint64_t bytes) {
  return [=](ModelFiles& files) {
    files.packed = serialised(files.arrays);
    std::memcpy(files.packed.data(), &bytes, 8);
  };
}

template <class Element>
Change element(const std::string& name, size_t index, Element value) {
  return [=](ModelFiles& files) {
    std::string& bytes = files.array(name).bytes;
    const size_t at = (index == SIZE_MAX ? bytes.size() / sizeof(value) - 1 : index) * sizeof(value);
    std::memcpy(bytes.data() + at, &value, sizeof(value));
  };
}
constexpr size_t kLast = SIZE_MAX;

Change reshaped(const std::string& name, const std::string& type, const std::vector<int64_t>& shape) {
  return [=](ModelFiles& files) {
    StoredArray& array = files.array(name);
    const size_t element = type == "I8" ? 1 : type == "F32" ? 4 : type == "I64" || type == "F64" ? 8 : 2;
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    array.type = type;
    array.shape = shape;
    array.bytes.resize(element * count);
  };
}

}  // namespace restorelcc::test
