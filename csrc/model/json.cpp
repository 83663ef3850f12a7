#include "model/json.h"

#include <algorithm>
#include <cmath>
#include <locale>
#include <sstream>

namespace restorelcc::model {
namespace {

constexpr size_t kMostBytes = 100'000'000;  // what safetensors allows a header
constexpr size_t kMostValues = size_t{1} << 22;
constexpr int kMostDepth = 64;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// The four hexadecimal digits at text[at] of a \u escape; -1 where there are none.
int code_unit(std::string_view text, size_t at) {
  if (at > text.size() || text.size() - at < 4) return -1;
  int unit = 0;
  for (size_t i = at; i < at + 4; ++i) {
    const int digit = hex_digit(text[i]);
    if (digit < 0) return -1;
    unit = unit * 16 + digit;
  }
  return unit;
}

void append_utf8(std::string* to, uint32_t code) {
  if (code < 0x80) {
    to->push_back(static_cast<char>(code));
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr uint32_t kFirst[] = {0, 0xc0, 0xe0, 0xf0};
  to->push_back(static_cast<char>(kFirst[more] | (code >> (6 * more))));
  for (int i = more - 1; i >= 0; --i) to->push_back(static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3f)));
}

// Bytes of the UTF-8 character that begins at text[at] with a byte above 0x7f; 0: it is none.
size_t utf8_length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const uint8_t first = byte(at), second = byte(at + 1);
  // The second byte's range rules out overlong forms, surrogates and what is beyond U+10FFFF.
  uint8_t least = 0x80, most = 0xbf;
  size_t length = 0;
  if (first >= 0xc2 && first <= 0xdf) {
    length = 2;
  } else if (first >= 0xe0 && first <= 0xef) {
    length = 3;
    if (first == 0xe0) least = 0xa0;
    if (first == 0xed) most = 0x9f;
  } else if (first >= 0xf0 && first <= 0xf4) {
    length = 4;
    if (first == 0xf0) least = 0x90;
    if (first == 0xf4) most = 0x8f;
  } else {
    return 0;
  }
  if (second < least || second > most) return 0;
  for (size_t i = 2; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  return length;
}

// The characters of an escaped string. The text was checked; all is checked again here, so that a file which
// changes meanwhile is nothing worse than a wrong name.
std::string decoded(std::string_view raw) {
  std::string text;
  text.reserve(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] != '\\' || i + 1 == raw.size()) {
      text.push_back(raw[i]);
      continue;
    }
    constexpr char kEscapes[] = "b\bf\fn\nr\rt\t";
    const char escape = raw[++i];
    if (escape == 'u') {
      int code = code_unit(raw, i + 1);
      i += 4;
      const int low = code >= 0xd800 && code < 0xdc00 ? code_unit(raw, i + 3) : -1;
      if (low >= 0) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        i += 6;
      }
      append_utf8(&text, static_cast<uint32_t>(std::max(code, 0)));
      continue;
    }
    char plain = escape;  // of \" \\ \/
    for (size_t e = 0; e + 1 < sizeof(kEscapes) - 1; e += 2) {
      if (kEscapes[e] == escape) plain = kEscapes[e + 1];
    }
    text.push_back(plain);
  }
  return text;
}

}  // namespace

class JsonParser {
 public:
  explicit JsonParser(Json* json) : text_(json->text_), nodes_(json->nodes_) {}

  Status parse() {
    RLCC_RETURN_IF_FAILED(value(0));
    skip_space();
    return at_ == text_.size() ? Status{} : wrong("something follows the value");
  }

 private:
  Status wrong(const char* what) const { return invalid("byte ", at_, ": ", what); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\t' || peek() == '\r') ++at_;
  }

  Status open(JsonKind kind, uint32_t* node) {
    if (nodes_.size() == kMostValues) return wrong("more than 4,194,304 values");
    *node = static_cast<uint32_t>(nodes_.size());
    nodes_.push_back({static_cast<uint32_t>(at_), 0, 0, kind, false});
    return {};
  }
  void close(uint32_t node, size_t end) {
    nodes_[node].end = static_cast<uint32_t>(end);
    nodes_[node].next = static_cast<uint32_t>(nodes_.size());
  }

