// decode: token ids in, token ids out, on a packed model. See README.md.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <new>
#include <vector>

#include "llama.h"
#include "logits_file.h"
#include "options.h"
#include "packed_model.h"
#include "refusal.h"
#include "report.h"
#include "tasks.h"

namespace decode {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// None where text goes on behind them.
std::vector<int64_t> end_tokens(const Options& options, const rlcc_model_config& config) {
  if (options.ignore_eos) return {};
  return {config.eos_tokens, config.eos_tokens + config.eos_token_count};
}

int64_t next_token(Llama& llama, int64_t row) {
  const int64_t id = llama.loops().largest(llama.logits(row, 1), llama.vocabulary());
  if (id < 0)
    throw std::runtime_error("the logits of position " + std::to_string(llama.position()) + " are not finite");
  return id;
}

// Feeds the prompt batch by batch; then each(row count of the batch). Returns the rows of the last batch.
template <class Each>
int64_t feed(Llama& llama, const std::vector<int64_t>& ids, const Each& each) {
  int64_t count = 0;
  for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(count)) {
    const int64_t left = static_cast<int64_t>(ids.size() - at);
    count = left < llama.batch() ? left : llama.batch();
    llama.forward(ids.data() + at, count);
    each(count);
  }
  return count;
}

void write_logits(Llama& llama, const Options& options) {
  LogitsFile file(options.logits_file);
  feed(llama, options.prompt, [&](int64_t rows) {
    for (int64_t m = 0; m < rows; m += Llama::kMostLogitRows) {
      const int64_t count = rows - m < Llama::kMostLogitRows ? rows - m : Llama::kMostLogitRows;
      file.add(llama.logits(m, count), count * llama.vocabulary());
    }
  });
  file.finish();
}

void generate(Llama& llama, const Options& options, const std::vector<int64_t>& ends, Report* report) {
  report->ids.reserve(static_cast<size_t>(options.tokens));
  report->token_seconds.reserve(static_cast<size_t>(options.tokens));
  const double begin = now();
  int64_t id = next_token(llama, feed(llama, options.prompt, [](int64_t) {}) - 1);
  report->first_token_seconds = now() - begin;
  report->start_to_first_seconds = seconds_since_start();
  report->ids.push_back(id);
  const double waited = waited_seconds();
  double last = now();
  const auto done = [&] {
    return static_cast<int64_t>(report->ids.size()) >= options.tokens ||
           std::find(ends.begin(), ends.end(), id) != ends.end();
  };
  while (!done()) {
    llama.forward(&id, 1);
    id = next_token(llama, 0);
    const double time = now();
    report->token_seconds.push_back(time - last);
    last = time;
    report->ids.push_back(id);
  }
  if (waited >= 0) report->waited_seconds = waited_seconds() - waited;
}

// A write that failed before the last one is known to ferror() alone.
void flush_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw std::runtime_error("standard output cannot be written");
  }
}

void print(const Options& options, const Report& report) {
  if (options.json) {
    std::printf("%s\n", report.json().c_str());
  } else {
    for (size_t i = 0; i < report.ids.size(); ++i) {
      std::printf("%s%lld", i == 0 ? "" : ",", static_cast<long long>(report.ids[i]));
    }
    if (!report.ids.empty()) std::printf("\n");
    std::fprintf(stderr, "%s", report.lines().c_str());
  }
  flush_output();
}

int run(int count, const char* const* words) {
  const Options options = parse_options(count, words);
  if (options.help) {
    std::printf("%s", kUsage);
    flush_output();
    return 0;
  }
  const double begin = now();
  if (options.threads > 0) check(rlcc_set_num_threads(options.threads));
  PackedModel model(options.model);
  Llama llama(model, options.settings);
  const std::vector<int64_t> ends = end_tokens(options, model.config());
  if (options.settings.huge_pages) model.close();
  // The threads start here, not in the first token.
  over(rlcc_get_num_threads(), INT64_MAX, [](int64_t, int64_t) {});
  Report report;
  report.load_seconds = now() - begin;
  report.prompt_tokens = static_cast<int64_t>(options.prompt.size());
  report.threads = rlcc_get_num_threads();
  report.isa = rlcc_isa();
  report.loops = llama.loops().isa;
  report.activations = llama.activations() == RLCC_BF16 ? "bf16" : "fp32";
  report.cache = llama.cache_type() == RLCC_BF16 ? "bf16" : "fp32";
  report.cache_bytes = llama.cache_bytes();
  report.buffer_bytes = llama.buffer_bytes();
  if (options.logits_file.empty()) {
    generate(llama, options, ends, &report);
  } else {
    write_logits(llama, options);
  }
  report.memory = memory_now();
  print(options, report);
  return 0;
}

}  // namespace
}  // namespace decode

int main(int count, char** words) {
  try {
    return decode::run(count, words);
  } catch (const decode::Refusal& refusal) {
    std::fprintf(stderr, "decode: %s\n", refusal.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(
        stderr,
        "decode: out of memory; the cache has room for the prompt and --tokens, the buffers for --batch: "
        "give less of them\n");
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "decode: %s\n", error.what());
    return 1;
  }
}
