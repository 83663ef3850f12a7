// fp32 logits [T, V], row after row and nothing else, little-endian as the machine has them: whole or absent.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace decode {

class LogitsFile {
 public:
  // Writes to a temporary name beside `path`. Throws std::runtime_error where that fails, as the others do, and
  // where `path` is something else than a file, such as /dev/null: the new file would take its place.
  explicit LogitsFile(const std::string& path);
  ~LogitsFile();  // leaves nothing behind unless finish() was called
  LogitsFile(const LogitsFile&) = delete;
  LogitsFile& operator=(const LogitsFile&) = delete;

  void add(const float* logits, int64_t count);
  void finish();  // the file gets its name

 private:
  std::string path_, partial_;
  std::FILE* file_;
};

}  // namespace decode
