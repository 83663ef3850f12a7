#include "options.h"

#include <cerrno>
#include <cstdlib>

namespace logits {
namespace {

std::vector<int64_t> parse_ids(const std::string& text) {
  std::vector<int64_t> ids;
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = text.find(',', begin);
    if (end == std::string::npos) end = text.size();
    ids.push_back(whole_number(text.substr(begin, end - begin), "an id of --prompt-ids", 0, INT32_MAX));
    begin = end + 1;
  }
  return ids;
}

}  // namespace

const char* const kUsage =
    "logits MODEL.pt2 --prompt-ids 1,2,3 [options]\n"
    "\n"
    "Continues token ids with a model that export.py compiled, greedily; prints the new ids.\n"
    "\n"
    "  --tokens N       new tokens (32)\n"
    "  --logits FILE    no new tokens: fp32 logits [prompt, vocabulary] of every position of the prompt\n"
    "  --threads T      (default: torch's own choice)\n";

int64_t whole_number(const std::string& text, const std::string& of, int64_t least, int64_t most) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < least || value > most) {
    throw Refusal(of + " is \"" + text.substr(0, 40) + "\", must be a whole number from " +
                  std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

Options parse_options(int count, const char* const* words) {
  Options options;
  bool with_tokens = false;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= count) throw Refusal(word + " needs a value; see --help");
      return words[++i];
    };
    if (word == "--help" || word == "-h") {
      options.help = true;
      return options;
    } else if (word == "--prompt-ids") {
      options.prompt = parse_ids(value());
    } else if (word == "--tokens") {
      options.tokens = whole_number(value(), word, 1, INT32_MAX);
      with_tokens = true;
    } else if (word == "--threads") {
      options.threads = static_cast<int>(whole_number(value(), word, 1, 4096));
    } else if (word == "--logits") {
      options.logits_file = value();
      if (options.logits_file.empty()) throw Refusal("--logits needs a file");
    } else if (word.size() > 1 && word[0] == '-') {
      throw Refusal("there is no option " + word + "; see --help");
    } else if (options.package.empty()) {
      options.package = word;
    } else {
      throw Refusal("there are two models, " + options.package + " and " + word + "; give one");
    }
  }
  if (options.package.empty()) throw Refusal("no model is given; see --help");
  if (options.prompt.empty()) throw Refusal("no prompt is given: --prompt-ids 1,2,3");
  if (with_tokens && !options.logits_file.empty()) {
    throw Refusal("--logits is of the prompt alone; leave --tokens out");
  }
  return options;
}

}  // namespace logits
