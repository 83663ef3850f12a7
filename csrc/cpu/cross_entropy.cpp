// linear_cross_entropy and head_contrast: blocks of rows, chunks of the vocabulary, threads.
//
// What is held beside inputs and outputs, whatever M and V, for blocks of at most kRowBlock rows of E columns:
//   forward             the rows packed (kRowBlock E), per thread kGroupColumns of their logits
//   with a gradient     the rows packed, a chunk of their logits and of their exponentials, their sums [E] in
//   fp32
// No bit depends on the number of threads: how the vocabulary is cut depends on the shape alone.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/aligned_bytes.h"
#include "core/parallel.h"
#include "cpu/ops.h"
#include "cpu/registry.h"
#include "sparse/layout.h"

namespace restorelcc::cpu {
namespace {

using Kernel = linear_cross_entropy_panel_kernel;

constexpr int64_t kRowBlock = 516;      // as sparse_linear's: a multiple of every tile_rows (4, 6, 12)
constexpr int64_t kGroupColumns = 128;  // whose logits stay in the second-level cache: 516 x 128 x 4 = 258 KiB
constexpr int64_t kMostItems = 64;      // parts of the vocabulary with a state of their own
constexpr int64_t kChunkLogits = 262144;  // logits held at once where their exponentials are multiplied again
constexpr int64_t kLeastChunk = 512, kMostChunk = 8192;  // columns of such a chunk
constexpr int64_t kMinimumChunk = int64_t{1} << 17;      // multiply-adds worth waking a thread for

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
int64_t grain_of(int64_t work) { return std::max<int64_t>(kMinimumChunk / std::max<int64_t>(work, 1), 1); }

// Rows that count, as offsets into h, and their labels (-1: only lse is wanted).
struct CountedRows {
  std::vector<int64_t> rows, offsets, labels;

  int64_t count() const { return static_cast<int64_t>(rows.size()); }
  void add(int64_t row, int64_t offset, int64_t label) {
    rows.push_back(row);
    offsets.push_back(offset);
    labels.push_back(label);
  }
};

struct Engine {
  const Kernel& kernel;
  const rlcc_language_head& head;
  const rlcc_parallel* parallel;

  Engine(const rlcc_language_head& h, const rlcc_parallel* threads, Isa isa)
      : kernel(linear_cross_entropy_panel(h.dtype, h.dtype == RLCC_BF16 ? isa_for_bf16_pairs(isa) : isa)),
        head(h),
        parallel(threads) {}

  // Rows a block: blocks of equal size rather than full ones and a rest.
  int64_t block_rows(int64_t rows) const {
    return rows == 0 ? 0 : round_up(divide_up(rows, divide_up(rows, kRowBlock)), kernel.tile_rows);
  }
  int64_t tiles(int64_t rows) const { return divide_up(rows, kernel.tile_rows); }
  int64_t column_panels() const { return divide_up(head.columns, kernel.panel_columns); }
  // Columns a chunk where logits are multiplied again: many for few rows.
  int64_t chunk_columns(int64_t rows) const {
    const int64_t wanted = std::clamp(kChunkLogits / std::max<int64_t>(rows, 1), kLeastChunk, kMostChunk);
    return round_up(std::min(wanted, std::max<int64_t>(head.vocabulary, 1)), kernel.panel_columns);
  }

  CrossEntropyJob job(const void* h, const CountedRows& counted, int64_t begin, int64_t rows,
                      char* h_tiles) const {
    CrossEntropyJob job{};
    job.dtype = head.dtype;
    job.weight = {head.weight, head.weight_stride, nullptr, head.vocabulary, head.columns};
    job.bias = head.bias;
    job.h = {h, 0, counted.offsets.data() + begin, rows, head.columns};
    job.labels = counted.labels.data() + begin;
    job.h_tiles = h_tiles;
    job.logit_rows = round_up(rows, kernel.tile_rows);
    return job;
  }

