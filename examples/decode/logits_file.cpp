#include "logits_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace decode {
namespace {

[[noreturn]] void failed(const std::string& path) {
  throw std::runtime_error(path + " cannot be written: " + std::strerror(errno));
}

std::string unique_ending() {
#if defined(__unix__) || defined(__APPLE__)
  return ".partial." + std::to_string(getpid());
#else
  return ".partial";
#endif
}

}  // namespace

LogitsFile::LogitsFile(const std::string& path)
    : path_(path), partial_(path + unique_ending()), file_(nullptr) {
  std::error_code unknown;
  const std::filesystem::file_status there = std::filesystem::status(path, unknown);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) {
    throw std::runtime_error(path + " cannot be written: it is there and not a file");
  }
  file_ = std::fopen(partial_.c_str(), "wb");
  if (file_ == nullptr) failed(partial_);
}

LogitsFile::~LogitsFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  std::remove(partial_.c_str());
}

void LogitsFile::add(const float* logits, int64_t count) {
  const size_t wanted = static_cast<size_t>(count);
  if (std::fwrite(logits, sizeof(float), wanted, file_) != wanted) failed(partial_);
}

void LogitsFile::finish() {
  const bool written = std::fflush(file_) == 0;
  const bool closed = std::fclose(file_) == 0;
  file_ = nullptr;
  if (!written || !closed || std::rename(partial_.c_str(), path_.c_str()) != 0) {
    const int why = errno;
    std::remove(partial_.c_str());
    errno = why;
    failed(path_);
  }
}

}  // namespace decode
