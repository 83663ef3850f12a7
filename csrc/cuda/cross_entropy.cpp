// linear_cross_entropy, its gradient and head_contrast: their steps in order, and what lies where in the
// workspace.
#include "cuda/cross_entropy_ops.h"

#include <algorithm>

namespace restorelcc::cuda {
namespace {

// Hands out pieces of the workspace; without one, only counts bytes.
class Pieces {
 public:
  explicit Pieces(void* workspace) : base_(static_cast<char*>(workspace)) {}
  template <class T>
  T* take(int64_t count) {
    char* const at = base_ != nullptr ? base_ + used_ : nullptr;
    used_ += static_cast<size_t>(divide_up(count * static_cast<int64_t>(sizeof(T)), kPieceAlignment) *
                                 kPieceAlignment);
    return reinterpret_cast<T*>(at);
  }
  size_t bytes() const { return used_; }

 private:
  static constexpr int64_t kPieceAlignment = 256;  // a few sectors: no two arrays share one
  char* base_;
  size_t used_ = 0;
};

bool aligned_rows(const void* data, int64_t stride, rlcc_dtype dtype) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * bytes_of(dtype) % 16 == 0;
}

RowList take_rows(Pieces& pieces, int64_t rows, bool positions) {
  return {pieces.take<int>(1), pieces.take<int>(rows), pieces.take<int>(rows),
          positions ? pieces.take<int>(rows) : nullptr};
}

RowStates take_states(Pieces& pieces, int64_t capacity, int parts) {
  return {pieces.take<float>(parts * capacity), pieces.take<float>(parts * capacity),
          pieces.take<float>(capacity), parts};
}

ChunkStates take_chunk_states(Pieces& pieces, const LossPlan& plan, int64_t capacity) {
  const int64_t tiles = plan.chunk_columns / plan.tile_columns * capacity;
  return {pieces.take<float>(tiles), pieces.take<float>(tiles), pieces.take<float>(capacity),
          pieces.take<float>(capacity)};
}

GradientSums take_sums(Pieces& pieces, const LossPlan& plan, int64_t capacity, int64_t columns) {
  const int64_t stride = divide_up(columns, plan.tile_columns) * plan.tile_columns;
  return {pieces.take<float>(plan.product_splits * capacity * stride), stride, plan.product_splits};
}

// Where E is 0, h and W may be null; nothing is read there, but addresses are formed.
LogitSource source_of(const rlcc_language_head& head, const void* h, int64_t h_stride, int64_t rows,
                      const RowList& list) {
  LogitSource source{};
  source.head = head;
  source.h = h;
  source.h_stride = h_stride;
  source.groups = 1;
  source.capacity = static_cast<int>(rows);
  source.wide_h = rows <= 1 ? reinterpret_cast<uintptr_t>(h) % 16 == 0 : aligned_rows(h, h_stride, head.dtype);
  source.wide_weight = aligned_rows(head.weight, head.weight_stride, head.dtype);
  if (head.columns == 0) {
    source.h = source.head.weight = list.counted;
    source.h_stride = source.head.weight_stride = 0;
  }
  source.rows = list;
  return source;
}

// step(chunk, is it the first) for each chunk of the vocabulary, until one fails.
template <class Step>
LaunchError for_each_chunk(const LossPlan& plan, int64_t vocabulary, void* values, const Step& step) {
  for (int64_t first = 0; first < vocabulary; first += plan.chunk_columns) {
    const int columns = static_cast<int>(std::min(plan.chunk_columns, vocabulary - first));
    RLCC_RETURN_IF_NOT_LAUNCHED(step(Chunk{first, columns, plan.chunk_columns, values}, first == 0));
  }
  return nullptr;
}

// ---- linear_cross_entropy

struct LossPieces {
  RowList rows;
  RowStates states;
  ChunkStates tiles;
  void* values;
  GradientSums sums;
  float *factor, *label_factor;

  LossPieces(Pieces& pieces, const rlcc_linear_cross_entropy_params& p, const LossPlan& plan)
      : tiles{}, values(nullptr) {
    const bool gradient = p.grad_h != nullptr;
    rows = take_rows(pieces, p.rows, gradient);
    states = take_states(pieces, p.rows, gradient ? 1 : plan.splits);
    sums = {};
    factor = label_factor = nullptr;
    if (!gradient) return;
    tiles = take_chunk_states(pieces, plan, p.rows);
    values = pieces.take<char>(p.rows * plan.chunk_columns * bytes_of(p.head.dtype));
    sums = take_sums(pieces, plan, p.rows, p.head.columns);
    factor = pieces.take<float>(p.rows);
    label_factor = pieces.take<float>(p.rows);
  }
};

// ---- linear_cross_entropy_backward

struct GradientPieces {
  RowList rows;
  float* scale;
  void* values;
  float* bias_sums;
  GradientSums sums;