  template <class Run>
  void over_tiles(const CrossEntropyJob& job, int64_t row_work, Run run) const {
    parallel_for(parallel, tiles(job.h.rows), grain_of(kernel.tile_rows * row_work), run);
  }
  void pack(const CrossEntropyJob& job) const {
    if (head.columns == 0) return;  // then h may be null
    over_tiles(job, head.columns, [&](int64_t begin, int64_t end) { kernel.pack(job, begin, end); });
  }
  // Work on panels [0, panels), each of `work` multiply-adds, with scratch.
  template <class Run>
  void over_panels(ScratchSlots& slots, int64_t panels, int64_t work, Run run) const {
    parallel_for(parallel, panels, grain_of(work), [&](int64_t begin, int64_t end) {
      const ScratchSlots::Lease scratch(slots);
      run(begin, end, scratch.bytes());
    });
  }
  void logits(const CrossEntropyJob& job, ScratchSlots& slots) const {
    over_panels(slots, divide_up(job.count, kernel.panel_columns),
                job.h.rows * head.columns * kernel.panel_columns,
                [&](int64_t begin, int64_t end, char* scratch) { kernel.run(job, begin, end, scratch); });
  }
};

// nll and lse of a row from its state; see CrossEntropyJob.
void losses(float max, double sum, float label_logit, bool labelled, float* nll, float* lse) {
  const double others = double{max} + std::log(sum);
  if (!labelled) {  // -infinity: every logit is, and a softmax of nothing is no number
    *lse = others == -std::numeric_limits<double>::infinity() ? std::nanf("") : static_cast<float>(others);
    *nll = 0;
    return;
  }
  const double ahead = others - label_logit;  // of the label's logit
  const double loss = label_logit == std::numeric_limits<float>::infinity() ? std::nan("")
                      : ahead > 40                                          ? ahead
                                                                            : std::log1p(std::exp(ahead));
  *nll = static_cast<float>(loss);
  *lse = static_cast<float>(ahead > 0 ? others + std::log1p(std::exp(-ahead)) : label_logit + loss);
}

// The forward pass of one block; each part of the vocabulary has a state of its own, merged in order at the
// end.
class ForwardBlocks {
 public:
  ForwardBlocks(const Engine& engine, int64_t block_rows)
      : engine_(engine),
        rows_(block_rows),
        columns_(round_up(std::max<int64_t>(divide_up(engine.head.vocabulary, kMostItems), 8 * kGroupColumns),
                          kGroupColumns)),
        items_(std::max<int64_t>(divide_up(engine.head.vocabulary, columns_), 1)),
        h_tiles_(engine.tiles(block_rows) * engine.kernel.tile_bytes(engine.head.columns)),
        slots_(parallel_threads(engine.parallel),
               round_up(engine.kernel.scratch_bytes, 64) + block_rows * kGroupColumns * 4),
        max_(static_cast<size_t>(items_ * block_rows)),
        sum_(max_.size()),
        label_logit_(static_cast<size_t>(block_rows)) {}

  // Of rows [begin, begin + rows) of `counted`; nll and lse [rows].
  void run(const void* h, const CountedRows& counted, int64_t begin, int64_t rows, float* nll, float* lse) {
    CrossEntropyJob job = engine_.job(h, counted, begin, rows, h_tiles_.get());
    job.label_logit = label_logit_.data();
    engine_.pack(job);
    std::fill(max_.begin(), max_.end(), -std::numeric_limits<float>::infinity());
    std::fill(sum_.begin(), sum_.end(), 0.0f);
    const int64_t work = rows * engine_.head.columns * columns_;
    engine_.over_panels(slots_, items_, work, [&](int64_t item, int64_t end, char* scratch) {
      for (; item < end; ++item) part(job, item, scratch);
    });
    engine_.over_tiles(job, 100 * items_, [&](int64_t tile, int64_t end) {
      const int64_t last = std::min(end * engine_.kernel.tile_rows, rows);
      for (int64_t row = tile * engine_.kernel.tile_rows; row < last; ++row)
        merge(job, row, nll + row, lse + row);
    });
  }

