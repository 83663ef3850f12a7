#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#if defined(__linux__)
#include <time.h>
#include <unistd.h>
#endif

namespace decode {

Memory memory_now() {
  Memory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const auto take = [&](const char* key, int64_t* to) {
      if (line.rfind(key, 0) == 0) *to = 1024 * std::atoll(line.c_str() + std::string(key).size());
    };
    take("VmRSS:", &memory.resident);
    take("RssFile:", &memory.file);
    take("RssAnon:", &memory.anonymous);
    take("VmHWM:", &memory.peak);
  }
  return memory;
}

double waited_seconds() {
  std::error_code error;
  double nanoseconds = 0;
  bool any = false;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task", error)) {
    std::ifstream file(thread.path() / "schedstat");
    double ran = 0, waited = 0;
    if (file >> ran >> waited) {
      nanoseconds += waited;
      any = true;
    }
  }
  return any ? nanoseconds * 1e-9 : -1;
}

double seconds_since_start() {
#if defined(__linux__)
  std::ifstream stat("/proc/self/stat");
  std::string text;
  std::getline(stat, text);
  const size_t name_end = text.rfind(')');  // the name before it may hold anything
  timespec now{};
  if (name_end == std::string::npos || clock_gettime(CLOCK_BOOTTIME, &now) != 0) return -1;
  std::istringstream fields(text.substr(name_end + 1));
  std::string field;
  for (int i = 3; i <= 22 && fields >> field; ++i) {
  }
  if (!fields) return -1;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const double started = std::atof(field.c_str()) / ticks;  // field 22: since boot
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9 - started;
#else
  return -1;
#endif
}

double Report::tokens_per_second() const {
  double total = 0;
  for (const double seconds : token_seconds) total += seconds;
  return total > 0 ? static_cast<double>(token_seconds.size()) / total : -1;
}

double Report::quantile(double share) const {
  if (token_seconds.empty()) return -1;
  std::vector<double> sorted = token_seconds;
  std::sort(sorted.begin(), sorted.end());
  const double rank = std::ceil(share * static_cast<double>(sorted.size()));
  return sorted[static_cast<size_t>(std::max(rank, 1.0)) - 1];
}

std::string Report::json() const {
  std::ostringstream out;
  out.precision(6);
  const auto list = [&](const char* key, const auto& values) {
    out << "\"" << key << "\": [";
    for (size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
    out << "]";
  };
  const auto unless_negative = [&](const char* key, auto value) {
    out << "\"" << key << "\": ";
    value < 0 ? out << "null" : out << value;
  };
  out << "{";
  list("ids", ids);
  out << ", \"prompt_tokens\": " << prompt_tokens << ", \"new_tokens\": " << ids.size();
  out << ", \"threads\": " << threads << ", \"isa\": \"" << isa << "\", \"loops\": \"" << loops << "\"";
  out << ", \"activations\": \"" << activations << "\", \"cache\": \"" << cache << "\"";
  out << ", \"load_seconds\": " << load_seconds << ", ";
  unless_negative("first_token_seconds", first_token_seconds);
  out << ", ";
  unless_negative("process_start_to_first_token_seconds", start_to_first_seconds);
  out << ", ";
  unless_negative("waited_seconds", waited_seconds);
  out << ", ";
  unless_negative("tokens_per_second", tokens_per_second());
  out << ", \"token_seconds\": {";
  unless_negative("p50", quantile(0.5));
  out << ", ";
  unless_negative("p95", quantile(0.95));
  out << ", ";
  unless_negative("p99", quantile(0.99));
  out << "}, ";
  list("all_token_seconds", token_seconds);
  out << ", \"memory_bytes\": {";
  unless_negative("resident", memory.resident);
  out << ", ";
  unless_negative("file", memory.file);
  out << ", ";
  unless_negative("anonymous", memory.anonymous);
  out << ", ";
  unless_negative("peak", memory.peak);
  out << ", \"cache\": " << cache_bytes << ", \"buffers\": " << buffer_bytes << "}}";
  return out.str();
}

std::string Report::lines() const {
  std::string lines;
  const auto add = [&](const char* format, auto... values) {
    char text[256];
    std::snprintf(text, sizeof(text), format, values...);
    lines += text;
  };
  const auto megabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e6; };
  add("loaded in %.3f s", load_seconds);
  if (first_token_seconds >= 0) add(", first token after %.3f s", first_token_seconds);
  if (!token_seconds.empty()) {
    add("; then %.1f tokens/s, a token %.2f ms (p95 %.2f, p99 %.2f)", tokens_per_second(), 1e3 * quantile(0.5),
        1e3 * quantile(0.95), 1e3 * quantile(0.99));
  }
  add("; %d threads, %s\n", threads, isa.c_str());
  add("resident %.1f MB: %.1f of files, %.1f other, of which the cache is %.1f and buffers are %.1f\n",
      megabytes(memory.resident), megabytes(memory.file), megabytes(memory.anonymous), megabytes(cache_bytes),
      megabytes(buffer_bytes));
  return lines;
}

}  // namespace decode
