#include "model/record.h"

#include <algorithm>
#include <map>
#include <string_view>

#include "model/file_bytes.h"
#include "model/json.h"

namespace restorelcc::model {
namespace {

constexpr char kFormat[] = "restorelcc-packed";
constexpr int64_t kVersion = 1;
constexpr size_t kMostModuleName = 200, kMostCompensationName = 64;

// Letters, digits, '_', and behind the first character '.' and '-'.
bool is_name(std::string_view name, size_t most) {
  if (name.empty() || name.size() > most || name.front() == '.' || name.front() == '-') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
           c == '-';
  });
}

std::string shown(const JsonValue& value) { return value.exists() ? one_line(value.text()) : "missing"; }

class RecordReader {
 public:
  RecordReader(const JsonValue& entries, Record* record) : entries_(entries), record_(*record) {}

  Status read() {
    const JsonValue values = entries_.find("values");
    record_.values = values.string();
    if (record_.values != "bf16" && record_.values != "fp32" && record_.values != "fp16" &&
        record_.values != "int8") {
      return invalid("values is ", shown(values), ", not one of bf16, fp32, fp16, int8");
    }
    RLCC_RETURN_IF_FAILED(read_compensations());
    RLCC_RETURN_IF_FAILED(read_matrices("packed", &record_.packed));
    RLCC_RETURN_IF_FAILED(read_matrices("dense", &record_.dense));
    const JsonValue head = entries_.find("head");
    record_.has_head = head.exists() && !head.is(JsonKind::kNull);
    if (record_.has_head) RLCC_RETURN_IF_FAILED(read_matrix(head, &record_.head));
    RLCC_RETURN_IF_FAILED(no_matrix_twice());
    return read_joined();
  }

 private:
  Status list(const char* key, JsonValue* found) const {
    *found = entries_.find(key);
    return found->is(JsonKind::kList) ? Status{} : invalid(key, " is ", shown(*found), ", not a list");
  }

  Status read_compensations() {
    JsonValue names;
    RLCC_RETURN_IF_FAILED(list("compensations", &names));
    RLCC_RETURN_IF_FAILED(names.each_element([&](const JsonValue& name) -> Status {
      const std::string text = name.string();
      if (!is_name(text, kMostCompensationName) || text == "none") {
        return invalid(shown(name), " cannot name a compensation");
      }
      record_.compensations.push_back(text);
      return {};
    }));
    std::vector<std::string> sorted = record_.compensations;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice != sorted.end()) return invalid("the compensation ", *twice, " is listed twice");
    const JsonValue chosen = entries_.find("default");
    if (chosen.is(JsonKind::kNull)) return {};
    for (size_t i = 0; i < record_.compensations.size(); ++i) {
      if (chosen.is_string(record_.compensations[i])) record_.default_compensation = static_cast<int64_t>(i);
    }
    return record_.default_compensation >= 0
               ? Status{}
               : invalid("default is ", shown(chosen), ", none of the compensations");
  }

  Status read_matrix(const JsonValue& entry, Matrix* matrix) const {
    if (!entry.is(JsonKind::kObject)) return invalid("a matrix is ", shown(entry), ", not an object");
    const JsonValue name = entry.find("name");
    matrix->name = name.string();
    if (!is_name(matrix->name, kMostModuleName)) return invalid(shown(name), " is no name of a module");
    int64_t nonzero = 0;  // for people; what is there is counted in the mask
    const std::pair<const char*, int64_t*> sizes[] = {
        {"rows", &matrix->rows}, {"columns", &matrix->columns}, {"nonzero", &nonzero}};
    for (const auto& [key, size] : sizes) {
      const JsonValue value = entry.find(key);
      if (!value.integer(size) || *size < 0) return invalid(key, " of ", matrix->name, " is ", shown(value));
    }
    return {};
  }

  Status read_matrices(const char* key, std::vector<Matrix>* matrices) const {
    JsonValue entries;
    RLCC_RETURN_IF_FAILED(list(key, &entries));
    return entries.each_element([&](const JsonValue& entry) {
      matrices->emplace_back();
      return read_matrix(entry, &matrices->back());
    });
  }

  Status no_matrix_twice() {
    for (size_t i = 0; i < record_.packed.size(); ++i) {
      packed_.emplace(record_.packed[i].name, static_cast<uint32_t>(i));
    }
    std::vector<std::string_view> names;
    for (const auto* matrices : {&record_.packed, &record_.dense}) {
      for (const Matrix& matrix : *matrices) names.push_back(matrix.name);
    }
    if (record_.has_head) names.push_back(record_.head.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    return twice == names.end() ? Status{} : invalid("the matrix ", *twice, " is listed twice");
  }

  Status read_joined() {
    JsonValue families;
    RLCC_RETURN_IF_FAILED(list("joined", &families));
    std::vector<char> seen(record_.packed.size());
    return families.each_element([&](const JsonValue& family) -> Status {
      if (family.size() < 2 || !family.is(JsonKind::kList)) {
        return invalid("joined has ", shown(family), ", not a list of names");
      }
      std::vector<uint32_t> members;
      RLCC_RETURN_IF_FAILED(family.each_element([&](const JsonValue& name) -> Status {
        const auto found = packed_.find(name.string());
        if (found == packed_.end()) return invalid(shown(name), " is joined, but not packed");
        if (seen[found->second]++ != 0) return invalid("the matrix ", found->first, " is joined twice");
        members.push_back(found->second);
        const int64_t columns = record_.packed[members.front()].columns;
        if (record_.packed[members.back()].columns != columns) {
          return invalid("the matrix ", found->first, " is joined to one of ", columns, " columns, it has ",
                         record_.packed[members.back()].columns);
        }
        return {};
      }));
      record_.joined.push_back(std::move(members));
      return {};
    });
  }

  JsonValue entries_;
  Record& record_;
  std::map<std::string_view, uint32_t> packed_;
};

}  // namespace

rlcc_dtype Record::value_dtype() const {
  return values == "int8" ? RLCC_I8 : values == "fp32" ? RLCC_F32 : values == "fp16" ? RLCC_F16 : RLCC_BF16;
}

const char* Record::stored_type() const { return values == "fp32" ? "F32" : values == "fp16" ? "F16" : "BF16"; }

Status read_record(const std::string& path, Record* record) {
  std::string text;
  Json json;
  RLCC_RETURN_IF_FAILED(read_json(path, &text, &json));
  const JsonValue entries = json.root(), format = entries.find("format"), version = entries.find("version");
  int64_t number = 0;
  if (!format.is_string(kFormat) || !version.integer(&number) || number != kVersion) {
    return invalid(path, " has format ", shown(format), " version ", shown(version), "; this release reads \"",
                   kFormat, "\" version ", kVersion, ", pack the model again");
  }
  const Status status = RecordReader(entries, record).read();
  if (!status.ok()) return invalid(path, " is damaged: ", status.message, "; pack the model again");
  return {};
}

}  // namespace restorelcc::model