 private:
  void part(CrossEntropyJob job, int64_t item, char* scratch) {
    job.max = max_.data() + item * rows_;
    job.sum = sum_.data() + item * rows_;
    job.logits = reinterpret_cast<float*>(scratch + round_up(engine_.kernel.scratch_bytes, 64));
    const int64_t end = std::min((item + 1) * columns_, engine_.head.vocabulary);
    for (job.first = item * columns_; job.first < end; job.first += kGroupColumns) {
      job.count = std::min(kGroupColumns, end - job.first);
      engine_.kernel.run(job, 0, divide_up(job.count, engine_.kernel.panel_columns), scratch);
      engine_.kernel.add_to_state(job, 0, job.h.rows);
    }
  }

  void merge(const CrossEntropyJob& job, int64_t row, float* nll, float* lse) const {
    float most = -std::numeric_limits<float>::infinity();
    for (int64_t item = 0; item < items_; ++item) most = std::max(most, max_[index(item, row)]);
    double sum = 0;
    for (int64_t item = 0; item < items_; ++item) {
      const float max = max_[index(item, row)];
      // A part without any finite logit says so by its max, and has a sum of next to nothing.
      const double shrink = max == most ? 1 : std::exp(double{max} - most);
      sum += shrink * sum_[index(item, row)];
    }
    losses(most, sum, label_logit_[static_cast<size_t>(row)], job.labels[row] >= 0, nll, lse);
  }
  size_t index(int64_t item, int64_t row) const { return static_cast<size_t>(item * rows_ + row); }

  const Engine& engine_;
  const int64_t rows_, columns_, items_;
  AlignedBytes h_tiles_;
  ScratchSlots slots_;
  std::vector<float> max_, sum_, label_logit_;
};

// What the passes that multiply logits again hold: a chunk of them, and the sums [E] of a block's rows.
struct ChunkBuffers {
  int64_t columns;  // of a chunk
  AlignedBytes h_tiles, logits, weight_tiles, products;
  int64_t product_floats;
  ScratchSlots slots;

  ChunkBuffers(const Engine& e, int64_t block_rows, int64_t product_rows, int64_t weight_tile_bytes)
      : columns(e.chunk_columns(block_rows)),
        h_tiles(e.tiles(block_rows) * e.kernel.tile_bytes(e.head.columns)),
        logits(block_rows * columns * 4),
        weight_tiles(weight_tile_bytes),
        products(e.column_panels() * product_rows * e.kernel.panel_columns * 4),
        product_floats(e.column_panels() * product_rows * e.kernel.panel_columns),
        slots(parallel_threads(e.parallel), e.kernel.scratch_bytes) {}

