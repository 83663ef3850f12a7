#include "model/file_bytes.h"

#include <cerrno>
#include <cstdint>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#define RLCC_HAS_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#else
#include <filesystem>
#include <fstream>
#endif

namespace restorelcc::model {
namespace {

constexpr size_t kMostJsonBytes = size_t{64} << 20;

Status does_not_exist(const std::string& path) {
  return invalid(path, " does not exist; name the directory that `restorelcc pack` wrote, with all its files");
}

Status not_a_file(const std::string& path) {
  return invalid(path, " is not a file; copy or pack the model again");
}

Status changed(const std::string& path) {
  return invalid(path, " became shorter while it was read; open the model when it is complete");
}

#if RLCC_HAS_MMAP

Status system_refuses(const std::string& path, int error) {
  if (error == ENOMEM) return failure(RLCC_OUT_OF_MEMORY, path, " cannot be mapped: out of memory");
  return invalid(path, " cannot be read: ", std::generic_category().message(error));
}

class Descriptor {
 public:
  Descriptor() = default;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  // A regular file, opened to be read.
  Status open(const std::string& path, bool* missing, size_t* size) {
    do {  // O_NONBLOCK: to open a pipe would be to wait for its writer
      number_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    } while (number_ < 0 && errno == EINTR);
    if (number_ < 0) {
      const int error = errno;
      if (missing != nullptr) *missing = error == ENOENT;
      if (error == ENOENT) return missing != nullptr ? Status{} : does_not_exist(path);
      // What open() says of a socket, and of a device without a driver.
      return error == ENXIO || error == ENODEV ? not_a_file(path) : system_refuses(path, error);
    }
    struct stat about{};
    if (::fstat(number_, &about) != 0) return system_refuses(path, errno);
    if (!S_ISREG(about.st_mode)) return not_a_file(path);
    if (static_cast<uint64_t>(about.st_size) > SIZE_MAX / 2)
      return invalid(path, " is larger than this system maps");
    *size = static_cast<size_t>(about.st_size);
    return {};
  }

  Status read(const std::string& path, char* to, size_t bytes) const {
    for (size_t at = 0; at < bytes;) {
      const ssize_t got = ::read(number_, to + at, bytes - at);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return system_refuses(path, errno);
      if (got == 0) return changed(path);
      at += static_cast<size_t>(got);
    }
    return {};
  }

  int number() const { return number_; }

 private:
  int number_ = -1;
};

#else

class Descriptor {
 public:
  Status open(const std::string& path, bool* missing, size_t* size) {
    std::error_code error;
    const auto kind = std::filesystem::status(path, error).type();
    const bool none = kind == std::filesystem::file_type::not_found;
    if (missing != nullptr) *missing = none;
    if (none) return missing != nullptr ? Status{} : does_not_exist(path);
    if (kind != std::filesystem::file_type::regular) return not_a_file(path);
    stream_.open(path, std::ios::binary | std::ios::ate);
    const auto end = stream_.tellg();
    if (!stream_ || end < 0) return invalid(path, " cannot be read");
    if (static_cast<uint64_t>(end) > SIZE_MAX / 2) return invalid(path, " is larger than this system's memory");
    *size = static_cast<size_t>(end);
    stream_.seekg(0);
    return {};
  }

  Status read(const std::string& path, char* to, size_t bytes) {
    stream_.read(to, static_cast<std::streamsize>(bytes));
    return stream_ ? Status{} : changed(path);
  }

 private:
  std::ifstream stream_;
};

#endif

}  // namespace

FileBytes::~FileBytes() {
#if RLCC_HAS_MMAP
  if (mapped_) ::munmap(const_cast<unsigned char*>(data_), size_);
#endif
}

Status FileBytes::open(const std::string& path) {
  Descriptor descriptor;
  size_t size = 0;
  RLCC_RETURN_IF_FAILED(descriptor.open(path, nullptr, &size));
  if (size == 0) return {};
#if RLCC_HAS_MMAP
  void* const mapping = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor.number(), 0);
  if (mapping == MAP_FAILED) return system_refuses(path, errno);
  mapped_ = true;
  data_ = static_cast<const unsigned char*>(mapping);
#else
  read_.reset(new char[size + 63]);
  char* const first = read_.get() + (63 - (reinterpret_cast<uintptr_t>(read_.get()) + 63) % 64);
  RLCC_RETURN_IF_FAILED(descriptor.read(path, first, size));
  data_ = reinterpret_cast<const unsigned char*>(first);
#endif
  size_ = size;
  return {};
}

Status read_json(const std::string& path, std::string* text, Json* json, bool* missing) {
  Descriptor descriptor;
  size_t size = 0;
  RLCC_RETURN_IF_FAILED(descriptor.open(path, missing, &size));
  if (missing != nullptr && *missing) return {};
  if (size > kMostJsonBytes) {
    return invalid(path, " has ", size, " bytes, more than the ", kMostJsonBytes,
                   " of a JSON file; write it again");
  }
  text->resize(size);
  RLCC_RETURN_IF_FAILED(descriptor.read(path, text->data(), size));
  const Status status = json->parse(*text);
  if (!status.ok()) return invalid(path, " is truncated or not JSON (", status.message, "); write it again");
  if (!json->root().is(JsonKind::kObject)) return invalid(path, " holds no JSON object; write it again");
  return {};
}

}  // namespace restorelcc::model
