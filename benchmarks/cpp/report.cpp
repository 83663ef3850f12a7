#include "report.h"

#include <cstdio>
#include <fstream>

#include "dense.h"

namespace restorelcc::bench {
namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out + "\"";
}

std::string json_of(const Result& r) {
  char numbers[700];
  std::snprintf(
      numbers, sizeof(numbers),
      "\"outputs\": %lld, \"inputs\": %lld, \"rows\": %lld, \"threads\": %d, \"bytes\": %lld, "
      "\"flops\": %lld, \"copies\": %lld, \"seconds\": {\"median\": %.6g, \"q1\": %.6g, \"q3\": %.6g, "
      "\"min\": %.6g, \"max\": %.6g, \"samples\": %d, \"calls_each\": %d, \"interrupted\": %d}, "
      "\"bytes_per_second\": %.6g, "
      "\"read_bytes_per_second\": %.6g, \"share\": %.4f, \"checked\": %s",
      static_cast<long long>(r.shape.outputs), static_cast<long long>(r.shape.inputs),
      static_cast<long long>(r.rows), r.threads, static_cast<long long>(r.bytes),
      static_cast<long long>(r.flops), static_cast<long long>(r.copies), r.seconds.median, r.seconds.q1,
      r.seconds.q3, r.seconds.min, r.seconds.max, r.seconds.samples, r.seconds.calls_each,
      r.seconds.interrupted, r.rate(), r.bandwidth, r.share(), r.checked ? "true" : "false");
  std::string text = "{\"name\": " + quoted(r.name) + ", \"model\": " + quoted(r.shape.model) +
                     ", \"layer\": " + quoted(r.shape.layer) + ", \"pattern\": " + quoted(r.pattern) +
                     ", \"op\": " + quoted(r.op) + ", \"dtype\": " + quoted(r.dtype) + ", " + numbers;
  if (r.dense_ratio > 0) {
    char ratio[160];
    std::snprintf(ratio, sizeof(ratio),
                  ", \"dense\": {\"seconds_ratio\": %.4f, \"share\": %.4f, \"quotable\": %s}", r.dense_ratio,
                  r.dense_share, r.quotable() ? "true" : "false");
    text += ratio;
  }
  return text + "}";
}

}  // namespace

void print_header() {
  std::printf("%-68s %10s %21s %8s %9s %7s  %s\n", "case", "median us", "IQR us", "GB/s", "share", "GFLOP/s",
              "our dense / this");
}

void print(const Result& r) {
  std::printf("%-68s %10.1f %10.1f-%-10.1f %8.2f %8.0f%% %7.1f", r.name.c_str(), 1e6 * r.seconds.median,
              1e6 * r.seconds.q1, 1e6 * r.seconds.q3, 1e-9 * r.rate(), 100 * r.share(),
              1e-9 * static_cast<double>(r.flops) / r.seconds.median);
  if (r.quotable()) {
    std::printf("  %.2f", r.dense_ratio);
  } else if (r.dense_ratio > 0) {
    std::printf("  (%.2f: not quotable, dense reaches %.0f%% of the bandwidth, %d disturbed samples)",
                r.dense_ratio, 100 * r.dense_share, r.interrupted);
  }
  if (r.seconds.interrupted > 0) {
    std::printf("  [%d of %d samples interrupted]", r.seconds.interrupted, r.seconds.samples);
  }
  std::printf("\n");
  std::fflush(stdout);
}

std::string cpu_name() {
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

bool write_json(const std::string& path, const Options& options, const std::vector<Result>& results) {
  std::ofstream stream(path);
  stream << "{\"cpu\": " << quoted(cpu_name()) << ", \"isa\": " << quoted(rlcc_isa())
         << ", \"dense_isa\": " << quoted(dense_kernels().isa) << ", \"rotate_mb\": " << options.rotate_mb
         << ", \"quick\": " << (options.quick ? "true" : "false") << ", \"build\": " << rlcc_build_info()
         << ",\n \"results\": [";
  for (size_t i = 0; i < results.size(); ++i) stream << (i == 0 ? "\n  " : ",\n  ") << json_of(results[i]);
  stream << "\n]}\n";
  stream.flush();
  return stream.good();
}

}  // namespace restorelcc::bench