  void attach(CrossEntropyJob& job) const {
    job.logits = logits.floats();
    job.weight_tiles = weight_tiles.get();
    job.products = products.floats();
  }
};

// Weight tiles of the pass that sums over the vocabulary.
int64_t row_tile_bytes(const Engine& e, int64_t block_rows) {
  return e.tiles(block_rows) * e.kernel.tile_bytes(e.chunk_columns(block_rows));
}

// For each chunk of the vocabulary: logits, what `turn` makes of them, and products += that W.
template <class Turn>
void sum_over_vocabulary(const Engine& e, CrossEntropyJob& job, ChunkBuffers& buffers, Turn turn) {
  std::fill_n(buffers.products.floats(), buffers.product_floats, 0.0f);
  e.pack(job);
  for (job.first = 0; job.first < e.head.vocabulary; job.first += buffers.columns) {
    job.count = std::min(buffers.columns, e.head.vocabulary - job.first);
    e.logits(job, buffers.slots);
    e.over_tiles(job, 16 * job.count, [&](int64_t begin, int64_t end) { turn(job, begin, end); });
    e.over_panels(
        buffers.slots, e.column_panels(), job.h.rows * job.count * e.kernel.panel_columns,
        [&](int64_t begin, int64_t end, char* scratch) { e.kernel.gradient(job, begin, end, scratch); });
  }
}

// A row of [M, E] of the head's dtype.
char* row_of(void* data, int64_t row, int64_t stride, rlcc_dtype dtype) {
  return static_cast<char*>(data) + row * stride * bytes_of(dtype);
}

// nll, lse and the gradient of h in one pass; the exponentials' reference is the row's maximum so far.
void forward_with_gradient(const Engine& e, const rlcc_linear_cross_entropy_params& p,
                           const CountedRows& counted) {
  const int64_t block = e.block_rows(counted.count());
  ChunkBuffers buffers(e, block, block, row_tile_bytes(e, block));
  std::vector<float> max(static_cast<size_t>(block)), sum(max), label_logit(max);
  for (int64_t begin = 0; begin < counted.count(); begin += block) {
    const int64_t rows = std::min(block, counted.count() - begin);
    CrossEntropyJob job = e.job(p.h, counted, begin, rows, buffers.h_tiles.get());
    buffers.attach(job);
    std::fill(max.begin(), max.end(), -std::numeric_limits<float>::infinity());
    std::fill(sum.begin(), sum.end(), 0.0f);
    job.max = max.data();
    job.sum = sum.data();
    job.label_logit = label_logit.data();
    sum_over_vocabulary(e, job, buffers, e.kernel.exponentials);
    e.over_tiles(job, e.head.columns, [&](int64_t tile, int64_t end) {
      const int64_t last = std::min(end * e.kernel.tile_rows, rows);
      for (int64_t i = tile * e.kernel.tile_rows; i < last; ++i) {
        const int64_t row = counted.rows[static_cast<size_t>(begin + i)], label = job.labels[i];
        float lse = 0;
        losses(max[i], sum[i], label_logit[i], label >= 0, p.nll + row, p.lse != nullptr ? p.lse + row : &lse);
        if (label < 0) continue;
        // softmax of the others = exponentials / total; of the label, less 1: -sum / total, nothing cancels.
        const double reference = max[i] == -std::numeric_limits<float>::infinity() ? 0 : max[i];
        const double total = sum[i] + std::exp(label_logit[i] - reference);
        e.kernel.finish(job, job.logit_rows, i, static_cast<float>(1 / total),
                        static_cast<float>(-sum[i] / total), label,
                        row_of(p.grad_h, row, p.grad_h_stride, e.head.dtype));
      }
    });
  }
}

CountedRows counted_rows(const int64_t* labels, int64_t rows, int64_t stride, int64_t ignore_index, bool all) {
  CountedRows counted;
  for (int64_t m = 0; m < rows; ++m) {
    const bool ignored = labels[m] == ignore_index;
    if (all || !ignored) counted.add(m, m * stride, ignored ? -1 : labels[m]);
  }
  return counted;
}

void zero_row(void* data, int64_t row, int64_t columns, int64_t stride, rlcc_dtype dtype) {
  std::fill_n(row_of(data, row, stride, dtype), columns * bytes_of(dtype), char{0});
}

void backward_of_h(const Engine& e, const rlcc_linear_cross_entropy_backward_params& p,
                   const CountedRows& counted, const std::vector<float>& lse,
                   const std::vector<float>& grad_nll, ChunkBuffers& buffers) {
  const int64_t block = e.block_rows(counted.count());
  for (int64_t begin = 0; begin < counted.count(); begin += block) {
    CrossEntropyJob job =
        e.job(p.h, counted, begin, std::min(block, counted.count() - begin), buffers.h_tiles.get());
    buffers.attach(job);
    job.lse = lse.data() + begin;
    job.grad_nll = grad_nll.data() + begin;
    sum_over_vocabulary(e, job, buffers, e.kernel.logit_gradients);
    e.over_tiles(job, e.head.columns, [&](int64_t tile, int64_t end) {
      const int64_t last = std::min(end * e.kernel.tile_rows, job.h.rows);
      for (int64_t i = tile * e.kernel.tile_rows; i < last; ++i) {
        const int64_t row = counted.rows[static_cast<size_t>(begin + i)];
        e.kernel.finish(job, job.logit_rows, i, 1, 0, -1, row_of(p.grad_h, row, p.grad_h_stride, e.head.dtype));
      }
    });
  }
}

// Chunk by chunk of the vocabulary, whose sums [chunk, E] take in one block of rows after the other.
void backward_of_head(const Engine& e, const rlcc_linear_cross_entropy_backward_params& p,
                      const CountedRows& counted, const std::vector<float>& lse,
                      const std::vector<float>& grad_nll, ChunkBuffers& buffers) {
  const int64_t block = e.block_rows(counted.count()), chunk = buffers.columns;
  std::vector<double> bias(static_cast<size_t>(chunk));
  for (int64_t first = 0; first < e.head.vocabulary; first += chunk) {
    CrossEntropyJob job = e.job(p.h, counted, 0, 0, buffers.h_tiles.get());
    std::fill_n(buffers.products.floats(), buffers.product_floats, 0.0f);
    std::fill(bias.begin(), bias.end(), 0.0);
    const int64_t count = std::min(chunk, e.head.vocabulary - first), vocabulary_tiles = e.tiles(count);
    const int64_t stride = vocabulary_tiles * e.kernel.tile_rows;
    for (int64_t begin = 0; begin < counted.count(); begin += block) {
      job = e.job(p.h, counted, begin, std::min(block, counted.count() - begin), buffers.h_tiles.get());
      buffers.attach(job);
      job.first = first;
      job.count = count;
      job.lse = lse.data() + begin;
      job.grad_nll = grad_nll.data() + begin;
      e.pack(job);
      e.logits(job, buffers.slots);
      CrossEntropyJob kept = job;  // as logits alone: packed the other way round below
      kept.weight_tiles = nullptr;
      e.over_tiles(kept, 16 * count,
                   [&](int64_t tile, int64_t end) { e.kernel.logit_gradients(kept, tile, end); });
      if (p.grad_bias != nullptr) {
        for (int64_t m = 0; m < job.h.rows; ++m) {
          for (int64_t v = 0; v < count; ++v) {
            const int64_t panel = v / e.kernel.panel_columns, place = v % e.kernel.panel_columns;
            bias[static_cast<size_t>(v)] +=
                job.logits[(panel * job.logit_rows + m) * e.kernel.panel_columns + place];
          }
        }
      }
      if (p.grad_weight == nullptr) continue;
      parallel_for(e.parallel, vocabulary_tiles, grain_of(e.kernel.tile_rows * job.h.rows),
                   [&](int64_t tile, int64_t end) { e.kernel.pack_transposed(job, tile, end); });
      e.over_panels(buffers.slots, e.column_panels(), job.h.rows * count * e.kernel.panel_columns,
                    [&](int64_t panel, int64_t end, char* scratch) {
                      e.kernel.weight_gradient(job, panel, end, scratch);
                    });
    }
    buffers.attach(job);
    for (int64_t v = 0; v < count; ++v) {
      if (p.grad_bias != nullptr) p.grad_bias[first + v] = static_cast<float>(bias[static_cast<size_t>(v)]);
      if (p.grad_weight == nullptr) continue;
      e.kernel.finish(job, stride, v, 1, 0, -1,
                      row_of(p.grad_weight, first + v, p.grad_weight_stride, e.head.dtype));
    }
  }
}

}  // namespace

void linear_cross_entropy(const rlcc_linear_cross_entropy_params& p, Isa isa) {
  const Engine engine(p.head, p.parallel, isa);
  const CountedRows counted = counted_rows(p.labels, p.rows, p.h_stride, p.ignore_index, p.lse != nullptr);
  if (p.grad_h != nullptr) {
    forward_with_gradient(engine, p, counted);
  } else {
    const int64_t block = engine.block_rows(counted.count());
    ForwardBlocks blocks(engine, block);
    std::vector<float> nll(static_cast<size_t>(block)), lse(nll);
    for (int64_t begin = 0; begin < counted.count(); begin += block) {
      const int64_t rows = std::min(block, counted.count() - begin);
      blocks.run(p.h, counted, begin, rows, nll.data(), lse.data());
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t row = counted.rows[static_cast<size_t>(begin + i)];
        p.nll[row] = nll[static_cast<size_t>(i)];
        if (p.lse != nullptr) p.lse[row] = lse[static_cast<size_t>(i)];
      }
    }
  }
  for (int64_t m = 0; m < p.rows; ++m) {
    if (p.labels[m] != p.ignore_index) continue;
    p.nll[m] = 0;
    if (p.grad_h != nullptr) zero_row(p.grad_h, m, p.head.columns, p.grad_h_stride, p.head.dtype);
  }
}

