// rlcc_bench: plan the cases, build each shape's weights once, check, time in turns, report.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <map>

#include "contender.h"
#include "options.h"
#include "report.h"
#include "shapes.h"
#include "timing.h"

namespace restorelcc::bench {
namespace {

constexpr rlcc_dtype kValues[] = {RLCC_F32, RLCC_BF16, RLCC_F16, RLCC_I8};
constexpr Op kOps[] = {Op::kForward, Op::kForwardComp64, Op::kGradX, Op::kGradValues};
constexpr int32_t kThreads[] = {1, 2};
// The gradients serve training, whose rows are tokens of a batch.
constexpr int64_t kFewestGradientRows = 16;

struct Case {
  Op op;
  rlcc_dtype values;
  std::string name;
};

// What takes turns: one product, one number of threads, every selected dtype.
struct Group {
  Op op;
  int64_t rows;
  int32_t threads;
  std::string prefix;
  std::vector<Case> cases;
};

std::vector<Group> plan(const Shape& shape, const std::string& pattern, const std::vector<int64_t>& all_rows,
                        const Options& options) {
  std::vector<Group> groups;
  for (int64_t rows : all_rows) {
    for (int32_t threads : kThreads) {
      for (Op op : kOps) {
        if ((op == Op::kGradX || op == Op::kGradValues) && rows < kFewestGradientRows) continue;
        Group group{op, rows, threads, "", {}};
        group.prefix = shape.model + "/" + shape.layer + "/" + std::to_string(shape.outputs) + "x" +
                       std::to_string(shape.inputs) + "/" + pattern + "/M" + std::to_string(rows) + "/t" +
                       std::to_string(threads) + "/";
        for (rlcc_dtype values : kValues) {
          if (op == Op::kGradValues && values == RLCC_I8) continue;  // int8 values have no gradient
          const std::string name = group.prefix + name_of(op) + "/" + name_of(values);
          if (options.selects(name)) group.cases.push_back({op, values, name});
        }
        if (!group.cases.empty()) groups.push_back(group);
      }
    }
  }
  return groups;
}

// One shape and pattern: the weights in each dtype, made when first asked for.
class Weights {
 public:
  Weights(const Shape& shape, const std::string& pattern, const Options& options)
      : shape_(shape), rotate_bytes_(options.rotate_mb << 20) {
    Random random(42);
    weight_ = pruned_weight(shape, pattern, random);
  }
  const PackedCopies& packed(rlcc_dtype values) {
    auto& made = packed_[values];
    if (made == nullptr) made = std::make_unique<PackedCopies>(weight_, shape_, values, rotate_bytes_);
    return *made;
  }
  const DenseCopies& dense(rlcc_dtype values) {
    auto& made = dense_[values];
    if (made == nullptr) made = std::make_unique<DenseCopies>(weight_, packed(values), rotate_bytes_);
    return *made;
  }

