// Files as the system gives them: a large one mapped, a small one read. Pipes, directories and devices are
// refused without waiting for them. Every sentence names the file.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/status.h"
#include "model/json.h"

namespace restorelcc::model {

// The bytes of a file that is only read: mapped where the system can, else read into memory. The address is a
// multiple of 64.
class FileBytes {
 public:
  FileBytes() = default;
  ~FileBytes();
  FileBytes(const FileBytes&) = delete;
  FileBytes& operator=(const FileBytes&) = delete;

  // To be called once.
  Status open(const std::string& path);

  const unsigned char* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const unsigned char* data_ = nullptr;
  size_t size_ = 0;
  bool mapped_ = false;
  std::unique_ptr<char[]> read_;
};

// The JSON object in a file of at most 64 MiB; `json` reads `text`, which has to stay. *missing, where it is
// given, tells that there is no such file; then that is no failure.
Status read_json(const std::string& path, std::string* text, Json* json, bool* missing = nullptr);

}  // namespace restorelcc::model
