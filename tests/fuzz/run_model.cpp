// One packed model from disk through rlcc_model_open(); where it opens, every byte that is handed out is read,
// and every weight multiplies. No sanitizer watches the end of a mapping, so this program adds up what is
// handed out, which must be less than the file. Copies are on the heap, which a sanitizer watches.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include "model_files.h"
#include "model_input.h"
#include "restorelcc/model.h"

namespace restorelcc::fuzz {

const char kProgram[] = "rlcc_fuzz_model";
const char kAbout[] = "garbles packed models on disk, opens them, and uses what opens.";

namespace {

constexpr int64_t kMostColumns = 1 << 16;  // of a product; wider ones have no rows

volatile uint64_t sink;  // what was read, so that it is read

void touch(const void* data, int64_t bytes) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < bytes; ++i) sum += static_cast<const unsigned char*>(data)[i];
  sink = sink + sum;
}

void touch_text(const char* text) {
  if (text != nullptr) touch(text, static_cast<int64_t>(std::strlen(text)));
}

bool write_model(const ModelInput& input, const std::string& directory) {
  for (size_t i = 0; i < kModelFiles; ++i) {
    const std::string path = directory + "/" + kFileNames[i];
    std::filesystem::remove(path);
    if (input.absent[i]) continue;
    std::ofstream stream(path, std::ios::binary);
    stream.write(input.files[i].data(), static_cast<std::streamsize>(input.files[i].size()));
    if (!stream) return false;
  }
  return true;
}

std::string multiply(const rlcc_weight& found) {
  const rlcc_packed_weight& weight = found.weight;
  rlcc_packed_weight untrusted = weight;
  untrusted.trusted = 0;
  if (weight.trusted != 1 || rlcc_packed_validate(&untrusted) != RLCC_OK) {
    return std::string("a weight that was handed out is not valid: ") + rlcc_last_error();
  }
  if (found.first_row < 0 || found.rows < 0 || found.rows > weight.rows - found.first_row) {
    return "rows of a joined weight lie outside of it";
  }
  if (weight.columns > kMostColumns || weight.rows == 0) return "";
  std::vector<float> x(static_cast<size_t>(weight.columns), 1.0f), y(static_cast<size_t>(weight.rows), -7.0f);
  rlcc_sparse_linear_params params{};
  params.weight = weight;
  params.x = x.data();
  params.x_rows = 1;
  params.x_stride = weight.columns;
  params.y = y.data();
  params.y_stride = weight.rows;
  if (rlcc_sparse_linear(&params) != RLCC_OK) return std::string("sparse_linear: ") + rlcc_last_error();
  touch(y.data(), static_cast<int64_t>(y.size() * sizeof(float)));
  return "";
}

int64_t bytes_of(const rlcc_packed_weight& weight) {
  const int64_t words = weight.columns / 64 + (weight.columns % 64 != 0 ? 1 : 0);
  const int64_t groups = weight.columns / 128 + (weight.columns % 128 != 0 ? 1 : 0);
  const int64_t width = weight.dtype == RLCC_F32 ? 4 : weight.dtype == RLCC_I8 ? 1 : 2;
  return 8 * (weight.rows * words + weight.rows + 1 + 2) + weight.value_count * width +
         (weight.dtype == RLCC_I8 ? 2 * weight.rows * groups : 0);
}

std::string use(const rlcc_model* model, int64_t file_bytes) {
  int64_t handed_out = 0;
  rlcc_model_config config{};
  if (rlcc_model_get_config(model, &config) != RLCC_OK) return "no configuration";
  for (const char* text :
       {config.model_type, config.architecture, config.rope_type, config.activation, config.values}) {
    touch_text(text);
  }
  touch(config.json, config.json_bytes + 1);
  touch(config.eos_tokens, config.eos_token_count * 8);
  for (int64_t i = 0; i < rlcc_model_tensor_count(model); ++i) {
    rlcc_tensor tensor{}, named{};
    if (rlcc_model_tensor_at(model, i, &tensor) != RLCC_OK) return "no tensor";
    touch(tensor.data, tensor.bytes);
    handed_out += tensor.bytes;
    if (rlcc_model_tensor(model, tensor.name, &named) != RLCC_OK || named.data != tensor.data) {
      return "a tensor is not found by its name";
    }
    if (tensor.bytes % 16 == 0 && reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0)
      return "a tensor is not aligned";
  }
  for (int64_t i = 0; i < rlcc_model_weight_count(model); ++i) {
    rlcc_weight weight{};
    if (rlcc_model_weight_at(model, i, &weight) != RLCC_OK) return "no weight";
    touch_text(weight.joined);
    const size_t length =
        std::strlen(weight.name);  // of the first of joined ones, which their name begins with
    const bool first = std::strncmp(weight.joined, weight.name, length) == 0 &&
                       (weight.joined[length] == '\0' || weight.joined[length] == '+');
    if (first) handed_out += bytes_of(weight.weight);
    if (rlcc_model_has(model, weight.name) == 0) return "a weight is not found by its name";
    if (const std::string failure = multiply(weight); !failure.empty()) return failure;
  }
  for (int64_t i = 0; i < rlcc_model_compensation_count(model); ++i) {
    rlcc_compensation compensation{};
    if (rlcc_model_compensation_at(model, i, &compensation) != RLCC_OK) return "no compensation";
    touch_text(compensation.name);
    if (compensation.heads != nullptr)
      touch(compensation.heads, compensation.layers * compensation.heads_columns * 4);
    if (compensation.ffn != nullptr)
      touch(compensation.ffn, compensation.layers * compensation.ffn_columns * 4);
  }
  if (handed_out >= file_bytes) return std::to_string(handed_out) + " bytes of a smaller file";
  if (rlcc_model_default_compensation(model) >= rlcc_model_compensation_count(model)) return "no such default";
  return "";
}

std::string wrong_with(const std::string& sentence, const std::string& directory) {
  if (sentence.find(directory) == std::string::npos) return "a refusal that names no file: " + sentence;
  if (sentence.size() > directory.size() + 1000) return "a refusal of many characters: " + sentence;
  for (const char c : sentence) {
    if (c < ' ' || c > '~') return "a refusal that is not one printable line: " + sentence;
  }
  return "";
}

}  // namespace

Outcome run_input(const Bytes& bytes, std::string* failure) {
  static const test::Directory directory;
  failure->clear();
  ModelInput input;
  if (!parse(bytes, &input)) return Outcome::kNoInput;
  if (!write_model(input, directory.path())) {
    *failure = "cannot write to " + directory.path();
    return Outcome::kNoInput;
  }
  rlcc_model* model = nullptr;
  const rlcc_status status = rlcc_model_open(directory.path().c_str(), &model);
  if (status == RLCC_OK) {
    *failure = use(model, static_cast<int64_t>(input.files[kTensors].size()));
    rlcc_model_close(model);
    return Outcome::kAccepted;
  }
  if (status != RLCC_INVALID_ARGUMENT || model != nullptr) {
    *failure = "status " + std::to_string(status) + ": " + rlcc_last_error();
  } else {
    *failure = wrong_with(rlcc_last_error(), directory.path());
  }
  return Outcome::kRefused;
}

}  // namespace restorelcc::fuzz
