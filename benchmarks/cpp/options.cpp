#include "options.h"

#include <cstdlib>

namespace restorelcc::bench {

const char kUsage[] =
    R"(rlcc_bench: sparse_linear and its gradients on cold weights, against our own dense GEMV and the read bandwidth.

  --filter REGEX   only cases whose name matches; repeatable, all must match (ECMAScript, searched anywhere)
                   names: MODEL/LAYER/NxK/PATTERN/M<rows>/t<threads>/OP/DTYPE, OP one of
                   forward, forward_comp64, grad_x, grad_values; DTYPE one of fp32, bf16, fp16, int8
                   without any: Llama-2-7B q_proj and gate_up_proj at half the weights, forward, M 1, 16, 256
  --all            every case of the shapes file (many hours)
  --quick          smaller rotation and fewer samples; for looking, not for quoting; what follows it overrides
  --list           print the selected names and exit
  --refcheck       compare each result with rlcc_*_reference before timing it; a difference ends the run
  --no-dense       leave our dense GEMV out
  --huge-pages     weights in pages of 2 MiB, where the system offers them (Linux: transparent huge pages)
  --rotate-mb MB   distinct weights behind each contender, at least (default 256): no call finds its weight in a cache
  --seconds S      measured time of one contender, about (default 0.4)
  --repeats R      samples of each contender at most, 5 at least (default 25); contenders take turns
  --json FILE      write everything measured
  --shapes FILE    layer shapes (default: the file of the source tree)
  --help
)";

namespace {

bool number(const std::string& text, double low, double high, double* value) {
  char* end = nullptr;
  *value = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0' && *value >= low && *value <= high;
}

}  // namespace

bool Options::selects(const std::string& case_name) const {
  for (const std::regex& filter : compiled) {
    if (!std::regex_search(case_name, filter)) return false;
  }
  return true;
}

bool parse_options(int argc, char** argv, Options* options, std::string* error) {
  Options& o = *options;
  o.shapes = RLCC_BENCH_SHAPES;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      o.help = true;
    } else if (name == "--all") {
      o.all = true;
    } else if (name == "--quick") {
      o.quick = true;
      o.seconds = 0.05;
      o.repeats = 7;
      o.rotate_mb = 64;
    } else if (name == "--list") {
      o.list = true;
    } else if (name == "--refcheck") {
      o.refcheck = true;
    } else if (name == "--huge-pages") {
      o.huge_pages = true;
    } else if (name == "--no-dense") {
      o.dense = false;
    } else if (name == "--filter" || name == "--json" || name == "--shapes" || name == "--rotate-mb" ||
               name == "--seconds" || name == "--repeats") {
      if (i + 1 == argc) {
        *error = name + " needs a value";
        return false;
      }
      const std::string value = argv[++i];
      double parsed = 0;
      if (name == "--filter") {
        o.filters.push_back(value);
      } else if (name == "--json") {
        o.json = value;
      } else if (name == "--shapes") {
        o.shapes = value;
      } else if (name == "--rotate-mb" ? !number(value, 1, 1 << 16, &parsed)
                 : name == "--seconds" ? !number(value, 0.001, 600, &parsed)
                                       : !number(value, 5, 100000, &parsed)) {
        *error = name + " is '" + value + "'; see --help for its range";
        return false;
      } else if (name == "--rotate-mb") {
        o.rotate_mb = static_cast<int64_t>(parsed);
      } else if (name == "--seconds") {
        o.seconds = parsed;
      } else {
        o.repeats = static_cast<int32_t>(parsed);
      }
    } else {
      *error = "unknown argument '" + name + "'";
      return false;
    }
  }
  if (o.filters.empty() && !o.all) {
    o.filters = {"^Llama-2-7B/(q|gate_up)_proj/", "/0\\.5/M(1|16|256)/", "/forward/"};
  }
  for (const std::string& filter : o.filters) {
    try {
      o.compiled.emplace_back(filter);
    } catch (const std::regex_error&) {
      *error = "--filter '" + filter + "' is no regular expression";
      return false;
    }
  }
  return true;
}

}  // namespace restorelcc::bench