  GradientPieces(Pieces& pieces, const rlcc_linear_cross_entropy_backward_params& p, const LossPlan& plan) {
    rows = take_rows(pieces, p.rows, p.grad_h != nullptr);
    scale = pieces.take<float>(2);
    values = pieces.take<char>(p.rows * plan.chunk_columns * bytes_of(p.head.dtype));
    bias_sums = p.grad_bias != nullptr
                    ? pieces.take<float>(divide_up(p.rows, plan.tile_rows) * plan.chunk_columns)
                    : nullptr;
    sums = p.grad_h != nullptr ? take_sums(pieces, plan, p.rows, p.head.columns) : GradientSums{};
  }
};

// ---- head_contrast

struct ContrastPieces {
  RowList rows;
  RowStates states;
  float* nll;

  ContrastPieces(Pieces& pieces, const rlcc_head_contrast_params& p, const LossPlan& plan) {
    rows = take_rows(pieces, p.rows, false);
    states = take_states(pieces, p.groups * p.rows, plan.splits);
    nll = pieces.take<float>(p.groups * p.rows);
  }
};

template <class OpPieces, class Params>
size_t bytes_for(const Params& p, const LossPlan& plan) {
  Pieces pieces(nullptr);
  OpPieces counted(pieces, p, plan);
  return pieces.bytes();
}

}  // namespace

LossPlan plan_of(const rlcc_linear_cross_entropy_params& p, const DeviceInfo& device) {
  return plan_loss(p.head.dtype, p.rows, p.head.vocabulary, p.head.columns, device);
}
LossPlan plan_of(const rlcc_linear_cross_entropy_backward_params& p, const DeviceInfo& device) {
  return plan_loss(p.head.dtype, p.rows, p.head.vocabulary, p.head.columns, device);
}
LossPlan plan_of(const rlcc_head_contrast_params& p, const DeviceInfo& device) {
  return plan_loss(p.head.dtype, p.groups * p.rows, p.head.vocabulary, p.head.columns, device);
}

size_t workspace_bytes_of(const rlcc_linear_cross_entropy_params& p, const LossPlan& plan) {
  return bytes_for<LossPieces>(p, plan);
}
size_t workspace_bytes_of(const rlcc_linear_cross_entropy_backward_params& p, const LossPlan& plan) {
  return bytes_for<GradientPieces>(p, plan);
}
size_t workspace_bytes_of(const rlcc_head_contrast_params& p, const LossPlan& plan) {
  return bytes_for<ContrastPieces>(p, plan);
}

LaunchError run(const rlcc_linear_cross_entropy_params& p, const LossPlan& plan, void* workspace,
                void* stream) {
  if (p.rows == 0) return nullptr;
  Pieces pieces(workspace);
  const LossPieces at(pieces, p, plan);
  const LogitSource source = source_of(p.head, p.h, p.h_stride, p.rows, at.rows);
  RowQuery query{};
  query.labels = p.labels;
  query.ignore_index = p.ignore_index;
  query.vocabulary = p.head.vocabulary;
  query.rows = source.capacity;
  query.all = p.lse != nullptr ? 1 : 0;
  query.nll = p.nll;
  const bool gradient = p.grad_h != nullptr;
  RLCC_RETURN_IF_NOT_LAUNCHED(launch_list_rows(query, at.rows, gradient ? &at.states : nullptr, stream));
  if (gradient) {
    RLCC_RETURN_IF_NOT_LAUNCHED(
        for_each_chunk(plan, p.head.vocabulary, at.values, [&](const Chunk& chunk, bool first) -> LaunchError {
          RLCC_RETURN_IF_NOT_LAUNCHED(
              launch_exponentials(source, chunk, at.tiles, at.states.label_logit, plan.tile_rows, stream));
          RLCC_RETURN_IF_NOT_LAUNCHED(launch_merge_chunk(source, chunk, at.tiles, at.states, stream));
          if (p.head.columns == 0) return nullptr;
          return launch_multiply_weight(source, chunk, &at.tiles, at.sums, first, plan.tile_rows, stream);
        }));
  } else {
    RLCC_RETURN_IF_NOT_LAUNCHED(launch_states(source, at.states, plan.tile_rows, stream));
  }
  const LossOutputs outputs{p.nll, p.lse, 0, at.factor, at.label_factor, p.head.vocabulary};
  RLCC_RETURN_IF_NOT_LAUNCHED(launch_losses(source, at.states, outputs, stream));
  if (!gradient || p.head.columns == 0) return nullptr;
  const HiddenGradient grad_h{p.grad_h, p.grad_h_stride, source.capacity, at.factor, at.label_factor};
  return launch_finish_grad_h(source, at.sums, grad_h, stream);
}

