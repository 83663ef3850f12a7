// Garbled inputs through the library. Each mutation has a generator of its own, seeded with
// its number, so one can be repeated alone.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "subject.h"

// Of the sanitizers' runtime, where there is one.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace restorelcc::fuzz {
namespace {

constexpr char kUsage[] =
    R"(
  --mutations N       how many (default 20000)
  --seed S            of the mutations (default 1)
  --from I            number of the first (default 0); with --mutations 1, repeats one
  --corpus DIR        start from these files, beside the built-in ones
  --known DIR         run these files too; a name begins with what comes of it: accepted_ or refused_
  --write-corpus DIR  write the built-in inputs there and exit
  --replay FILE       run one input and exit
  --save FILE         where the input that fails goes (default PROGRAM_failure.bin)
  --help
)";

struct Options {
  uint64_t mutations = 20000, seed = 1, from = 0;
  std::string corpus, known, write_corpus, replay, save = std::string(kProgram) + "_failure.bin";
};

// What is running, for the sanitizer's last words.
struct Current {
  uint64_t seed = 0, number = 0;
  const Bytes* bytes = nullptr;
  std::string save;
} current;

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream stream(path, std::ios::binary);
  stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!stream) std::fprintf(stderr, "%s: cannot write '%s'\n", kProgram, path.c_str());
}

Bytes read_file(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(stream), {});
}

void say_where() {
  if (current.bytes == nullptr) return;
  write_file(current.save, *current.bytes);
  std::fprintf(stderr, "%s: the input is in %s; again: --replay %s, or --seed %llu --from %llu --mutations 1\n",
               kProgram, current.save.c_str(), current.save.c_str(),
               static_cast<unsigned long long>(current.seed), static_cast<unsigned long long>(current.number));
}

bool parse_options(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s: '%s' is unknown, or lacks its value\n\n%s", kProgram, argv[i], kUsage);
      return false;
    }
    const char* value = argv[++i];
    char* end = nullptr;
    const uint64_t number = std::strtoull(value, &end, 10);
    const bool is_number = *value != '\0' && *end == '\0';
    if (name == "--mutations" && is_number) {
      options->mutations = number;
    } else if (name == "--seed" && is_number) {
      options->seed = number;
    } else if (name == "--from" && is_number) {
      options->from = number;
    } else if (name == "--corpus") {
      options->corpus = value;
    } else if (name == "--known") {
      options->known = value;
    } else if (name == "--write-corpus") {
      options->write_corpus = value;
    } else if (name == "--replay") {
      options->replay = value;
    } else if (name == "--save") {
      options->save = value;
    } else {
      std::fprintf(stderr, "%s: '%s %s' is not understood\n\n%s", kProgram, name.c_str(), value, kUsage);
      return false;
    }
  }
  return true;
}

// False where the input failed; says so.
bool run(const Bytes& bytes, uint64_t seed, uint64_t number, Outcome* outcome) {
  current.seed = seed;
  current.number = number;
  current.bytes = &bytes;
  std::string failure;
  *outcome = run_input(bytes, &failure);
  if (!failure.empty()) {
    std::fprintf(stderr, "%s: FAILED: %s\n", kProgram, failure.c_str());
    say_where();
  }
  current.bytes = nullptr;
  return failure.empty();
}

constexpr const char* kOutcomes[] = {"no input", "too large", "refused", "accepted"};

// Inputs that were found at some time.
bool run_known(const Options& options) {
  Outcome outcome{};
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options.known)) {
    const std::string name = entry.path().filename().string();
    if (!run(read_file(entry.path()), options.seed, 0, &outcome)) return false;
    const std::string is = kOutcomes[static_cast<int>(outcome)];
    if (name.compare(0, is.size() + 1, is + "_") != 0) {
      std::fprintf(stderr, "%s: FAILED: %s is %s\n", kProgram, name.c_str(), is.c_str());
      return false;
    }
    ++count;
  }
  std::printf("%s: %zu known inputs\n", kProgram, count);
  return count > 0;
}

int fuzz(const Options& options) {
  if (!options.known.empty() && !run_known(options)) return 1;
  std::vector<Seed> all = seeds();
  if (!options.corpus.empty()) {
    for (const auto& entry : std::filesystem::directory_iterator(options.corpus)) {
      all.push_back({entry.path().filename().string(), read_file(entry.path())});
    }
  }
  Outcome outcome{};
  for (const Seed& seed : all) {
    if (!run(seed.bytes, options.seed, 0, &outcome)) return 1;
    if (outcome != Outcome::kAccepted) {
      std::fprintf(stderr, "%s: FAILED: %s is not accepted as it is\n", kProgram, seed.name.c_str());
      return 1;
    }
  }
  unsigned long long counts[4] = {};
  for (uint64_t i = options.from; i < options.from + options.mutations; ++i) {
    std::mt19937_64 random(options.seed * 0x9e3779b97f4a7c15u + i);
    const Bytes bytes = mutate(all[random() % all.size()].bytes, random);
    if (!run(bytes, options.seed, i, &outcome)) return 1;
    ++counts[static_cast<int>(outcome)];
  }
  std::printf("%s: %zu seeds, %llu mutations: %llu accepted, %llu refused, %llu no input, %llu too large\n",
              kProgram, all.size(), static_cast<unsigned long long>(options.mutations), counts[3], counts[2],
              counts[0], counts[1]);
  // A mutator that breaks everything would test the refusals alone.
  const bool both = counts[3] * 20 >= options.mutations && counts[2] * 20 >= options.mutations;
  if (options.mutations >= 1000 && !both) {
    std::fprintf(stderr, "%s: FAILED: less than a twentieth accepted, or refused\n", kProgram);
    return 1;
  }
  return 0;
}

int run_program(const Options& options) {
  current.save = options.save;
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_where);
  if (!options.write_corpus.empty()) {
    std::filesystem::create_directories(options.write_corpus);
    for (const Seed& seed : seeds()) write_file(options.write_corpus + "/" + seed.name + ".bin", seed.bytes);
    return 0;
  }
  if (options.replay.empty()) return fuzz(options);
  Outcome outcome{};
  const bool passed = run(read_file(options.replay), 0, 0, &outcome);
  std::printf("%s: %s\n", kProgram, kOutcomes[static_cast<int>(outcome)]);
  return passed ? 0 : 1;
}

}  // namespace
}  // namespace restorelcc::fuzz

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
    std::printf("%s: %s\n%s", restorelcc::fuzz::kProgram, restorelcc::fuzz::kAbout, restorelcc::fuzz::kUsage);
    return 0;
  }
  restorelcc::fuzz::Options options;
  if (!restorelcc::fuzz::parse_options(argc, argv, &options)) return 2;
  try {
    return restorelcc::fuzz::run_program(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", restorelcc::fuzz::kProgram, error.what());
    return 2;
  }
}
