// continue_text EXTENSION MODEL IDS [TOKENS]: continues token ids with a model that convert.py wrote, greedily,
// and prints the new ids. EXTENSION: librestorelcc_openvino.so; MODEL: the directory; IDS: 1,2,3; TOKENS: 32
// unless given. It links OpenVINO alone, as a host does: the operation comes with the extension.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "openvino/openvino.hpp"

namespace {

constexpr int64_t kMostTokens = int64_t{1} << 20;

int64_t whole_number(const std::string& text, int64_t least) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < least) {
    throw std::invalid_argument("\"" + text + "\" must be a whole number of at least " + std::to_string(least));
  }
  return value;
}

std::vector<int64_t> ids_of(const std::string& text) {
  std::vector<int64_t> ids;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) ids.push_back(whole_number(word, 0));
  if (ids.empty()) throw std::invalid_argument("the prompt is empty: give token ids such as 1,2,3");
  return ids;
}

ov::Tensor row(const std::vector<int64_t>& values) {
  ov::Tensor tensor(ov::element::i64, {1, values.size()});
  std::copy(values.begin(), values.end(), tensor.data<int64_t>());
  return tensor;
}

// The likeliest id behind `ids`, the positions before them being in the request's state.
int64_t next_of(ov::InferRequest& request, const std::vector<int64_t>& ids, int64_t before) {
  std::vector<int64_t> positions;
  for (size_t i = 0; i < ids.size(); ++i) positions.push_back(before + static_cast<int64_t>(i));
  ov::Tensor beams(ov::element::i32, {1});
  beams.data<int32_t>()[0] = 0;
  request.set_tensor("input_ids", row(ids));
  request.set_tensor("attention_mask", row(std::vector<int64_t>(static_cast<size_t>(positions.back() + 1), 1)));
  request.set_tensor("position_ids", row(positions));
  request.set_tensor("beam_idx", beams);
  request.infer();
  const ov::Tensor logits = request.get_tensor("logits");  // [1, tokens, vocabulary] f32
  const size_t vocabulary = logits.get_shape()[2];
  const float* const last = logits.data<const float>() + (ids.size() - 1) * vocabulary;
  return std::max_element(last, last + vocabulary) - last;
}

void must_be_readable(const std::string& path, const char* what_to_do) {
  if (!std::ifstream(path)) throw std::invalid_argument(path + " cannot be read; " + what_to_do);
}

// OpenVINO's own sentences come in many lines.
std::string one_line(const std::string& text) {
  std::istringstream words(text);
  std::string line, word;
  while (words >> word) line += (line.empty() ? "" : " ") + word;
  return line;
}

int run(const std::string& extension, const std::string& model, const std::string& prompt, int64_t tokens) {
  std::vector<int64_t> ids = ids_of(prompt);
  must_be_readable(extension, "name the library that examples/openvino builds");
  must_be_readable(model + "/openvino_model.xml", "name the directory that convert.py wrote");
  ov::Core core;
  core.add_extension(extension);
  ov::CompiledModel compiled =
      core.compile_model(model + "/openvino_model.xml", "CPU", ov::hint::inference_precision(ov::element::f32),
                         ov::hint::kv_cache_precision(ov::element::f32));
  ov::InferRequest request = compiled.create_infer_request();
  int64_t before = 0;
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t next = next_of(request, ids, before);
    before += static_cast<int64_t>(ids.size());
    ids = {next};
    std::printf("%s%lld", i == 0 ? "" : ",", static_cast<long long>(next));
  }
  std::printf("\n");
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("standard output cannot be written");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "continue_text EXTENSION MODEL IDS [TOKENS]: see examples/openvino/README.md\n");
    return 2;
  }
  try {
    const int64_t tokens = argc == 5 ? whole_number(argv[4], 1) : 32;
    if (tokens > kMostTokens) throw std::invalid_argument("no more than 1048576 tokens");
    return run(argv[1], argv[2], argv[3], tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "continue_text: %s\n", one_line(error.what()).c_str());
    return 2;
  }
}