 private:
  Shape shape_;
  int64_t rotate_bytes_;
  std::vector<float> weight_;
  std::map<rlcc_dtype, std::unique_ptr<PackedCopies>> packed_;
  std::map<rlcc_dtype, std::unique_ptr<DenseCopies>> dense_;
};

// Our dense rivals: one row, no compensation, and the columns that their loops take.
bool has_dense_rival(const Group& group, const Shape& shape, rlcc_dtype values) {
  return group.op == Op::kForward && group.rows == 1 && values != RLCC_F16 && shape.inputs % kScaleColumns == 0;
}

void check_all(const std::vector<Contender>& contenders, const std::string& prefix) {
  for (const Contender& contender : contenders) {
    if (contender.check == nullptr) continue;
    contender.call(0);
    const std::string difference = contender.check();
    if (!difference.empty()) {
      throw std::runtime_error(prefix + name_of(contender.op) + "/" + contender.dtype + ": " + difference);
    }
  }
}

void run_group(const Group& group, const Shape& shape, const std::string& pattern, Weights& weights,
               const Options& options, std::vector<Result>* results) {
  Pool pool(group.threads);
  const PackedCopies& read = weights.packed(group.cases[0].values);
  std::vector<Contender> contenders{read_contender(Op::kRead, read, pool),
                                    read_contender(Op::kReadInOrder, read, pool)};
  for (const Case& c : group.cases) {
    contenders.push_back(sparse_contender(group.op, weights.packed(c.values), group.rows, pool));
  }
  for (const Case& c : group.cases) {
    if (!options.dense || !has_dense_rival(group, shape, c.values)) continue;
    contenders.push_back(dense_contender(weights.dense(c.values), weights.packed(c.values), pool));
  }
  if (options.refcheck) check_all(contenders, group.prefix);
  const std::vector<Times> times = time_interleaved(contenders, pool, {options.seconds, options.repeats});

  // Both ways read the same bytes; the faster one is the bandwidth.
  const double bandwidth =
      static_cast<double>(contenders[0].bytes) / std::min(times[0].median, times[1].median);
  std::vector<Result> found;
  for (size_t i = 0; i < contenders.size(); ++i) {
    const Contender& c = contenders[i];
    const std::string suffix = c.dtype.empty() ? "" : "/" + c.dtype;
    found.push_back({group.prefix + name_of(c.op) + suffix, pattern, name_of(c.op), c.dtype, shape, group.rows,
                     group.threads, c.bytes, c.flops, c.copies, times[i],
                     options.refcheck && c.check != nullptr, bandwidth, 0, 0,
                     times[i].interrupted + std::max(times[0].interrupted, times[1].interrupted)});
  }
  for (Result& ours : found) {
    if (ours.op != "forward") continue;
    for (const Result& rival : found) {
      if (rival.op != "dense" || rival.dtype != ours.dtype) continue;
      ours.dense_ratio = rival.seconds.median / ours.seconds.median;
      ours.dense_share = rival.share();
      ours.interrupted += rival.seconds.interrupted;
    }
  }
  for (const Result& result : found) print(result);
  results->insert(results->end(), found.begin(), found.end());
}

int run(const Options& options) {
  Arena::huge_pages = options.huge_pages;
  ShapesFile file;
  std::string error;
  if (!read_shapes(options.shapes, &file, &error)) {
    std::fprintf(stderr, "rlcc_bench: %s\n", error.c_str());
    return 2;
  }
  std::vector<Result> results;
  bool any = false;
  for (const Shape& shape : file.shapes) {
    for (const std::string& pattern : file.patterns) {
      const std::vector<Group> groups = plan(shape, pattern, file.rows, options);
      if (groups.empty()) continue;
      if (options.list) {
        for (const Group& group : groups) {
          for (const Case& c : group.cases) std::printf("%s\n", c.name.c_str());
        }
      } else {
        if (!any) {
          std::printf("%s; ours %s, our dense %s; weights rotate over %lld MB or more, in %s pages%s\n",
                      cpu_name().c_str(), rlcc_isa(), dense_kernels().isa,
                      static_cast<long long>(options.rotate_mb), Arena::huge_pages ? "huge" : "small",
                      options.quick ? "; quick: not for quoting" : "");
          print_header();
        }
        Weights weights(shape, pattern, options);
        for (const Group& group : groups) {
          run_group(group, shape, pattern, weights, options, &results);
          // After each group: a run that is stopped leaves what it measured.
          if (!options.json.empty() && !write_json(options.json, options, results)) {
            std::fprintf(stderr, "rlcc_bench: cannot write '%s'\n", options.json.c_str());
            return 2;
          }
        }
      }
      any = true;
    }
  }
  if (!any) {
    std::fprintf(stderr, "rlcc_bench: no case matches; --list --all shows their names\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace restorelcc::bench

int main(int argc, char** argv) {
  restorelcc::bench::Options options;
  std::string error;
  if (!restorelcc::bench::parse_options(argc, argv, &options, &error)) {
    std::fprintf(stderr, "rlcc_bench: %s\n\n%s", error.c_str(), restorelcc::bench::kUsage);
    return 2;
  }
  if (options.help) {
    std::fputs(restorelcc::bench::kUsage, stdout);
    return 0;
  }
  try {
    return restorelcc::bench::run(options);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "rlcc_bench: %s\n", failure.what());
    return 1;
  }
}
