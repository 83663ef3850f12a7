// packed.safetensors: a table of names in front, the tensors behind it, without gaps.
//
//   uint64 n | n bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...} | the tensors
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "model/file_bytes.h"
#include "model/json.h"

namespace restorelcc::model {

struct StoredType {
  const char* name;  // "BF16", static
  int64_t bytes;     // of an element
  int32_t dtype;     // rlcc_dtype; -1: one that no kernel has
};

struct StoredTensor {
  std::string name;
  const StoredType* type = nullptr;
  int32_t dimensions = 0;
  int64_t shape[4] = {};
  const unsigned char* data = nullptr;  // where the file is mapped, aligned or not
  int64_t bytes = 0;
  bool taken = false;  // belongs to a packed weight or is a compensation
  bool known = false;  // the model has a place for it
};

// "BF16 [3, 4]"
std::string describe(const StoredTensor& tensor);

class TensorFile {
 public:
  static constexpr int64_t kAny = -1;

  // Every tensor lies within the file, none overlaps another, all sizes agree. To be called once.
  Status open(const std::string& path);

  const std::string& path() const { return path_; }
  std::vector<StoredTensor>& tensors() { return tensors_; }  // in the order of the file
  StoredTensor* find(std::string_view name);                 // null: there is none

  // The tensor `name`, of that type and shape (kAny: whatever size), marked as taken. Refused where it is
  // missing, other or taken before.
  Status take(const std::string& name, const char* type, std::initializer_list<int64_t> shape,
              const StoredTensor** tensor);
  // The same of a dense tensor, which is marked as known.
  Status expect(const std::string& name, const char* type, std::initializer_list<int64_t> shape);

 private:
  Status find_as(const std::string& name, const char* type, std::initializer_list<int64_t> shape,
                 StoredTensor** tensor);
  Status read_entry(const JsonValue& name, const JsonValue& entry, int64_t data_bytes);
  Status in_order(int64_t data_bytes);

  std::string path_;
  FileBytes bytes_;
  int64_t data_begin_ = 0;
  std::vector<StoredTensor> tensors_;
  std::vector<uint32_t> by_name_;  // indices of tensors_, sorted by name
};

}  // namespace restorelcc::model
