#include "model/tensor_file.h"

#include <algorithm>
#include <numeric>

namespace restorelcc::model {
namespace {

constexpr StoredType kTypes[] = {
    {"BF16", 2, RLCC_BF16}, {"F32", 4, RLCC_F32}, {"F16", 2, RLCC_F16}, {"I8", 1, RLCC_I8}, {"I64", 8, -1},
    {"F64", 8, -1},         {"I32", 4, -1},       {"I16", 2, -1},       {"U8", 1, -1},      {"BOOL", 1, -1},
};
constexpr uint64_t kMostHeaderBytes = 100'000'000;  // as in safetensors

std::string list_of(const int64_t* sizes, size_t count) {
  std::string list = "[";
  for (size_t i = 0; i < count; ++i) {
    list += i == 0 ? "" : ", ";
    list += sizes[i] == TensorFile::kAny ? "any" : std::to_string(sizes[i]);
  }
  return list + "]";
}

// Strings by name, as safetensors wants it. Nothing here reads them.
Status check_metadata(const JsonValue& entry) {
  if (!entry.is(JsonKind::kObject)) return invalid("__metadata__ is no object");
  return entry.each_member([](const JsonValue&, const JsonValue& value) -> Status {
    return value.is(JsonKind::kString) ? Status{} : invalid("__metadata__ holds what is no string");
  });
}

bool fits(const StoredTensor& tensor, const char* type, std::initializer_list<int64_t> shape) {
  return tensor.type->name == std::string_view(type) &&
         tensor.dimensions == static_cast<int32_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), tensor.shape,
                    [](int64_t wanted, int64_t size) { return wanted == TensorFile::kAny || wanted == size; });
}

}  // namespace

std::string describe(const StoredTensor& tensor) {
  return std::string(tensor.type->name) + " " + list_of(tensor.shape, static_cast<size_t>(tensor.dimensions));
}

Status TensorFile::open(const std::string& path) {
  path_ = path;
  RLCC_RETURN_IF_FAILED(bytes_.open(path));
  const auto damaged = [&](const auto&... why) {
    return invalid(path, " is truncated or not a safetensors file (", why..., "); copy or pack it again");
  };
  if (bytes_.size() < 8) return damaged(bytes_.size(), " bytes");
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = (header_bytes << 8) | bytes_.data()[i];
  if (header_bytes > kMostHeaderBytes || header_bytes > bytes_.size() - 8) {
    return damaged("it says that its table has ", header_bytes, " bytes");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + 8,
                              static_cast<size_t>(header_bytes));
  Json json;
  if (const Status status = json.parse(text); !status.ok()) return damaged("its table: ", status.message);
  if (!json.root().is(JsonKind::kObject) || text.front() != '{') return damaged("its table is no JSON object");
  data_begin_ = static_cast<int64_t>(header_bytes) + 8;
  const int64_t data_bytes = static_cast<int64_t>(bytes_.size()) - data_begin_;
  Status status = json.root().each_member([&](const JsonValue& name, const JsonValue& entry) -> Status {
    return name.is_string("__metadata__") ? check_metadata(entry) : read_entry(name, entry, data_bytes);
  });
  if (status.ok()) status = in_order(data_bytes);
  if (!status.ok()) return damaged(status.message);
  return {};
}