  Status value(int depth) {
    skip_space();
    switch (peek()) {
      case '{': return object(depth);
      case '[': return list(depth);
      case '"': return string();
      case 'n': return word("null", JsonKind::kNull);
      case 't': return word("true", JsonKind::kTrue);
      case 'f': return word("false", JsonKind::kFalse);
      default: return number();
    }
  }

  Status word(std::string_view wanted, JsonKind kind) {
    uint32_t node = 0;
    RLCC_RETURN_IF_FAILED(open(kind, &node));
    if (text_.substr(at_, wanted.size()) != wanted) return wrong("a value is missing");
    at_ += wanted.size();
    close(node, at_);
    return {};
  }

  Status digits() {
    if (!is_digit(peek())) return wrong("a value is missing, or is a number in a form that JSON does not have");
    while (is_digit(peek())) ++at_;
    return {};
  }

  Status number() {
    uint32_t node = 0;
    RLCC_RETURN_IF_FAILED(open(JsonKind::kInteger, &node));
    if (peek() == '-') ++at_;
    const bool zero = peek() == '0';
    RLCC_RETURN_IF_FAILED(zero ? (++at_, Status{}) : digits());
    if (peek() == '.') {
      ++at_;
      nodes_[node].kind = JsonKind::kReal;
      RLCC_RETURN_IF_FAILED(digits());
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      nodes_[node].kind = JsonKind::kReal;
      if (peek() == '+' || peek() == '-') ++at_;
      RLCC_RETURN_IF_FAILED(digits());
    }
    close(node, at_);
    return {};
  }

  Status escape(uint32_t node) {
    nodes_[node].escaped = true;
    ++at_;  // the backslash
    if (peek() != 'u') {
      if (at_ == text_.size() || std::string_view("\"\\/bfnrt").find(peek()) == std::string_view::npos) {
        return wrong("an escape that JSON does not have");
      }
      ++at_;
      return {};
    }
    const int high = code_unit(text_, at_ + 1);
    if (high < 0) return wrong("an escape that JSON does not have");
    at_ += 5;
    if (high < 0xd800 || high > 0xdfff) return {};
    const int low = text_.substr(at_, 2) == "\\u" ? code_unit(text_, at_ + 2) : -1;
    if (high >= 0xdc00 || low < 0xdc00 || low > 0xdfff) return wrong("half of a pair of surrogates");
    at_ += 6;
    return {};
  }

  Status string() {
    ++at_;  // the quote
    uint32_t node = 0;
    RLCC_RETURN_IF_FAILED(open(JsonKind::kString, &node));
    while (true) {
      if (at_ >= text_.size()) return wrong("a string does not end");
      const auto c = static_cast<uint8_t>(text_[at_]);
      if (c == '"') break;
      if (c == '\\') {
        RLCC_RETURN_IF_FAILED(escape(node));
      } else if (c < 0x20) {
        return wrong("a control character in a string");
      } else if (c < 0x80) {
        ++at_;
      } else {
        const size_t length = utf8_length(text_, at_);
        if (length == 0) return wrong("bytes that are no UTF-8");
        at_ += length;
      }
    }
    close(node, at_++);
    return {};
  }

  Status list(int depth) {
    if (depth == kMostDepth) return wrong("more than 64 values inside one another");
    uint32_t node = 0;
    RLCC_RETURN_IF_FAILED(open(JsonKind::kList, &node));
    ++at_;
    skip_space();
    bool first = true;
    while (peek() != ']') {
      if (!first && peek() != ',') return wrong("a comma or ] is missing");
      if (!first) ++at_;
      first = false;
      RLCC_RETURN_IF_FAILED(value(depth + 1));
      skip_space();
    }
    close(node, ++at_);
    return {};
  }

  Status object(int depth) {
    if (depth == kMostDepth) return wrong("more than 64 values inside one another");
    uint32_t node = 0;
    RLCC_RETURN_IF_FAILED(open(JsonKind::kObject, &node));
    ++at_;
    skip_space();
    bool first = true;
    while (peek() != '}') {
      if (!first && peek() != ',') return wrong("a comma or } is missing");
      if (!first) ++at_;
      first = false;
      skip_space();
      if (peek() != '"') return wrong("a key is missing");
      RLCC_RETURN_IF_FAILED(string());
      skip_space();
      if (peek() != ':') return wrong("a colon is missing");
      ++at_;
      RLCC_RETURN_IF_FAILED(value(depth + 1));
      skip_space();
    }
    close(node, ++at_);
    return no_key_twice(node);
  }

