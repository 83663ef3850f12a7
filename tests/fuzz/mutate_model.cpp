// Lies about a packed model: in the bytes of its files, in what their JSON says, in the table of the tensors,
// in their data; and changes that keep the model good (another alignment, other values).
#include <algorithm>
#include <cstring>
#include <limits>

#include "model_input.h"

namespace restorelcc::fuzz {
namespace {

using Random = std::mt19937_64;

size_t below(Random& random, size_t limit) { return limit == 0 ? 0 : static_cast<size_t>(random() % limit); }

template <class Array>
const auto& one_of(const Array& array, Random& random) {
  return array[below(random, std::size(array))];
}

constexpr const char* kNumbers[] = {"0",
                                    "1",
                                    "-1",
                                    "2",
                                    "10001",
                                    "2147483647",
                                    "2147483648",
                                    "4294967296",
                                    "9223372036854775807",
                                    "1e999",
                                    "-0.0",
                                    "9223372036854775808",
                                    "1.5",
                                    "1152921504606846976",
                                    "99999999999999999999999999"};
constexpr const char* kValues[] = {"null",
                                   "true",
                                   "[]",
                                   "{}",
                                   "\"\"",
                                   "\"\\u0000\"",
                                   "\"\\ud83d\\ude00\"",
                                   "[[[[]]]]",
                                   "\"model.norm.weight\"",
                                   "\"BF16\"",
                                   "\"I64\"",
                                   "\"F32\"",
                                   "\"int8\"",
                                   "\"bf16\"",
                                   "[0,0]",
                                   "{\"name\": \"x\", \"rows\": 0, \"columns\": 0, \"nonzero\": 0}"};

// A token of a JSON text: a string, a number or word, or one character of punctuation.
struct Token {
  size_t begin, end;
  char kind;  // '"', '0' or the character
};

std::vector<Token> tokens_of(const std::string& text) {
  std::vector<Token> tokens;
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    size_t end = at + 1;
    if (c == '"') {
      while (end < text.size() && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
      tokens.push_back({at, end, '"'});
    } else if (c > ' ' && std::strchr("{}[]:,", c) == nullptr) {
      while (end < text.size() && text[end] > ' ' && std::strchr("{}[]:,\"", text[end]) == nullptr) ++end;
      tokens.push_back({at, end, '0'});
    } else if (c > ' ') {
      tokens.push_back({at, end, c});
    }
    at = end;
  }
  return tokens;
}

std::string neighbour_of(const std::string& number, Random& random) {
  char* end = nullptr;
  const long long value = std::strtoll(number.c_str(), &end, 10);
  if (*end != '\0') return one_of(kNumbers, random);
  const long long steps[] = {1, -1, 2, 64, -64, value};
  return std::to_string(static_cast<long long>(static_cast<unsigned long long>(value) +
                                               static_cast<unsigned long long>(one_of(steps, random))));
}

// One token replaced, removed, doubled or exchanged with another.
void garble_json(std::string& text, Random& random) {
  const std::vector<Token> tokens = tokens_of(text);
  if (tokens.empty()) return;
  const Token &token = one_of(tokens, random), &other = one_of(tokens, random);
  const std::string was = text.substr(token.begin, token.end - token.begin);
  std::string now;
  switch (random() % 8) {
    case 0: break;
    case 1: now = was + was; break;
    case 2: now = text.substr(other.begin, other.end - other.begin); break;
    case 3: now = one_of(kValues, random); break;
    case 4: now = std::string(below(random, 200), '['); break;
    case 5:
      now = token.kind == '"' ? "\"" + std::string(below(random, 400), 'x') + "\"" : one_of(kNumbers, random);
      break;
    default: now = token.kind == '0' ? neighbour_of(was, random) : one_of(kNumbers, random);
  }
  text.replace(token.begin, token.end - token.begin, now);
}

std::string table_of(const std::string& file) {
  uint64_t bytes = 0;
  if (file.size() < 8) return {};
  std::memcpy(&bytes, file.data(), 8);
  return bytes > file.size() - 8 ? std::string() : file.substr(8, static_cast<size_t>(bytes));
}

void put_table(std::string& file, const std::string& table) {
  const size_t was = table_of(file).size();
  const uint64_t bytes = table.size();
  if (file.size() < 8) return;
  file.replace(8, was, table);
  std::memcpy(file.data(), &bytes, 8);
}

void garble_table(ModelInput& input, Random& random) {
  std::string& file = input.files[kTensors];
  std::string table = table_of(file);
  switch (random() % 6) {
    case 0:  // the number of its bytes
      if (file.size() >= 8) {
        const uint64_t bytes[] = {0, 1, table.size() - 1, table.size() + 1, file.size(), UINT64_MAX, random()};
        std::memcpy(file.data(), &one_of(bytes, random), 8);
      }
      return;
    case 1:  // the tensors somewhere else: still good
      return put_table(file, table + std::string(1 + below(random, 70), ' '));
    default: garble_json(table, random); return put_table(file, table);
  }
}

// The same number in the record, the configuration and the shapes, so that they agree.
void agree_on_a_lie(ModelInput& input, Random& random) {
  constexpr const char* kSizes[] = {"40", "48", "24", "136", "32", "96", "272", "2"};
  const std::string was = one_of(kSizes, random);
  const std::string now = random() % 2 == 0 ? neighbour_of(was, random) : one_of(kNumbers, random);
  const auto change = [&](std::string& text) {
    const std::vector<Token> tokens = tokens_of(text);
    for (auto token = tokens.rbegin(); token != tokens.rend(); ++token) {
      if (text.compare(token->begin, token->end - token->begin, was) == 0) {
        text.replace(token->begin, token->end - token->begin, now);
      }
    }
  };
  change(input.files[kRecord]);
  change(input.files[kConfig]);
  std::string table = table_of(input.files[kTensors]);
  if (random() % 2 == 0) change(table);
  put_table(input.files[kTensors], table);
}

// A number of a tensor's data, at a multiple of its bytes.
void garble_data(ModelInput& input, Random& random) {
  std::string& file = input.files[kTensors];
  const std::string table = table_of(file), key = "\"data_offsets\":[";
  std::vector<size_t> places;
  for (size_t at = table.find(key); at != std::string::npos; at = table.find(key, at + 1)) places.push_back(at);
  if (places.empty()) return;
  const char* text = table.c_str() + one_of(places, random) + key.size();
  char* behind = nullptr;
  const unsigned long long begin = std::strtoull(text, &behind, 10),
                           end = std::strtoull(behind + 1, nullptr, 10);
  const size_t data = 8 + table.size();
  if (begin >= end || end > file.size() - data) return;
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const int64_t numbers[] = {0,
                             1,
                             -1,
                             8,
                             -8,
                             16,
                             kMost,
                             -kMost - 1,
                             kMost - 7,
                             int64_t{1} << 32,
                             0x7fc000007fc00000,
                             0x7f8000007f800000,
                             static_cast<int64_t>(random())};
  const size_t width = random() % 4 == 0 ? 1 : 8, count = (end - begin) / width;
  if (count == 0) return;
  // The ends are where offsets and padding are.
  const size_t index = random() % 3 == 0 ? count - 1 : below(random, count);
  std::memcpy(file.data() + data + begin + index * width, &one_of(numbers, random), width);
}

void garble_bytes(std::string& file, Random& random) {
  if (file.empty()) return;
  const size_t at = below(random, file.size()), most = std::min<size_t>(file.size() - at, 64);
  switch (random() % 5) {
    case 0: file.resize(at); return;
    case 1: file.erase(at, below(random, most) + 1); return;
    case 2: file.insert(at, file.substr(at, below(random, most) + 1)); return;
    case 3: file += std::string(below(random, 64) + 1, static_cast<char>(random())); return;
    default:
      for (uint64_t i = random() % 4 + 1; i > 0; --i) {
        file[below(random, file.size())] ^= static_cast<char>(1u << (random() % 8));
      }
  }
}

}  // namespace

Bytes mutate(const Bytes& seed, Random& random) {
  ModelInput input;
  if (!parse(seed, &input)) return seed;
  for (uint64_t i = random() % 3 + 1; i > 0; --i) {
    switch (random() % 16) {
      case 0: garble_bytes(input.files[random() % kModelFiles], random); break;
      case 1: input.absent[random() % kModelFiles] = random() % 4 == 0; break;
      case 2: std::swap(input.files[random() % kTensors], input.files[random() % kTensors]); break;
      case 3:
      case 4: garble_json(input.files[kRecord], random); break;
      case 5: garble_json(input.files[kConfig], random); break;
      case 6: garble_json(input.files[kGeneration], random); break;
      case 7: agree_on_a_lie(input, random); break;
      case 8:
      case 9:
      case 10: garble_table(input, random); break;
      default: garble_data(input, random);
    }
  }
  return serialise(input);
}

}  // namespace restorelcc::fuzz
