// logits: token ids in, logits or token ids out, by a model that export.py compiled. No Python. See README.md.
#include <ATen/Parallel.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <unordered_map>
#include <vector>

#include "../decode/logits_file.h"
#include "options.h"

namespace logits {
namespace {

using torch::inductor::AOTIModelPackageLoader;

constexpr const char* kFormat = "1";     // export.py: FORMAT
constexpr const char* kModel = "model";  // what aoti_compile_and_package calls a single model in its package

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// What export.py noted of the model: read from the package before any of its code is loaded.
struct Limits {
  int64_t vocabulary, positions;
};

Limits limits_of(const std::string& package) {
  if (!std::ifstream(package, std::ios::binary)) throw Refusal(package + " cannot be read");
  std::unordered_map<std::string, std::string> noted;
  try {
    noted = AOTIModelPackageLoader::load_metadata_from_package(package, kModel);
  } catch (const std::exception& error) {
    throw Refusal(package + " is not a package of AOTInductor; export.py makes one");
  }
  if (noted["restorelcc"] != kFormat) {
    throw Refusal(package + " was not made by this version of export.py; export the model again");
  }
  return {whole_number(noted["vocabulary"], "the vocabulary of " + package, 1, INT32_MAX),
          whole_number(noted["positions"], "the number of positions of " + package, 1, INT32_MAX)};
}

void check(const Options& options, const Limits& limits) {
  // The last new token is chosen and not fed again.
  const int64_t fed =
      static_cast<int64_t>(options.prompt.size()) + (options.logits_file.empty() ? options.tokens - 1 : 0);
  if (fed > limits.positions) {
    throw Refusal(std::to_string(fed) + " tokens are more than the " + std::to_string(limits.positions) +
                  " that the model was exported for");
  }
  for (const int64_t id : options.prompt) {
    if (id >= limits.vocabulary) {
      throw Refusal("token id " + std::to_string(id) + " is not in the vocabulary, [0, " +
                    std::to_string(limits.vocabulary) + ")");
    }
  }
}

// ids [T] -> logits [T, V] float32, contiguous
at::Tensor logits_of(AOTIModelPackageLoader& model, const std::vector<int64_t>& ids, int64_t vocabulary) {
  const int64_t tokens = static_cast<int64_t>(ids.size());
  const std::vector<at::Tensor> found = model.run({at::tensor(ids, at::kLong).unsqueeze(0)});
  if (found.size() != 1 || found[0].sizes() != at::IntArrayRef({1, tokens, vocabulary}) ||
      found[0].scalar_type() != at::kFloat) {
    throw std::runtime_error("the model's output is not float32 [1, tokens, vocabulary]");
  }
  return found[0][0].contiguous();
}

void write_logits(AOTIModelPackageLoader& model, const Options& options, const Limits& limits) {
  const at::Tensor logits = logits_of(model, options.prompt, limits.vocabulary);
  decode::LogitsFile file(options.logits_file);
  file.add(logits.const_data_ptr<float>(), logits.numel());
  file.finish();
}

// A write that failed before the last one is known to ferror() alone.
void flush_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("standard output cannot be written");
  }
}

// The graph has no cache, so each token computes the whole text again.
void generate(AOTIModelPackageLoader& model, const Options& options, const Limits& limits) {
  std::vector<int64_t> ids = options.prompt;
  for (int64_t i = 0; i < options.tokens; ++i) {
    const at::Tensor last = logits_of(model, ids, limits.vocabulary)[-1];
    if (!at::isfinite(last).all().item<bool>()) {
      throw std::runtime_error("the logits of position " + std::to_string(ids.size()) + " are not finite");
    }
    ids.push_back(at::argmax(last).item<int64_t>());
  }
  for (size_t i = options.prompt.size(); i < ids.size(); ++i) {
    std::printf("%s%lld", i == options.prompt.size() ? "" : ",", static_cast<long long>(ids[i]));
  }
  std::printf("\n");
  flush_output();
}

int run(int count, const char* const* words) {
  const Options options = parse_options(count, words);
  if (options.help) {
    std::printf("%s", kUsage);
    flush_output();
    return 0;
  }
  const Limits limits = limits_of(options.package);
  check(options, limits);
  if (options.threads > 0) at::set_num_threads(options.threads);
  const c10::InferenceMode no_gradients;
  AOTIModelPackageLoader model(options.package, kModel);
  if (options.logits_file.empty()) {
    generate(model, options, limits);
  } else {
    write_logits(model, options, limits);
  }
  return 0;
}

}  // namespace
}  // namespace logits

int main(int count, char** words) {
  try {
    return logits::run(count, words);
  } catch (const logits::Refusal& refusal) {
    std::fprintf(stderr, "logits: %s\n", refusal.what());
    return 2;
  } catch (const c10::Error& error) {  // its what() goes on with a stack
    std::fprintf(stderr, "logits: %s\n", logits::first_line(error.what_without_backtrace()).c_str());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "logits: %s\n", logits::first_line(error.what()).c_str());
    return 1;
  }
}