  Status no_key_twice(uint32_t object) const {
    std::vector<std::string_view> plain;
    std::vector<std::string> escaped;  // decoded: "a" and "\u0061" are one key
    for (uint32_t key = object + 1; key < nodes_[object].next; key = nodes_[key + 1].next) {
      const Json::Node& node = nodes_[key];
      const std::string_view raw = text_.substr(node.begin, node.end - node.begin);
      if (node.escaped) {
        escaped.push_back(decoded(raw));
      } else {
        plain.push_back(raw);
      }
    }
    plain.insert(plain.end(), escaped.begin(), escaped.end());
    std::sort(plain.begin(), plain.end());
    const auto twice = std::adjacent_find(plain.begin(), plain.end());
    if (twice == plain.end()) return {};
    return invalid("the key ", one_line(*twice), " stands twice in one object");
  }

  std::string_view text_;
  std::vector<Json::Node>& nodes_;
  size_t at_ = 0;
};

Status Json::parse(std::string_view text) {
  text_ = text;
  nodes_.clear();
  if (text.size() > kMostBytes) return invalid(text.size(), " bytes, more than 100,000,000");
  return JsonParser(this).parse();
}

JsonKind JsonValue::kind() const { return exists() ? json_->nodes_[index_].kind : JsonKind::kNull; }

uint32_t JsonValue::end() const { return json_->nodes_[index_].next; }

std::string_view JsonValue::text() const {
  if (!exists()) return {};
  const Json::Node& node = json_->nodes_[index_];
  const uint32_t quote = node.kind == JsonKind::kString ? 1 : 0;
  return json_->text_.substr(node.begin - quote, node.end - node.begin + 2 * quote);
}

std::string JsonValue::string() const {
  if (!is(JsonKind::kString)) return {};
  const Json::Node& node = json_->nodes_[index_];
  const std::string_view raw = json_->text_.substr(node.begin, node.end - node.begin);
  return node.escaped ? decoded(raw) : std::string(raw);
}

bool JsonValue::is_string(std::string_view wanted) const {
  if (!is(JsonKind::kString)) return false;
  const Json::Node& node = json_->nodes_[index_];
  if (node.escaped) return string() == wanted;
  return json_->text_.substr(node.begin, node.end - node.begin) == wanted;
}

bool JsonValue::integer(int64_t* value) const {
  if (!is(JsonKind::kInteger)) return false;
  std::string_view digits = text();
  const bool negative = digits.front() == '-';
  if (negative) digits.remove_prefix(1);
  int64_t sum = 0;
  for (const char digit : digits) {
    const int64_t more = negative ? '0' - digit : digit - '0';
    if (__builtin_mul_overflow(sum, int64_t{10}, &sum) || __builtin_add_overflow(sum, more, &sum)) return false;
  }
  *value = sum;
  return true;
}

bool JsonValue::number(double* value) const {
  if (!is(JsonKind::kInteger) && !is(JsonKind::kReal)) return false;
  std::istringstream stream{std::string(text())};
  stream.exceptions(std::ios::badbit);   // as failure() of core/status.h
  stream.imbue(std::locale::classic());  // a point, whatever the process writes for one
  double read = 0;
  if (!(stream >> read) || !std::isfinite(read)) return false;
  *value = read;
  return true;
}

JsonValue JsonValue::find(std::string_view key) const {
  if (!is(JsonKind::kObject)) return {};
  for (JsonValue at = inside(); at.index_ < end(); at = at.behind().behind()) {
    if (at.is_string(key)) return at.behind();
  }
  return {};
}

int64_t JsonValue::size() const {
  if (!is(JsonKind::kList) && !is(JsonKind::kObject)) return 0;
  int64_t values = 0;
  for (JsonValue at = inside(); at.index_ < end(); at = at.behind()) ++values;
  return is(JsonKind::kObject) ? values / 2 : values;
}

std::string one_line(std::string_view said, size_t most) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string line;
  for (const char c : said) {
    const auto byte = static_cast<uint8_t>(c);
    if (line.size() > most) break;
    if (byte >= 0x20 && byte < 0x7f) {
      line.push_back(c);
    } else {
      line += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    }
  }
  if (line.size() > most) line.replace(most - 3, std::string::npos, "...");
  return line;
}

}  // namespace restorelcc::model
