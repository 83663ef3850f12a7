#include "model_input.h"

#include <algorithm>
#include <cstring>

#include "model_files.h"

namespace restorelcc::fuzz {
namespace {

constexpr char kMagic[] = {'R', 'L', 'C', 'M'};
constexpr uint32_t kAbsent = UINT32_MAX;
constexpr size_t kHeadBytes = sizeof(kMagic) + 4 * kModelFiles;

Seed seed_of(const std::string& name, const test::ModelOptions& options, bool other_family = false) {
  test::ModelFiles files = test::tiny_llama(options);
  if (other_family) files.config = test::replaced(files.config, "\"llama\"", "\"other\"");
  ModelInput input;
  input.files[kRecord] = files.record;
  input.files[kConfig] = files.config;
  input.files[kGeneration] = files.generation;
  input.files[kTensors] = test::serialised(files.arrays, files.shift);
  return {name, serialise(input)};
}

}  // namespace

bool parse(const Bytes& bytes, ModelInput* input) {
  if (bytes.size() < kHeadBytes || std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) != 0) return false;
  size_t at = kHeadBytes;
  for (size_t i = 0; i < kModelFiles; ++i) {
    uint32_t size = 0;
    std::memcpy(&size, bytes.data() + sizeof(kMagic) + 4 * i, 4);
    input->absent[i] = size == kAbsent;
    if (input->absent[i]) continue;
    const size_t there = std::min<size_t>(size, bytes.size() - at);
    input->files[i].assign(reinterpret_cast<const char*>(bytes.data()) + at, there);
    at += there;
  }
  return true;
}

Bytes serialise(const ModelInput& input) {
  Bytes bytes(kHeadBytes);
  std::memcpy(bytes.data(), kMagic, sizeof(kMagic));
  for (size_t i = 0; i < kModelFiles; ++i) {
    const uint32_t size = input.absent[i] ? kAbsent : static_cast<uint32_t>(input.files[i].size());
    std::memcpy(bytes.data() + sizeof(kMagic) + 4 * i, &size, 4);
    if (!input.absent[i]) bytes.insert(bytes.end(), input.files[i].begin(), input.files[i].end());
  }
  return bytes;
}

// Llamas of each type of values, with and without joined weights, compensations, biases, a packed and a tied
// head, a dense matrix; and one whose family the library does not know. Each once more as small as can be.
std::vector<Seed> seeds() {
  test::ModelOptions bf16, int8, fp32, fp16;
  int8.values = RLCC_I8;
  int8.joined = int8.biases = false;
  int8.heads = int8.ffn = int8.head = true;
  fp32.values = RLCC_F32;
  fp32.dense_matrix = true;
  fp16.values = RLCC_F16;
  fp16.tied = fp16.heads = true;
  fp16.biases = false;
  std::vector<Seed> all;
  for (const char* prefix : {"model_", "smallest_"}) {
    const std::string at = prefix;
    for (const auto& [name, options] :
         {std::pair("bf16", bf16), {"int8", int8}, {"fp32", fp32}, {"fp16", fp16}}) {
      all.push_back(seed_of(at + name, options));
    }
    all.push_back(seed_of(at + "other", int8, true));
    for (test::ModelOptions* options : {&bf16, &int8, &fp32, &fp16}) options->sizes = test::kSmallestModel;
  }
  return all;
}

}  // namespace restorelcc::fuzz