Status TensorFile::read_entry(const JsonValue& name, const JsonValue& entry, int64_t data_bytes) {
  StoredTensor tensor;
  tensor.name = name.string();
  const auto wrong = [&](const auto&... what) { return invalid(one_line(tensor.name), " ", what...); };
  if (tensor.name.find('\0') != std::string::npos) return wrong("has a zero byte in its name");
  const JsonValue type = entry.find("dtype"), shape = entry.find("shape"), place = entry.find("data_offsets");
  for (const StoredType& known : kTypes) {
    if (type.is_string(known.name)) tensor.type = &known;
  }
  if (tensor.type == nullptr) return wrong("has the type ", one_line(type.text(), 40));
  if (!shape.is(JsonKind::kList)) return wrong("has no shape");
  if (!place.is(JsonKind::kList)) return wrong("has no data_offsets");
  int64_t elements = 1;
  RLCC_RETURN_IF_FAILED(shape.each_element([&](const JsonValue& size) -> Status {
    if (tensor.dimensions == 4) return wrong("has more than 4 dimensions");
    int64_t& here = tensor.shape[tensor.dimensions++];
    if (!size.integer(&here) || here < 0) return wrong("has the size ", one_line(size.text(), 40));
    if (__builtin_mul_overflow(elements, here, &elements)) return wrong("has more elements than 64 bits count");
    return {};
  }));
  if (__builtin_mul_overflow(elements, tensor.type->bytes, &tensor.bytes)) {
    return wrong("has more bytes than 64 bits count");
  }
  int64_t ends[2] = {};
  int count = 0;
  RLCC_RETURN_IF_FAILED(place.each_element([&](const JsonValue& end) -> Status {
    if (count == 2 || !end.integer(&ends[count++]))
      return wrong("has the offsets ", one_line(place.text(), 60));
    return {};
  }));
  if (count != 2 || ends[0] < 0 || ends[1] < ends[0] || ends[1] > data_bytes) {
    return wrong("lies at ", one_line(place.text(), 60), " of ", data_bytes, " bytes");
  }
  if (ends[1] - ends[0] != tensor.bytes) {
    return wrong("is ", describe(tensor), " in ", ends[1] - ends[0], " bytes");
  }
  tensor.data = bytes_.data() + data_begin_ + ends[0];
  tensors_.push_back(std::move(tensor));
  return {};
}

// Sorts the tensors by their place, and refuses gaps and overlaps as safetensors does.
Status TensorFile::in_order(int64_t data_bytes) {
  std::sort(tensors_.begin(), tensors_.end(), [](const StoredTensor& a, const StoredTensor& b) {
    return a.data != b.data ? a.data < b.data : a.bytes < b.bytes;
  });
  const unsigned char* end = bytes_.data() + data_begin_;
  for (const StoredTensor& tensor : tensors_) {
    if (tensor.data != end) {
      return invalid(one_line(tensor.name), tensor.data < end ? " overlaps" : " leaves a gap behind",
                     " the tensor before it");
    }
    end += tensor.bytes;
  }
  const int64_t behind = data_bytes - (end - (bytes_.data() + data_begin_));
  if (behind != 0) return invalid(behind, " bytes follow the last tensor");
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(),
            [&](uint32_t a, uint32_t b) { return tensors_[a].name < tensors_[b].name; });
  return {};
}

StoredTensor* TensorFile::find(std::string_view name) {
  const auto found =
      std::lower_bound(by_name_.begin(), by_name_.end(), name,
                       [&](uint32_t index, std::string_view wanted) { return tensors_[index].name < wanted; });
  return found != by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
}

Status TensorFile::find_as(const std::string& name, const char* type, std::initializer_list<int64_t> shape,
                           StoredTensor** tensor) {
  *tensor = find(name);
  if (*tensor == nullptr)
    return invalid(path_, " lacks the tensor ", one_line(name, 240), "; copy or pack it again");
  if (!fits(**tensor, type, shape)) {
    return invalid(path_, " holds ", one_line(name, 240), " as ", describe(**tensor), ", the model needs ",
                   type, " ", list_of(shape.begin(), shape.size()),
                   "; its files are not of one model, pack it again");
  }
  return {};
}

Status TensorFile::take(const std::string& name, const char* type, std::initializer_list<int64_t> shape,
                        const StoredTensor** tensor) {
  StoredTensor* found = nullptr;
  RLCC_RETURN_IF_FAILED(find_as(name, type, shape, &found));
  if (found->taken) {
    return invalid(path_, " holds ", one_line(name, 240), " for two parts of the model; pack it again");
  }
  found->taken = true;
  *tensor = found;
  return {};
}

Status TensorFile::expect(const std::string& name, const char* type, std::initializer_list<int64_t> shape) {
  StoredTensor* found = nullptr;
  RLCC_RETURN_IF_FAILED(find_as(name, type, shape, &found));
  found->known = true;
  return {};
}

}  // namespace restorelcc::model