void linear_cross_entropy_backward(const rlcc_linear_cross_entropy_backward_params& p, Isa isa) {
  const Engine engine(p.head, p.parallel, isa);
  const CountedRows counted = counted_rows(p.labels, p.rows, p.h_stride, p.ignore_index, false);
  std::vector<float> lse, grad_nll;
  for (const int64_t row : counted.rows) {
    lse.push_back(p.lse[row]);
    grad_nll.push_back(p.grad_nll[row]);
  }
  const bool of_head = p.grad_weight != nullptr || p.grad_bias != nullptr, of_h = p.grad_h != nullptr;
  const int64_t block = engine.block_rows(counted.count()), chunk = engine.chunk_columns(block);
  // One set for both passes, so that it is there before the first of them writes.
  ChunkBuffers buffers(engine, block,
                       std::max(of_h ? block : 0, of_head ? round_up(chunk, engine.kernel.tile_rows) : 0),
                       std::max(of_h ? row_tile_bytes(engine, block) : 0,
                                of_head ? engine.tiles(chunk) * engine.kernel.tile_bytes(block) : 0));
  if (of_head) backward_of_head(engine, p, counted, lse, grad_nll, buffers);
  if (!of_h) return;
  backward_of_h(engine, p, counted, lse, grad_nll, buffers);
  for (int64_t m = 0; m < p.rows; ++m) {
    if (p.labels[m] == p.ignore_index) zero_row(p.grad_h, m, p.head.columns, p.grad_h_stride, p.head.dtype);
  }
}