LaunchError run(const rlcc_linear_cross_entropy_backward_params& p, const LossPlan& plan, void* workspace,
                void* stream) {
  Pieces pieces(workspace);
  const GradientPieces at(pieces, p, plan);
  const LogitSource source = source_of(p.head, p.h, p.h_stride, p.rows, at.rows);
  RowQuery query{};
  query.labels = p.labels;
  query.ignore_index = p.ignore_index;
  query.vocabulary = p.head.vocabulary;
  query.rows = source.capacity;
  query.grad_nll = p.grad_nll;
  query.scale = at.scale;
  RLCC_RETURN_IF_NOT_LAUNCHED(launch_list_rows(query, at.rows, nullptr, stream));
  const bool grad_h = p.grad_h != nullptr && p.rows > 0 && p.head.columns > 0;
  const bool grad_weight = p.grad_weight != nullptr && p.head.columns > 0;
  const WeightGradient weight{p.grad_weight, p.grad_weight_stride, at.scale + 1};
  if (grad_h || grad_weight || p.grad_bias != nullptr) {
    RLCC_RETURN_IF_NOT_LAUNCHED(
        for_each_chunk(plan, p.head.vocabulary, at.values, [&](const Chunk& chunk, bool first) -> LaunchError {
          if (p.rows > 0) {
            const LossGradient gradient{p.lse, p.grad_nll, at.scale, at.bias_sums};
            RLCC_RETURN_IF_NOT_LAUNCHED(
                launch_logit_gradients(source, chunk, gradient, plan.tile_rows, stream));
          }
          if (grad_h) {
            RLCC_RETURN_IF_NOT_LAUNCHED(
                launch_multiply_weight(source, chunk, nullptr, at.sums, first, plan.tile_rows, stream));
          }
          if (grad_weight) RLCC_RETURN_IF_NOT_LAUNCHED(launch_multiply_h(source, chunk, weight, stream));
          if (p.grad_bias == nullptr) return nullptr;
          return launch_grad_bias(source, chunk, plan.tile_rows, at.bias_sums, at.scale + 1, p.grad_bias,
                                  stream);
        }));
  }
  if (!grad_h) return nullptr;
  const HiddenGradient gradient{p.grad_h, p.grad_h_stride, source.capacity, at.scale + 1, nullptr};
  return launch_finish_grad_h(source, at.sums, gradient, stream);
}

LaunchError run(const rlcc_head_contrast_params& p, const LossPlan& plan, void* workspace, void* stream) {
  if (p.groups == 0) return nullptr;
  Pieces pieces(workspace);
  const ContrastPieces at(pieces, p, plan);
  LogitSource source = source_of(p.head, p.h, p.h_stride, p.rows, at.rows);
  source.groups = static_cast<int>(p.groups);
  source.capacity = static_cast<int>(p.groups * p.rows);
  source.group_stride = p.head.columns == 0 ? 0 : p.group_stride;
  source.wide_h = source.wide_h && (p.groups == 1 || aligned_rows(p.h, p.group_stride, p.head.dtype));
  RowQuery query{};
  query.labels = p.labels;
  query.ignore_index = p.ignore_index;
  query.vocabulary = p.head.vocabulary;
  query.rows = static_cast<int>(p.rows);
  query.segments = p.segments;
  query.weights = p.weights;
  RLCC_RETURN_IF_NOT_LAUNCHED(launch_list_rows(query, at.rows, nullptr, stream));
  if (p.rows > 0) {
    RLCC_RETURN_IF_NOT_LAUNCHED(launch_states(source, at.states, plan.tile_rows, stream));
    const LossOutputs outputs{at.nll, nullptr, 1, nullptr, nullptr, p.head.vocabulary};
    RLCC_RETURN_IF_NOT_LAUNCHED(launch_losses(source, at.states, outputs, stream));
  }
  return launch_contrast(p, at.rows, at.nll, stream);
}

}  // namespace restorelcc::cuda
