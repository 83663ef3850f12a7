#include "options.h"

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "refusal.h"

namespace decode {
namespace {

constexpr int64_t kMostIds = int64_t{1} << 24;  // of a prompt: more than any model has positions

// What stands in a file may be anything: at most 40 characters, none that a terminal would obey.
std::string printable(const std::string& text) {
  std::string shown = text.substr(0, 40);
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text.size() > shown.size() ? shown + "..." : shown;
}

int64_t whole_number(const std::string& text, const std::string& of, int64_t least, int64_t most) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  const bool whole = !text.empty() && end == text.c_str() + text.size();  // a zero byte is no end
  if (!whole || errno != 0 || value < least || value > most) {
    refuse(of, " is \"", printable(text), "\", must be a whole number from ", least, " to ", most);
  }
  return value;
}

rlcc_dtype storage(const std::string& text, const std::string& of) {
  if (text == "fp32") return RLCC_F32;
  if (text == "bf16") return RLCC_BF16;
  refuse(of, " is \"", text, "\", must be fp32 or bf16");
}

std::string contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse("the prompt file ", path, " cannot be read");
  std::string text, block(size_t{1} << 16, '\0');
  // Not by an iterator over the buffer: what goes wrong there, as in a directory, does not reach the stream.
  while (file.read(block.data(), static_cast<std::streamsize>(block.size())), file.gcount() > 0) {
    text.append(block, 0, static_cast<size_t>(file.gcount()));
    if (text.size() > static_cast<size_t>(16 * kMostIds)) refuse("the prompt file ", path, " is too long");
  }
  if (file.bad()) refuse("the prompt file ", path, " cannot be read");
  return text;
}

}  // namespace

const char* const kUsage =
    "decode MODEL (--prompt-ids 1,2,3 | --prompt-file IDS.txt) [options]\n"
    "\n"
    "Continues token ids with a packed Llama model (restorelcc pack), greedily; prints the new ids.\n"
    "\n"
    "  --tokens N             new tokens at most (32)\n"
    "  --ignore-eos           go on behind the end of the text\n"
    "  --compensation NAME    of the model's named compensations; none (default: the model's own default)\n"
    "  --threads T            (default: the processors of this process)\n"
    "  --activations fp32|bf16    what is stored between products (default: bf16 for bf16 values, else fp32)\n"
    "  --cache fp32|bf16      of keys and values (default: as the activations)\n"
    "  --huge-pages           copy the weights into pages of 2 MiB (Linux): faster, not shared\n"
    "  --batch B              tokens of the prompt at once (128)\n"
    "  --logits FILE          no new tokens: fp32 logits [prompt, vocabulary] of every position of the prompt\n"
    "  --report json          ids and times as one JSON object on standard output (default: times on standard "
    "error)\n";

std::vector<int64_t> parse_ids(const std::string& text, const std::string& from) {
  std::vector<int64_t> ids;
  const auto separates = [](char c) { return c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r'; };
  for (size_t at = 0; at < text.size();) {
    if (separates(text[at])) {
      ++at;
      continue;
    }
    size_t end = at;
    while (end < text.size() && !separates(text[end])) ++end;
    ids.push_back(whole_number(text.substr(at, end - at), "an id of " + from, 0, INT32_MAX));
    if (static_cast<int64_t>(ids.size()) > kMostIds) refuse(from, " has more than ", kMostIds, " ids");
    at = end;
  }
  if (ids.empty()) refuse("the prompt is empty: ", from, " has no token ids");
  return ids;
}

Options parse_options(int count, const char* const* words) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= count) refuse(word, " needs a value; see --help");
      return words[++i];
    };
    if (word == "--help" || word == "-h") {
      options.help = true;
      return options;
    } else if (word == "--prompt-ids" || word == "--prompt-file") {
      if (!options.prompt.empty()) refuse("there are two prompts; give one --prompt-ids or --prompt-file");
      const std::string given = value();
      options.prompt = word == "--prompt-ids" ? parse_ids(given, word) : parse_ids(contents(given), given);
    } else if (word == "--tokens") {
      options.tokens = whole_number(value(), word, 0, INT32_MAX);
    } else if (word == "--threads") {
      options.threads = static_cast<int32_t>(whole_number(value(), word, 1, 4096));
    } else if (word == "--batch") {
      options.settings.batch = whole_number(value(), word, 1, 65536);
    } else if (word == "--compensation") {
      options.settings.compensation = value();
      if (options.settings.compensation.empty()) refuse("--compensation needs a name, or none");
    } else if (word == "--activations") {
      options.settings.activations = storage(value(), word);
    } else if (word == "--cache") {
      options.settings.cache = storage(value(), word);
    } else if (word == "--logits") {
      options.logits_file = value();
      if (options.logits_file.empty()) refuse("--logits needs a file");
    } else if (word == "--report") {
      const std::string kind = value();
      if (kind != "json") refuse("--report is \"", kind, "\", must be json");
      options.json = true;
    } else if (word == "--huge-pages") {
      options.settings.huge_pages = true;
    } else if (word == "--ignore-eos") {
      options.ignore_eos = true;
    } else if (word.size() > 1 && word[0] == '-') {
      refuse("there is no option ", word, "; see --help");
    } else if (options.model.empty()) {
      options.model = word;
    } else {
      refuse("there are two models, ", options.model, " and ", word, "; give one");
    }
  }
  if (options.model.empty()) refuse("no model is given; see --help");
  if (options.prompt.empty()) refuse("no prompt is given: --prompt-ids or --prompt-file");
  if (!options.logits_file.empty() && options.tokens > 0) {
    refuse("--logits is of the prompt alone; leave --tokens out");
  }
  if (options.tokens < 0) options.tokens = options.logits_file.empty() ? 32 : 0;
  if (options.logits_file.empty() && options.tokens == 0) refuse("--tokens is 0, so there is nothing to do");
  // The last new token is chosen and not fed again.
  options.settings.positions =
      static_cast<int64_t>(options.prompt.size()) + (options.tokens > 0 ? options.tokens - 1 : 0);
  return options;
}

}  // namespace decode