void head_contrast(const rlcc_head_contrast_params& p, Isa isa) {
  const Engine engine(p.head, p.parallel, isa);
  const auto weight = [&](int64_t m) { return p.weights != nullptr ? double{p.weights[m]} : 1.0; };
  const auto segment = [&](int64_t m) { return p.segments != nullptr ? p.segments[m] : 0; };
  CountedRows counted;
  std::vector<double> totals(static_cast<size_t>(p.segment_count));
  for (int64_t g = 0; g < std::max<int64_t>(p.groups, 1); ++g) {
    for (int64_t m = 0; m < p.rows; ++m) {
      if (p.labels[m] == p.ignore_index || weight(m) == 0 || segment(m) < 0) continue;
      if (g == 0) totals[static_cast<size_t>(segment(m))] += weight(m);
      if (g < p.groups) counted.add(g * p.rows + m, g * p.group_stride + m * p.h_stride, p.labels[m]);
    }
  }
  const int64_t block = engine.block_rows(counted.count());
  ForwardBlocks blocks(engine, block);
  std::vector<float> nll(static_cast<size_t>(block)), lse(nll);
  std::vector<double> sums(static_cast<size_t>(p.groups * p.segment_count));
  for (int64_t begin = 0; begin < counted.count(); begin += block) {
    const int64_t rows = std::min(block, counted.count() - begin);
    blocks.run(p.h, counted, begin, rows, nll.data(), lse.data());
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = counted.rows[static_cast<size_t>(begin + i)], g = row / p.rows, m = row % p.rows;
      sums[static_cast<size_t>(g * p.segment_count + segment(m))] +=
          weight(m) * (double{nll[static_cast<size_t>(i)]} - p.base_nll[m]);
    }
  }
  for (int64_t i = 0; i < p.groups * p.segment_count; ++i) {
    p.contrast[i] = sums[static_cast<size_t>(i)] / totals[static_cast<size_t>(i % p.segment_count)];
  }
}

}  // namespace restorelcc::cpu
