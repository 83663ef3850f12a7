// JSON (RFC 8259), read strictly: UTF-8 without a mark, no key twice in an object, no lone surrogates, nothing
// behind the value. Bounded: a text of 100 MB, 64 values inside one another, 4,194,304 values.
//
// The values stand in one array, in the order of the text, 16 bytes each; strings are decoded when they are
// asked for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace restorelcc::model {

enum class JsonKind : uint8_t { kNull, kTrue, kFalse, kInteger, kReal, kString, kList, kObject };

class Json;

// A value of a Json, valid as long as that and its text are. One made of nothing does not exist: find() gives
// it.
class JsonValue {
 public:
  JsonValue() = default;

  bool exists() const { return json_ != nullptr; }
  JsonKind kind() const;  // kNull where it does not exist
  bool is(JsonKind wanted) const { return exists() && kind() == wanted; }
  std::string_view text() const;  // as it stands in the file; a string with its quotes

  std::string string() const;                     // of a kString, decoded
  bool is_string(std::string_view wanted) const;  // a string, and this one
  bool integer(int64_t* value) const;             // false unless it is a kInteger of 64 bits
  bool number(double* value) const;               // false unless it is a number that a double can hold

  JsonValue find(std::string_view key) const;  // of an object: its value
  int64_t size() const;                        // elements of a list, members of an object, else 0

  // visit(element) -> Status, until one fails.
  template <class Visit>
  Status each_element(Visit&& visit) const {
    if (!is(JsonKind::kList)) return {};
    for (JsonValue at = inside(); at.index_ < end(); at = at.behind()) RLCC_RETURN_IF_FAILED(visit(at));
    return {};
  }
  // visit(key, value) -> Status; the key is a kString.
  template <class Visit>
  Status each_member(Visit&& visit) const {
    if (!is(JsonKind::kObject)) return {};
    for (JsonValue key = inside(); key.index_ < end(); key = key.behind().behind()) {
      RLCC_RETURN_IF_FAILED(visit(key, key.behind()));
    }
    return {};
  }

 private:
  friend class Json;
  JsonValue(const Json* json, uint32_t index) : json_(json), index_(index) {}
  JsonValue inside() const { return {json_, index_ + 1}; }
  JsonValue behind() const { return {json_, end()}; }
  uint32_t end() const;  // index of what follows this value and all in it

  const Json* json_ = nullptr;
  uint32_t index_ = 0;
};

class Json {
 public:
  // The text is borrowed. On failure: "byte 17: a comma or ] is missing".
  Status parse(std::string_view text);
  JsonValue root() const { return {this, 0}; }

 private:
  friend class JsonValue;
  friend class JsonParser;
  struct Node {
    uint32_t begin, end;  // bytes of the text; of a string without its quotes
    uint32_t next;        // index of what follows this value and all in it
    JsonKind kind;
    bool escaped;  // a string with a backslash
  };
  std::string_view text_;
  std::vector<Node> nodes_;
};

// What a file says, on one printable line of at most `most` characters, so that it can stand in a sentence.
std::string one_line(std::string_view said, size_t most = 80);

}  // namespace restorelcc::model
